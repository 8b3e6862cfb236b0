"""Every probe has an outcome that it must give for each architecture."""

import copy
from collections.abc import Callable

import pytest
import torch
from architectures import CONFIGS, make_lm
from causal_lms import tiny_config, tiny_lm
from transformers import AutoModelForCausalLM, PreTrainedModel

from gritrag.config import CheckpointConfig
from gritrag.doctor import examine_model
from gritrag.model import caches, probes
from gritrag.model.attention import Attention, bidirectional_view, decoder_stack
from gritrag.model.cache_names import given_cache
from gritrag.model.caches import CacheShape, PlacedCache
from gritrag.model.grit import GritModel
from gritrag.model.layers import AttentionMask, Rotary
from gritrag.model.probed import SHIFT, TOKENS, differ, probe_ids, tolerance
from gritrag.model.probes import probe
from gritrag.model.rotation import Rotation
from gritrag.model.step import Step
from gritrag.model.step_probe import LAYER_TOLERANCE, layer_differs

OUTCOMES = {
    #                 bidirectional, move, continue, step
    "llama": ("works", "works", "works", "works"),
    "llama-yarn": ("works", "works", "works", "works"),
    "llama-dynamic": ("works", "falls back", "works", "works"),  # its angles depend on the length of the context
    "qwen2": ("works", "works", "works", "works"),
    "qwen3": ("works", "works", "works", "works"),
    "mistral": ("works", "works", "works", "falls back"),  # has a window
    "gemma3": ("works", "works", "works", "falls back"),
    "gpt2": ("works", "falls back", "works", "falls back"),  # absolute positions
    "gpt_neox": ("works", "works", "works", "falls back"),
    "phi": ("works", "works", "works", "falls back"),
    "stablelm": ("falls back", "works", "works", "falls back"),  # ignores its config: an explicit mask
    "cohere": ("works", "falls back", "works", "falls back"),  # rotates neighbouring pairs
    "mamba": ("refused", "refused", "falls back", "falls back"),  # no states: its own forward
}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_outcome_of_every_probe(architecture: str) -> None:
    probed = probe(make_lm(architecture))
    assert tuple(p.outcome for p in probed.probes) == OUTCOMES[architecture], probed.probes


@pytest.mark.parametrize("shared", [0, 2])
def test_layers_that_share_keys_leave_them_movable(shared: int) -> None:
    """As in every checkpoint of Gemma 3n: its last layers use the keys of others, and have none in a cache."""
    config = tiny_config("gemma3n_text")
    kinds = ["sliding_attention", "full_attention"] * 2
    config.layer_types, config.num_kv_shared_layers = kinds, shared
    config.rope_parameters["full_attention"]["rope_theta"] = 1e6
    torch.manual_seed(0)
    probed = probe(AutoModelForCausalLM.from_config(config).eval())
    assert [each.outcome for each in probed.probes[1:3]] == ["works", "works"], probed.probes
    assert probed.shape is not None
    assert probed.shape.layers == 4 - shared


