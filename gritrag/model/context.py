"""Context: what an answer is decoded from, states and runs of tokens in the order in which the model sees them.

Shape letters: `B` contexts, `T` tokens that are still to be read, `C` columns of a cache, `K` columns and tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from gritrag.model.rotation import Rotation
from gritrag.model.state import CacheShape, DocumentState, PlacedCache

TOGETHER = 1 << 26
"""Numbers of keys of several states that a GPU unpacks and rotates at once, at most: a quarter of a gigabyte in
float32."""


@dataclass(frozen=True)
class Part:
    """A stretch of a context.

    Args:
        content: a state, which is reused as it was read, or token ids, which are read now.
        relevance_bias: added to the attention scores of all tokens of a state, for whatever comes behind it.
        unbiased: so many of its first tokens have no bias all the same.
        shares_positions: neighbouring states that share positions all end where what comes behind them begins, as if
            each were there alone (Ratner et al. 2023, arXiv 2212.10947, section 2, where they begin together). The
            other parts stand one behind the other.
    """

    content: DocumentState | tuple[int, ...]
    relevance_bias: float = 0.0
    shares_positions: bool = False
    unbiased: int = 0

    def __post_init__(self) -> None:
        is_plain = not self.relevance_bias and not self.shares_positions
        assert is_plain or self.state is not None, "tokens have no bias and stand one behind the other"

    def __len__(self) -> int:
        """Tokens."""
        return len(self.content)

    @property
    def state(self) -> DocumentState | None:
        """The content, if it is a state."""
        return self.content if isinstance(self.content, DocumentState) else None

    @property
    def token_ids(self) -> Sequence[int]:
        """All tokens, those of a state included."""
        return self.content.token_ids.tolist() if isinstance(self.content, DocumentState) else self.content

    @property
    def fresh_ids(self) -> Sequence[int]:
        """Tokens that are still to be read: none of a state."""
        return () if isinstance(self.content, DocumentState) else self.content


class PlacedState(NamedTuple):
    """A state, the position of its first token, and what is added to the attention scores of its tokens, but for the
    first `unbiased`."""

    state: DocumentState
    position: int
    relevance_bias: float
    unbiased: int = 0


@dataclass(frozen=True)
class Context:
    """Parts in order. Each sees all that stand before it, but a state only as much as it saw when it was read.

    Args:
        parts: to be answered from, a context must end with tokens.
        start: position of the first token.
    """

    parts: tuple[Part, ...]
    start: int = 0

    @classmethod
    def of(cls, *contents: DocumentState | Sequence[int]) -> "Context":
        """From states and lists of token ids, empty ones left out."""
        given = (each if isinstance(each, DocumentState) else tuple(each) for each in contents)
        return cls(tuple(Part(content) for content in given if len(content)))

    def __len__(self) -> int:
        """Tokens, those of states included."""
        return sum(map(len, self.parts))

    @cached_property
    def states(self) -> list[PlacedState]:
        """The states, in order."""
        placed = zip(self.parts, self._positions, strict=True)
        return [PlacedState(p.state, first, p.relevance_bias, p.unbiased) for p, first in placed if p.state is not None]

    @property
    def end(self) -> int:
        """Position of what comes behind it: `start` and its tokens, but for states that share positions."""
        last = self.start if not self.parts else self._positions[-1] + len(self.parts[-1])
        return max([last, *(placed.position + len(placed.state) for placed in self.states)])

    @property
    def cached_tokens(self) -> int:
        """Tokens that are not read again."""
        return sum(len(placed.state) for placed in self.states)

    @property
    def token_ids(self) -> list[int]:
        """All tokens in order, those of states included: what the uncached run reads."""
        return [id for part in self.parts for id in part.token_ids]

    @property
    def fresh_ids(self) -> list[int]:
        """Tokens that are still to be read, in order."""
        return [id for part in self.parts for id in part.fresh_ids]

    @property
    def fresh_positions(self) -> list[int]:
        """Where they stand."""
        runs = (range(s, s + len(p.fresh_ids)) for p, s in zip(self.parts, self._positions, strict=True))
        return [position for run in runs for position in run]

    @property
    def is_interleaved(self) -> bool:
        """Whether a state stands behind a token that is still to be read."""
        is_state = [part.state is not None for part in self.parts]
        return is_state != sorted(is_state, reverse=True)

    def read_again(self, is_kept: Sequence[bool]) -> "Context":
        """The same tokens one behind the other, with no bias, and with only some of the states kept; one answer for
        each part (tokens are always kept)."""
        kept = zip(self.parts, is_kept, strict=True)
        return replace(self, parts=tuple(Part(p.content if k else tuple(p.token_ids)) for p, k in kept))

    @cached_property
    def _positions(self) -> list[int]:
        """Of the first token of each part."""
        firsts: list[int] = []
        start = self.start
        for shares_positions, group in groupby(self.parts, key=lambda part: part.shares_positions):
            own = list(map(len, group))
            end = start + (max(own) if shares_positions else sum(own))
            firsts += [end - length for length in own] if shares_positions else accumulate(own[:-1], initial=start)
            start = end
        return firsts


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


class Inputs(NamedTuple):
    """The first forward over a batch of contexts whose states are in the cache.

    Args:
        ids, positions: int64 `[B, T]`, padded on the left.
        mask: bool, True where attention is allowed: None if that is everything that causality allows, `[B, C + T]` if
            some columns are padding, `[B, 1, T, C + T]` if states stand behind tokens.
        is_real: bool `[B, C + T]`: which columns are no padding; None if all are.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    is_real: torch.Tensor | None


