"""Every probe has an outcome that it must give for each architecture."""

from collections.abc import Callable

import pytest
import torch
from architectures import CONFIGS, make_lm

from gritrag.config import CheckpointConfig
from gritrag.model import state
from gritrag.model.attention import Attention, bidirectional_view, decoder_stack
from gritrag.model.grit import GritModel
from gritrag.model.probes import probe
from gritrag.model.rotation import Rotation

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
    "mamba": ("refused", "refused", "refused", "refused"),
}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_outcome_of_every_probe(architecture: str) -> None:
    probed = probe(make_lm(architecture))
    assert tuple(p.outcome for p in probed.probes) == OUTCOMES[architecture], probed.probes


def test_a_wrong_rotation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = Rotation._turn
    monkeypatch.setattr(Rotation, "_turn", staticmethod(lambda keys, cos, sin: correct(keys, cos, -sin)))
    move = probe(make_lm("llama")).probes[1]
    assert move.outcome == "falls back"
    assert "off by" in move.detail


def test_a_model_that_is_not_causal_is_refused() -> None:
    lm = make_lm("llama")
    lm.model = bidirectional_view(lm.model)
    assert probe(lm).probes[0].outcome == "refused"


def test_a_cache_that_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state.PlacedLayer, "get_seq_length", lambda self: self.length - 1)
    monkeypatch.setattr(state.PlacedLayer, "get_mask_sizes", lambda self, q: (self.length + q, 1))
    assert probe(make_lm("llama")).probes[2].outcome == "refused"


def test_mamba_embeds_causally_but_has_no_states(make_model: Callable[..., GritModel]) -> None:
    with pytest.raises(ValueError, match="running state"):
        make_model("mamba", reading="bidirectional")
    with pytest.raises(ValueError, match="no states to reuse"):
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