def test_the_log_and_the_doctor_say_why_a_forward_is_slow(
    make_model: Callable[..., GritModel], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("gemma3")
    assert "slow forward: some of its layers see only a part of the context" in caplog.text
    step = examine_model(model)[3]
    assert (step.level, step.detail.startswith("falls back: some of its layers")) == ("note", True)
    caplog.clear()
    make_model("llama")
    assert "slow" not in caplog.text


def test_a_wrong_rotation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = Rotation._rotated
    monkeypatch.setattr(Rotation, "_rotated", staticmethod(lambda keys, cos, sin: correct(keys, cos, -sin)))
    for dtype in (torch.float32, torch.bfloat16):
        move = probe(make_lm("llama").to(dtype)).probes[1]
        assert move.outcome == "falls back"
        assert "off by" in move.detail


@pytest.mark.parametrize("layers", [3, 12])
def test_rounding_that_grows_from_layer_to_layer_is_no_wrong_rotation(layers: int) -> None:
    """Over twelve layers of these weights, keys that are right are off by 0.08 in bfloat16."""
    config = copy.deepcopy(CONFIGS["llama"])
    config.num_hidden_layers, config.initializer_range = layers, 0.8
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval().bfloat16()
    before = [len(layer._forward_pre_hooks) for layer in lm.model.layers]
    assert probe(lm).probes[1].outcome == "works"
    assert [len(layer._forward_pre_hooks) for layer in lm.model.layers] == before


def test_layers_that_are_given_several_streams_are_compared_in_16_bits_too() -> None:
    """Gemma 3n hands four of them from layer to layer, `[4, B, T, D]`."""
    assert [each.outcome for each in probe(tiny_lm("gemma3n_text").bfloat16()).probes[1:3]] == ["works", "works"]


def _deep(layers: int = 24) -> PreTrainedModel:
    """Of weights so large that rounding grows from layer to layer, as it does in large models."""
    config = copy.deepcopy(CONFIGS["llama"])
    config.num_hidden_layers, config.initializer_range = layers, 0.8
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config).eval().bfloat16()


def test_rounding_that_grows_from_layer_to_layer_is_no_forgotten_token() -> None:
    lm = _deep()
    ids = probe_ids(lm)
    with torch.no_grad():
        recorded = probes._record(lm.model, ids[:, :SHIFT], 0).recorded
        cache = PlacedCache(*_shape(recorded).empty(2, TOKENS), 0)
        for number, pair in enumerate(recorded):
            cache.update(*pair, number)
        positions = torch.arange(SHIFT, TOKENS)[None].expand(2, -1)
        behind = lm(input_ids=ids[:, SHIFT:], position_ids=positions, **given_cache(lm, cache)).logits
        assert differ(behind, lm(input_ids=ids).logits[:, SHIFT:]) > tolerance(torch.bfloat16), "nothing grows here"
    assert probe(lm).probes[2].outcome == "works"


@pytest.mark.parametrize("number", [1, 11, 22, 23])
def test_a_single_layer_that_forgets_is_found_in_16_bits(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    update = PlacedCache.update

    def forget(
        self: PlacedCache, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> object:
        if layer == number and self.layers[layer].get_seq_length() == 0:
            values = values.roll(1, 2)
        return update(self, keys, values, layer)

    monkeypatch.setattr(PlacedCache, "update", forget)
    lm = _deep()
    with torch.no_grad():
        shape, why = probes._states(lm, lm.model, probe_ids(lm))
    assert shape is None
    assert "does not go on from keys and values" in why


def _shape(recorded: list[tuple[torch.Tensor, torch.Tensor]]) -> CacheShape:
    first, _ = recorded[0]
    return CacheShape(len(recorded), first.shape[1], first.shape[3], first.dtype, first.device)


def test_a_model_that_is_not_causal_is_refused() -> None:
    lm = make_lm("llama")
    lm.model = bidirectional_view(lm.model)
    with pytest.raises(ValueError, match=r"llama is no causal language model.*is_decoder=True"):
        probe(lm)


def test_a_cache_that_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches.PlacedLayer, "get_seq_length", lambda self: self.length - 1)
    monkeypatch.setattr(caches.PlacedLayer, "get_mask_sizes", lambda self, q: (self.length + q, 1))
    goes_on = probe(make_lm("llama")).probes[2]
    assert goes_on.outcome == "falls back"
    assert "does not go on from keys and values" in goes_on.detail


def test_mamba_embeds_causally_but_has_no_states(make_model: Callable[..., GritModel]) -> None:
    with pytest.raises(ValueError, match="stays causal whatever is asked of it"):
        make_model("mamba", reading="bidirectional")
    with pytest.raises(ValueError, match=r"no states to reuse: mamba keeps a running state.*mode='doc-query'"):
        make_model("mamba").read_documents(["a text"])


def test_the_view_shares_weights_and_leaves_the_model_alone() -> None:
    lm = make_lm("gemma3")
    decoder = decoder_stack(lm)
    view = bidirectional_view(decoder)
    assert {id(p) for p in view.parameters()} == {id(p) for p in decoder.parameters()}
    assert view.config is not decoder.config
    ids = torch.arange(10, 22)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    before = lm(input_ids=ids).logits
    Attention(decoder, "view")(ids, mask)
    assert torch.equal(lm(input_ids=ids).logits, before)
    assert not hasattr(decoder.config, "is_causal") or decoder.config.is_causal


def test_unknown_pooling_and_template_are_named(make_model: Callable[..., GritModel]) -> None:
    with pytest.raises(ValueError, match="no pooling 'median'"):
        make_model(pooling="median")
    with pytest.raises(ValueError, match="no template 'fancy'"):
        make_model(template="fancy")
    with pytest.raises(ValueError, match="extra"):
        CheckpointConfig.model_validate({"colour": "blue"})


# --- the step, layer by layer -----------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LLAMA_LIKE = [name for name, outcomes in OUTCOMES.items() if outcomes[3] == "works"]


def rotate_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    of = Rotary.of
    monkeypatch.setattr(Rotary, "of", lambda cos, sin: of(cos, -sin))


def forget_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentionMask, "of", lambda *args: AttentionMask(False))


