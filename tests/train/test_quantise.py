"""Laws of fake quantisation: forward what the codec leaves, backward as if it left everything; in the same steps."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gritrag.codecs import get_codec
from gritrag.codecs.int4 import Int4
from gritrag.index.storage.packed import decode, encode
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState
from gritrag.train.config import TrainConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.quantise import FakeQuantise
from gritrag.train.read_once import ReadOnce

Recipe = Callable[..., TrainConfig]
LOSSY = ("int8", "int4")


def tensors(tokens: int, head_dim: int, seed: int, dtype: torch.dtype = torch.float32) -> DocumentState:
    draw = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 2, 3, tokens, head_dim, generator=draw).to(dtype)
    return DocumentState(keys.requires_grad_(), values.requires_grad_(), torch.arange(tokens), "causal")


@pytest.mark.parametrize("name", LOSSY)
@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 140), head_dim=st.integers(1, 9), seed=st.integers(0, 99), is_short=st.booleans())
def test_fake_is_exactly_what_writing_and_reading_gives(
    name: str, tokens: int, head_dim: int, seed: int, is_short: bool
) -> None:
    state = tensors(tokens, head_dim, seed, torch.bfloat16 if is_short else torch.float32)
    written = encode(DocumentState(state.keys, state.values, torch.arange(tokens), "causal"), name)
    back = decode(written, name, "causal")
    (fake,) = FakeQuantise(name)([state])
    assert torch.equal(fake.keys, back.keys.to(state.keys.dtype))
    assert torch.equal(fake.values, back.values.to(state.values.dtype))
    assert fake.keys.dtype == state.keys.dtype


@pytest.mark.parametrize("tokens", [2, 70, 119])
def test_int4_that_is_not_packed_is_near_int4_that_is(tokens: int) -> None:
    """What a GPU computes: it differs from the codec by a fraction of what the codec loses."""
    state = tensors(tokens, 16, 1)
    codec = get_codec("int4")
    assert isinstance(codec, Int4)
    for near, left, whole in zip(
        codec.approximate(state.keys, state.values),
        codec(state.keys, state.values),
        (state.keys, state.values),
        strict=True,
    ):
        lost = (left - whole).norm().item()
        assert (near - left).norm().item() <= 0.8 * lost + 1e-3 * whole.norm().item()
        assert near.dtype == torch.float32


@pytest.mark.parametrize("name", LOSSY)
def test_gradients_pass_as_they_come(name: str) -> None:
    state = tensors(70, 5, 0)
    (fake,) = FakeQuantise(name)([state])
    for_keys, for_values = torch.randn_like(fake.keys), torch.randn_like(fake.values)
    torch.autograd.backward([fake.keys, fake.values], [for_keys, for_values])
    assert torch.equal(state.keys.grad, for_keys)
    assert torch.equal(state.values.grad, for_values)


def test_a_codec_that_is_none_is_refused_before_training(recipe: Recipe, tiny_model: GritModel) -> None:
    with pytest.raises(ValueError, match="unknown codec 'int3'"):
        ReadOnce(tiny_model, recipe(generative={"quantise": "int3"}))
    with pytest.raises(ValueError, match="'bf16' loses nothing"):
        ReadOnce(tiny_model, recipe(generative={"quantise": "bf16"}))


def kinds(mixture: Mixture, steps: int) -> list[bool]:
    return [isinstance(s, RetrievalStep) and s.is_quantised for s in map(mixture.step, range(steps))]


def test_which_steps_are_quantised_depends_on_recipe_and_number_alone(recipe: Recipe, tiny_model: GritModel) -> None:
    config = recipe(generative={"quantise": "int4", "p_quantise": 0.5, "p_full": 0.2, "p_chat": 0.2})
    first = kinds(Mixture(config, tiny_model), 40)
    resumed = Mixture(config, tiny_model)
    assert [step.is_quantised for step in (resumed.step(n) for n in (31, 7)) if isinstance(step, RetrievalStep)] == [
        first[n] for n in (31, 7) if isinstance(resumed.step(n), RetrievalStep)
    ]
    assert 8 <= sum(first) <= 30
    steps = [resumed.step(n) for n in range(40)]
    assert not any(step.is_full and step.is_quantised for step in steps if isinstance(step, RetrievalStep))


@pytest.mark.parametrize(("quantise", "share"), [("", 1.0), ("int4", 0.0)])
def test_without_codec_or_share_no_step_is_quantised(
    quantise: str, share: float, recipe: Recipe, tiny_model: GritModel
) -> None:
    config = recipe(generative={"quantise": quantise, "p_quantise": share})
    assert not any(kinds(Mixture(config, tiny_model), 12))


def test_nothing_else_of_a_step_changes(recipe: Recipe, tiny_model: GritModel) -> None:
    plain, quantised = (
        Mixture(recipe(generative={"quantise": name, "p_quantise": 1.0}), tiny_model) for name in ("", "int4")
    )
    for number in range(6):
        a, b = plain.step(number), quantised.step(number)
        assert (
            (a.is_full, a.answers, a.seed) == (b.is_full, b.answers, b.seed) if isinstance(a, RetrievalStep) else a == b
        )


def test_a_quantised_step_learns_from_what_the_codec_leaves(
    recipe: Recipe, make_model: Callable[..., GritModel]
) -> None:
    """Another loss of the answers, the same contrastive loss, and gradients in every layer that is read."""
    found = {}
    for name in ("", "int8", "int4"):
        model = make_model()
        model.lm.requires_grad_(True)
        config = recipe(generative={"quantise": name, "p_quantise": 1.0, "p_full": 0, "p_chat": 0})
        step = Mixture(config, model).step(0)
        losses = ReadOnce(model, config)(step).losses
        found[name] = losses
        weights = dict(model.lm.named_parameters())
        assert all(weights[f"model.layers.{n}.self_attn.k_proj.weight"].grad.abs().sum() > 0 for n in range(3))
    assert found[""]["contrastive"] == found["int4"]["contrastive"]
    assert found[""]["placed"] != found["int4"]["placed"]
    off = {name: abs(found[name]["placed"] - found[""]["placed"]) for name in LOSSY}
    assert off["int8"] <= off["int4"] < 0.05 * found[""]["placed"]


def test_states_that_a_device_holds_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are packed side by side; there is no such device here, so their shapes tell who is who."""
    fake = FakeQuantise("int4")
    monkeypatch.setattr(fake, "_codec", lambda keys, values: (tuple(keys.shape), tuple(values.shape)))
    lengths = range(1, 40)
    states = [DocumentState(*torch.empty(2, 1, 1, n, 4, device="meta"), torch.arange(n), "causal") for n in lengths]
    assert fake._left(states) == [(tuple(state.keys.shape), tuple(state.values.shape)) for state in states]
