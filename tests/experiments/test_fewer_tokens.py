"""States of fewer tokens: which are kept, and where they are placed."""

from collections.abc import Callable

import pytest
import torch

from experiments.fewer_tokens import ALL, FIRST, by_layer, kept, read, side_by_side, ways, with_gaps
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState


@pytest.fixture(scope="module")
def tiny_model(make_model: Callable[..., GritModel]) -> GritModel:
    """Its own: transformers leaves hooks in a model that was asked for its attention."""
    return make_model()


@pytest.fixture
def state(tiny_model: GritModel) -> DocumentState:
    return tiny_model.read_documents(["Ann and Bo went up the hill, and Cy went down"])[0].state


def test_the_greatest_are_kept_in_order_with_the_first_and_the_last() -> None:
    score = torch.tensor([0.0, 0, 0, 5, 1, 9, 2, 7, 0, 0])
    assert kept(score, 0.6).tolist() == [0, 1, 2, 5, 7, 9]
    assert kept(score, 0.0).tolist() == [0, 1, 2, 9]
    assert kept(score[:2], 0.5).tolist() == [0, 1]
    assert torch.equal(score, torch.tensor([0.0, 0, 0, 5, 1, 9, 2, 7, 0, 0]))


def test_a_document_that_is_read_again_attends_to_each_token(tiny_model: GritModel, state: DocumentState) -> None:
    found = read(tiny_model, state)
    layers, heads = state.keys.shape[:2]
    assert found.mean.shape == found.largest.shape == (layers, heads, len(state))
    assert (found.mean > 0).all()
    assert (found.largest >= found.mean).all()
    assert (found.mean.sum(-1) < 1).all()  # some goes to what is read again


def test_gaps_keep_the_distance_to_the_end(tiny_model: GritModel, state: DocumentState) -> None:
    assert tiny_model.rotation is not None
    chosen = torch.tensor([0, 1, 2, 7, 11, len(state) - 1])
    few = with_gaps(tiny_model, state, chosen)
    placed = tiny_model.rotation.apply(few.keys, len(state) - len(chosen))
    assert torch.allclose(placed, tiny_model.rotation.apply(state.keys, 0)[:, :, chosen], atol=1e-5)
    assert torch.equal(few.values, side_by_side(state, chosen).values)


def test_a_layer_keeps_its_own_tokens(state: DocumentState) -> None:
    score_LT = torch.stack([torch.arange(len(state)) * (-1.0) ** layer for layer in range(len(state.keys))])
    few = by_layer(state, score_LT, 0.5)
    assert torch.equal(few.keys[0], state.keys[0][:, kept(score_LT[0], 0.5)])
    assert torch.equal(few.values[1], state.values[1][:, kept(score_LT[1], 0.5)])


def test_each_way_keeps_the_share_and_one_keeps_all(tiny_model: GritModel, state: DocumentState) -> None:
    each = read(tiny_model, state)
    for name, smaller in ways(tiny_model, 0.4).items():
        few = smaller(each)
        assert len(few) == (len(state) if name == ALL else max(FIRST + 1, round(0.4 * len(state))))
        assert torch.equal(few.token_ids[:FIRST], state.token_ids[:FIRST])
