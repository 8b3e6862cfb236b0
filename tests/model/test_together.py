"""States that are placed together, as a GPU wants it, are placed as those that are written one by one."""

from collections.abc import Callable

import pytest
import torch

from gritrag.index.storage.packed import PackedState, decode, encode
from gritrag.model import placing
from gritrag.model.context import Context, Part
from gritrag.model.grit import GritModel
from gritrag.model.placing import Cell, cells
from gritrag.model.state import DocumentState

TEXTS = ("a ferry sails at four", "b", "an hour later another one " * 9, "nobody knows when")


def _contexts(model: GritModel, codec: str) -> list[Context]:
    read = [reading.state for reading in model.read_documents(list(TEXTS))]
    states = [decode(encode(state, codec), codec, state.reading) for state in read]
    parts = [Part(state, shares_positions=n > 1) for n, state in enumerate(states)]
    return [Context((*parts, Part((5, 6)))), Context((Part(read[3]), *parts[:2], Part((7,))), start=3)]


def _buffers(model: GritModel, contexts: list[Context], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    shape = model.decoder.shape
    keys, values = shape.empty(len(contexts), max(each.cached_tokens for each in contexts))
    return torch.zeros_like(keys, dtype=dtype), torch.zeros_like(values, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codec", ["int4", "int8", "bf16", "float32"])
@pytest.mark.parametrize("most", [1, 2000, 1 << 26])
def test_together_and_one_by_one_leave_the_same(
    codec: str, dtype: torch.dtype, most: int, make_model: Callable[..., GritModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "TOGETHER", most)
    model = make_model("llama")
    contexts, rotation = _contexts(model, codec), model.rotation
    assert rotation is not None, "its keys can be moved"
    expected, found = _buffers(model, contexts, dtype), _buffers(model, contexts, dtype)
    placing._write(list(cells(contexts)), *expected, rotation)
    sizes = []
    for group in placing._groups(cells(contexts), model.decoder.shape):
        sizes.append(len(group))
        placing._write_together(group, *found, rotation)
    assert sum(sizes) == 7
    assert max(sizes) == (1 if most == 1 else max(sizes))
    assert max(sizes) > 1 or most < 1 << 26
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=tolerance, rtol=tolerance)


def test_a_state_that_is_alone_is_written_by_itself(
    make_model: Callable[..., GritModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be of any length, and unpacked together with nothing it takes twice the memory."""
    monkeypatch.setattr(placing, "TOGETHER", 1)
    monkeypatch.setattr(PackedState, "together", lambda *given: pytest.fail("there is nothing to put together"))
    model = make_model("llama")
    contexts, rotation = _contexts(model, "int4"), model.rotation
    assert rotation is not None, "its keys can be moved"
    buffers = _buffers(model, contexts, torch.float32)
    groups = list(placing._groups(cells(contexts), model.decoder.shape))
    for group in groups:
        placing._write_together(group, *buffers, rotation)
    assert [len(group) for group in groups] == [1] * 7
    assert all(bool(buffer[:, 0].any(1).any(2).all()) for buffer in buffers)


def test_a_group_is_of_one_row_and_one_kind(make_model: Callable[..., GritModel]) -> None:
    model = make_model("llama")
    groups = list(placing._groups(cells(_contexts(model, "int4")), model.decoder.shape))
    assert [(group[0].row, type(group[0].placed.state), len(group)) for group in groups] == [
        (0, PackedState, 4),
        (1, DocumentState, 1),
        (1, PackedState, 2),
    ]
    assert all(isinstance(cell, Cell) for group in groups for cell in group)


def test_codecs_that_compute_on_the_processor_only_are_written_one_by_one(make_model: Callable[..., GritModel]) -> None:
    states = [
        decode(encode(reading.state, "int4"), "int4", "causal")
        for reading in make_model("llama").read_documents(list(TEXTS))
    ]
    other = PackedState(_Elsewhere(), states[0].packed, states[0].token_ids, "causal")  # type: ignore[attr-defined]
    assert PackedState.together([other, other], torch.device("cpu")) is None
    assert PackedState.together([states[0], other], torch.device("cpu")) is None


class _Elsewhere:
    """No codec of whole numbers."""