def inputs(contexts: Sequence[Context], device: torch.device) -> Inputs:
    """What is still to be read of each context, beside a cache that `place` has filled."""
    fresh = [context.fresh_ids for context in contexts]
    cached, width = max(context.cached_tokens for context in contexts), max(map(len, fresh))
    ids, positions = (torch.zeros(len(contexts), width, dtype=torch.long) for _ in range(2))
    is_real = torch.zeros(len(contexts), cached + width, dtype=torch.bool)
    for row, context in enumerate(contexts):
        column = width - len(fresh[row])
        ids[row, column:] = torch.tensor(fresh[row])
        positions[row, column:] = torch.tensor(context.fresh_positions)
        is_real[row, cached - context.cached_tokens : cached] = True
        is_real[row, cached + column :] = True
    mask: torch.Tensor | None = None
    if any(context.is_interleaved for context in contexts):
        mask = mask_by_position(contexts, cached, positions, is_real).to(device)
    real = None if bool(is_real.all()) else is_real.to(device)
    return Inputs(ids.to(device), positions.to(device), real if mask is None else mask, real)


def mask_by_position(
    contexts: Sequence[Context], cached: int, positions_BT: torch.Tensor, is_real_BK: torch.Tensor
) -> torch.Tensor:
    """Who sees whom, bool `[B, 1, T, K]`. Columns lie in the order of the cache, not of the context, so that is asked
    of their positions.

    Args:
        contexts: one for each row.
        cached: columns of the states, as `cells` has them.
        positions_BT: of the tokens that are read now.
        is_real_BK: which columns are no padding.
    """
    columns_BK = torch.cat([torch.zeros(len(contexts), cached, dtype=torch.long), positions_BT], dim=1)
    for row, columns, placed in cells(contexts):
        columns_BK[row, columns] = torch.arange(placed.position, placed.position + len(placed.state))
    mask_BTK = is_real_BK[:, None] & (columns_BK[:, None] <= positions_BT[:, :, None])
    # a padding token must see something, or softmax gives NaN, which spreads through everything that it is added to
    width = positions_BT.shape[1]
    own_TK = torch.cat([torch.zeros(width, cached, dtype=torch.bool), torch.eye(width, dtype=torch.bool)], dim=1)
    return (mask_BTK | own_TK)[:, None]


def additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A 4D mask in the form that "eager" attention adds to its scores; others take it as it is."""
    if mask is None or mask.dim() != 4 or mask.dtype != torch.bool:
        return mask
    return hidden(mask, dtype)


def hidden(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores so that only what is `seen` (bool) counts, of the same shape."""
    # not minus infinity: padding, which sees nothing, would become NaN, and spread
    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, lowest)


def added(
    mask: torch.Tensor | None, tokens: int, end: int, like: torch.Tensor, bias_BC: torch.Tensor | None
) -> torch.Tensor:
    """What is added to the attention scores of the last `tokens` of `end` columns: `[1 or B, 1, tokens, end]`.

    Args:
        mask: that of `Inputs`.
        like: of the dtype and on the device that are wanted.
        bias_BC: added to the first columns, where it is there.
    """
    if mask is not None and mask.dim() == 4:
        seen = mask[:, :, -tokens:]
    else:
        seen = torch.ones(1, 1, tokens, end, dtype=torch.bool, device=like.device).tril(end - tokens)
        seen = seen if mask is None else seen & mask[:, None, None]
    scores = hidden(seen, like.dtype)
    if bias_BC is None:
        return scores
    return scores + pad(bias_BC.to(like.dtype), (0, end - bias_BC.shape[1]))[:, None, None]