def forget_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = AttentionMask.attend
    monkeypatch.setattr(AttentionMask, "attend", lambda self, q, k, v, scale: attend(self, q, k, v, 1.0))


MISTAKES = [rotate_backwards, forget_the_mask, forget_the_scale]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", LLAMA_LIKE)
def test_the_step_works_in_every_dtype_and_no_mistake_passes_for_it(
    architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake is off by ten times what is allowed, so rounding cannot hide it."""
    lm = make_lm(architecture).to(dtype)
    probed = probe(lm)
    assert probed.step is not None, probed.probes[3].detail
    assert probed.shape is not None
    assert probed.step.guesses_freely
    for mistake in MISTAKES:
        with monkeypatch.context() as wrong:
            mistake(wrong)
            assert layer_differs(lm, Step(lm), probe_ids(lm), probed.shape, 0) > 10 * LAYER_TOLERANCE[dtype]
            assert probe(lm).step is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_a_model_does_between_its_layers_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("llama").to(dtype)
    forward = type(lm.model.layers[1]).forward
    monkeypatch.setattr(type(lm.model.layers[1]), "forward", lambda self, x, **named: forward(self, x * 2, **named))
    assert probe(lm).step is None


def test_products_that_round_by_their_shape_switch_guessing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("llama").bfloat16()
    next_logits = Step.next_logits
    monkeypatch.setattr(Step, "next_logits", lambda self, ids, *rest: next_logits(self, ids, *rest) + ids.shape[1])
    found = probe(lm)
    assert found.step is not None
    assert not found.step.guesses_freely
    assert "lookup is off" in found.probes[3].detail


def test_hooks_that_transformers_left_are_no_hooks_of_anybody() -> None:
    """Those of somebody else are, and beside the others too."""
    lm = make_lm("llama")
    lm.set_attn_implementation("eager")
    ids = torch.arange(8)[None]
    outputs = lm(input_ids=ids, output_attentions=True, output_hidden_states=True)
    assert len(outputs.attentions) == len(lm.model.layers)
    assert any(module._forward_hooks for module in lm.modules()), "transformers leaves none any more: so can this"
    assert probe(lm).probes[3].outcome == "works"
    again = lm(input_ids=ids, output_attentions=True)
    assert all(map(torch.equal, again.attentions, outputs.attentions)), "they serve who asks for them"
    handle = lm.model.layers[0].mlp.register_forward_hook(lambda module, args, output: 2 * output)
    found = probe(lm).probes[3]
    assert (found.outcome, "hooks" in found.detail) == ("falls back", True)
    handle.remove()
    assert probe(lm).probes[3].outcome == "works"
