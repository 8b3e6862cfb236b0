"""Placing: the states of contexts written into a cache, each rotated to where it stands.

Shape letters: `B` contexts, `C` columns of a cache.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from gritrag.model.caches import CacheShape, PlacedCache
from gritrag.model.context import Context, PlacedState
from gritrag.model.rotation import Rotation

TOGETHER = 1 << 26
"""Numbers of keys of several states that a GPU unpacks and rotates at once, at most: a quarter of a gigabyte in
float32."""


class Cell(NamedTuple):
    """Where a state lies in the cache of a batch: its row, and its columns."""

    row: int
    columns: slice
    placed: PlacedState


def cells(contexts: Sequence[Context]) -> Iterator[Cell]:
    """The states of all contexts, one row for each, one behind the other. Rows are aligned at the right end: this is
    where answers and training alike put what they place."""
    width = max(context.cached_tokens for context in contexts)
    for row, context in enumerate(contexts):
        column = width - context.cached_tokens
        for placed in context.states:
            end = column + len(placed.state)
            yield Cell(row, slice(column, end), placed)
            column = end


def column_biases(contexts: Sequence[Context]) -> torch.Tensor | None:
    """What is added to the attention scores of all `cells`, float32 `[B, C]`; None where that is nothing."""
    bias_BC = torch.zeros(len(contexts), max(context.cached_tokens for context in contexts))
    for row, columns, placed in cells(contexts):
        bias_BC[row, columns.start + placed.unbiased : columns.stop] = placed.relevance_bias
    return bias_BC if bool(bias_BC.any()) else None


def place(
    contexts: Sequence[Context],
    shape: CacheShape,
    rotation: Rotation | None,
    room: int,
    buffers: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> PlacedCache:
    """Write the states of each context into a cache, rotated to where they stand; see `cells`.

    The columns on the left of rows with fewer states are zero and are to be masked, as is the room behind them.

    Args:
        contexts: one for each row.
        shape: of the model's caches.
        rotation: the model's; None where its keys cannot be moved, which leaves room for one state, at the start.
        room: tokens that will follow.
        buffers: to write into, zero behind the states; made if None.
    """
    width = max(context.cached_tokens for context in contexts)
    keys, values = shape.empty(len(contexts), width + room) if buffers is None else buffers
    for row, context in enumerate(contexts):
        gap = width - context.cached_tokens
        keys[:, row, :, :gap] = 0
        values[:, row, :, :gap] = 0
    # a column that attention is given before a token is there counts nothing, but nothing times NaN is NaN
    if buffers is None:
        keys[:, :, :, width:] = 0
        values[:, :, :, width:] = 0
    if shape.device.type == "cpu" or rotation is None:
        _write(list(cells(contexts)), keys, values, rotation)
    else:
        for group in _groups(cells(contexts), shape):
            _write_together(group, keys, values, rotation)
    bias_BC = column_biases(contexts)
    bias_BC = None if bias_BC is None else bias_BC.to(shape.device, shape.dtype)
    cache = PlacedCache(keys, values, width, bias_BC)
    if rotation is None and len(contexts) == 1:
        cache.token_ids = contexts[0].token_ids[:width]
    return cache


def row_of(cache: PlacedCache, row: int, context: Context) -> PlacedCache:
    """One context of a batch that was just placed, without the columns on its left: a view."""
    gap = cache.length - context.cached_tokens
    keys, values = (buffer[:, row : row + 1, :, gap:] for buffer in cache.buffers)
    bias = None if cache.bias is None else cache.bias[[row], gap:]
    view = PlacedCache(keys, values, context.cached_tokens, bias)
    view.token_ids = context.token_ids[: context.cached_tokens]
    return view


def _write(group: Sequence[Cell], keys: torch.Tensor, values: torch.Tensor, rotation: Rotation | None) -> None:
    """State by state."""
    for row, columns, placed in group:
        placed.state.write(keys[:, row, :, columns], values[:, row, :, columns], rotation, placed.position)


def _groups(given: Iterator[Cell], shape: CacheShape) -> Iterator[list[Cell]]:
    """Neighbouring cells of one row whose states are of one class, as many as keep a GPU busy and fit its memory."""
    most = max(1, TOGETHER // (shape.layers * shape.heads * shape.head_dim))
    group: list[Cell] = []
    for cell in given:
        if group:
            is_alike = cell.row == group[0].row and type(cell.placed.state) is type(group[0].placed.state)
            if not is_alike or cell.columns.stop - group[0].columns.start > most:
                yield group
                group = []
        group.append(cell)
    if group:
        yield group


def _write_together(group: Sequence[Cell], keys: torch.Tensor, values: torch.Tensor, rotation: Rotation) -> None:
    """The states of a group at once, where their class can; what is started once takes a GPU a tenth of the time. One
    that is alone may be of any length, and takes half the memory by itself."""
    states = [cell.placed.state for cell in group]
    found = type(states[0]).together(states, keys.device) if len(states) > 1 else None
    if found is None:
        _write(group, keys, values, rotation)
        return
    runs = [torch.arange(cell.placed.position, cell.placed.position + len(cell.placed.state)) for cell in group]
    row, columns = group[0].row, slice(group[0].columns.start, group[-1].columns.stop)
    keys[:, row, :, columns] = rotation.rotate(found[0].float(), torch.cat(runs).to(keys.device))
    values[:, row, :, columns] = found[1]
