"""Laws of states: free of position, free of neighbours, free of padding."""

from collections.abc import Callable

import pytest
import torch
from architectures import MOVABLE, WITH_STATES, make_lm

from gritrag.model.attention import Attention, decoder_stack
from gritrag.model.caches import PlacedCache, RecordingCache
from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.model.placing import place
from gritrag.model.rotation import Rotation
from gritrag.model.state import DocumentState

TEXTS = ["the river", "a much longer text about a bridge over the river", "short", "seven ferries cross at noon"]


def record(lm: torch.nn.Module, ids: list[int], start: int = 0) -> RecordingCache:
    cache = RecordingCache()
    tokens = torch.tensor([ids])
    with torch.no_grad():
        Attention(decoder_stack(lm), "causal")(tokens, torch.ones_like(tokens, dtype=torch.bool), cache, start)
    return cache


@pytest.mark.parametrize("architecture", MOVABLE)
@pytest.mark.parametrize("position", [1, 17, 200])
def test_a_state_placed_at_p_equals_one_computed_at_p(architecture: str, position: int) -> None:
    lm = make_lm(architecture)
    rotation = Rotation(decoder_stack(lm))
    ids = list(range(10, 25))
    keys, _ = record(lm, ids).unrotated(rotation)
    placed = rotation.apply(keys[:, 0], position)
    computed = torch.stack([layer.keys[0] for layer in record(lm, ids, position).layers])
    torch.testing.assert_close(placed, computed, atol=1e-3, rtol=0)


def test_stored_keys_are_the_outputs_of_the_key_projection() -> None:
    lm = make_lm("llama")
    projected: list[torch.Tensor] = []
    for layer in lm.model.layers:
        layer.self_attn.k_proj.register_forward_hook(lambda module, args, output: projected.append(output))
    keys, _ = record(lm, list(range(10, 25))).unrotated(Rotation(lm.model))
    expected = torch.stack([p.view(1, 15, 2, 8).transpose(1, 2) for p in projected])
    torch.testing.assert_close(keys, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "llama-yarn", "gemma3", "phi"])
def test_undo_is_the_inverse_of_rotate(architecture: str) -> None:
    rotation = Rotation(decoder_stack(make_lm(architecture)))
    keys = torch.randn(3, 2, 9, 8)
    positions = torch.tensor([0, 3, 4, 90, 91, 92, 300, 7, 1])
    torch.testing.assert_close(rotation.undo(rotation.rotate(keys, positions), positions), keys, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotation.apply(keys, 40), rotation.rotate(keys, torch.arange(40, 49)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "llama-yarn", "gemma3", "phi"])
@pytest.mark.parametrize("shape", [(3, 2, 9, 8), (3, 4, 2, 9, 8)])
def test_gradients_are_turned_by_the_adjoint(architecture: str, shape: tuple[int, ...]) -> None:
    """Rotating is linear: for any gradient g of what comes out, <rotate(k), g> = <k, gradient of k>."""
    rotation = Rotation(decoder_stack(make_lm(architecture)))
    keys, gradient = torch.randn(shape, requires_grad=True), torch.randn(shape)
    positions = torch.randint(0, 300, (4, 9)) if len(shape) == 5 else torch.randint(0, 300, (9,))
    for turn in (rotation.rotate, rotation.undo):
        turned = turn(keys, positions)
        (got,) = torch.autograd.grad(turned, keys, gradient)
        torch.testing.assert_close((turned * gradient).sum(), (keys * got).sum(), atol=1e-3, rtol=0)
        other = torch.randn(shape)  # the law holds for every k, not only where it was taken
        torch.testing.assert_close((turn(other, positions) * gradient).sum(), (other * got).sum(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("architecture", WITH_STATES)
@pytest.mark.parametrize("reading", ["causal", "bidirectional"])
def test_padding_and_company_change_no_vector_and_no_state(
    architecture: str, reading: str, make_model: Callable[..., GritModel]
) -> None:
    model = make_model(architecture, reading=reading)
    together = model.read_documents(TEXTS, batch_size=4)
    for text, reading_together in zip(TEXTS, together, strict=True):
        (alone,) = model.read_documents([text])
        torch.testing.assert_close(torch.tensor(reading_together.vector), torch.tensor(alone.vector), atol=1e-4, rtol=0)
        assert len(reading_together.state) == len(model.document_token_ids(text))
        torch.testing.assert_close(reading_together.state.keys, alone.state.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(reading_together.state.values, alone.state.values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", MOVABLE)
def test_a_cache_goes_back_to_the_state_it_was_placed_from(
    architecture: str, make_model: Callable[..., GritModel]
) -> None:
    model = make_model(architecture)
    states = [reading.state for reading in model.read_documents(TEXTS[:3])]
    cache = place([Context.of(*states)], model.decoder.shape, model.rotation, room=4)
    assert isinstance(cache, PlacedCache)
    assert cache.get_seq_length() == sum(map(len, states))
    back = cache.state(model.rotation, [i for state in states for i in state.token_ids.tolist()], "causal")
    torch.testing.assert_close(back.keys, torch.cat([state.keys for state in states], dim=2), atol=1e-5, rtol=1e-4)
    assert torch.equal(back.values, torch.cat([state.values for state in states], dim=2))


def test_a_slice_of_a_causal_state_is_the_state_of_the_beginning(tiny_model: GritModel) -> None:
    (whole,) = tiny_model.read_documents([TEXTS[1]])
    part = whole.state[:9]
    assert len(part) == 9
    cache = record(tiny_model.lm, part.token_ids.tolist())
    keys, _ = cache.unrotated(tiny_model.rotation)
    torch.testing.assert_close(part.keys, keys[:, 0], atol=1e-5, rtol=1e-4)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"got keys \[1, 2, 3, 4\]"):
        DocumentState(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), torch.zeros(5, dtype=torch.long), "causal")
