"""Context: what an answer is decoded from, states and runs of tokens in the order in which the model sees them.

Shape letters: `B` contexts, `T` tokens that are still to be read, `C` columns of a cache, `K` columns and tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from gritrag.model.rotation import Rotation
from gritrag.model.state import CacheShape, DocumentState, PlacedCache

Piece = DocumentState | tuple[int, ...]
"""Part of a context: reused as it was read, or token ids that are read now."""


@dataclass(frozen=True)
class Context:
    """Pieces in order. Each sees all that stand before it, but a state only as much as it saw when it was read.

    Args:
        pieces: states and runs of token ids. To be answered from, a context must end with tokens.
        biases: one for each piece, added to the attention scores of all tokens of a state, for whatever comes behind
            it; of no effect on a run of tokens. Empty for none.
        abreast: one for each piece: neighbouring states that stand abreast all end at the position where what comes
            behind them begins, as if each were there alone (shared positions: Ratner et al. 2023, arXiv 2212.10947,
            section 2, where they begin together). The others stand one behind the other. Empty for none.
    """

    pieces: tuple[Piece, ...]
    biases: tuple[float, ...] = ()
    abreast: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.biases) in (0, len(self.pieces)), "one bias for each piece, or none"
        assert len(self.abreast) in (0, len(self.pieces)), "each piece stands abreast or does not, or none does"
        pairs = zip(self.pieces, self.abreast, strict=False)
        assert all(isinstance(piece, DocumentState) for piece, is_abreast in pairs if is_abreast), "tokens in a row"

    @classmethod
    def of(cls, *pieces: DocumentState | Sequence[int]) -> "Context":
        """From states and lists of token ids, empty ones left out."""
        given = (piece if isinstance(piece, DocumentState) else tuple(piece) for piece in pieces)
        return cls(tuple(piece for piece in given if len(piece)))

    def __len__(self) -> int:
        """Tokens, those of states included."""
        return sum(map(len, self.pieces))

    @cached_property
    def states(self) -> list[tuple[DocumentState, int]]:
        """Each state with the position of its first token."""
        return [(piece, start) for piece, start in self._placed() if isinstance(piece, DocumentState)]

    @property
    def cached_tokens(self) -> int:
        """Tokens that are not read again."""
        return sum(len(state) for state, _ in self.states)

    @property
    def token_ids(self) -> list[int]:
        """All tokens in order, those of states included: what the uncached run reads."""
        return [
            id
            for piece in self.pieces
            for id in (piece.token_ids.tolist() if isinstance(piece, DocumentState) else piece)
        ]

    @property
    def fresh_ids(self) -> list[int]:
        """Tokens that are still to be read, in order."""
        return [id for piece in self.pieces if not isinstance(piece, DocumentState) for id in piece]

    @property
    def fresh_positions(self) -> list[int]:
        """Where they stand."""
        runs = (range(s, s + len(piece)) for piece, s in self._placed() if not isinstance(piece, DocumentState))
        return [position for run in runs for position in run]

    @property
    def is_interleaved(self) -> bool:
        """Whether a state stands behind a token that is still to be read."""
        is_state = [isinstance(piece, DocumentState) for piece in self.pieces]
        return is_state != sorted(is_state, reverse=True)

    def read_again(self, is_kept: Sequence[bool]) -> "Context":
        """The same tokens one behind the other, with only some of the states kept, as they are weighed; one answer for
        each piece (tokens are always kept)."""
        pairs = zip(self.pieces, is_kept, strict=True)
        return Context(
            tuple(
                tuple(piece.token_ids.tolist()) if isinstance(piece, DocumentState) and not kept else piece
                for piece, kept in pairs
            ),
            self.biases,
        )

    @property
    def state_biases(self) -> list[float]:
        """The bias of each of `states`."""
        pairs = zip(self.pieces, self.biases or [0.0] * len(self.pieces), strict=True)
        return [bias for piece, bias in pairs if isinstance(piece, DocumentState)]

    def _placed(self) -> Iterator[tuple[Piece, int]]:
        return zip(self.pieces, first_positions(list(map(len, self.pieces)), self.abreast)[0], strict=True)


def first_positions(lengths: Sequence[int], abreast: Sequence[bool] = (), start: int = 0) -> tuple[list[int], int]:
    """Where pieces of these lengths begin, the first of them at `start`, and where begins what comes behind them.

    Args:
        abreast: see `Context`; empty for none.
    """
    firsts: list[int] = []
    marked = zip(lengths, abreast or [False] * len(lengths), strict=True)
    for is_abreast, group in groupby(marked, key=lambda pair: pair[1]):
        own = [length for length, _ in group]
        end = start + (max(own) if is_abreast else sum(own))
        firsts += [end - length for length in own] if is_abreast else accumulate(own[:-1], initial=start)
        start = end
    return firsts, start


def place(contexts: Sequence[Context], shape: CacheShape, rotation: Rotation | None, room: int) -> PlacedCache:
    """Write the states of each context into a cache, one behind the other, rotated to where they stand.

    Rows with fewer states are aligned at the right end; the columns on their left are zero and are to be masked.

    Args:
        contexts: one for each row.
        shape: of the model's caches.
        rotation: the model's; None where its keys cannot be moved, which leaves room for one state, at the start.
        room: tokens that will follow.
    """
    width = max(context.cached_tokens for context in contexts)
    keys, values = shape.empty(len(contexts), width + room)
    biases = torch.zeros(len(contexts), width, dtype=shape.dtype)
    for row, context in enumerate(contexts):
        column = width - context.cached_tokens
        keys[:, row, :, :column] = 0
        values[:, row, :, :column] = 0
        for (state, start), bias in zip(context.states, context.state_biases, strict=True):
            end = column + len(state)
            state.write(keys[:, row, :, column:end], values[:, row, :, column:end], rotation, start)
            biases[row, column:end] = bias
            column = end
    return PlacedCache(keys, values, width, biases.to(shape.device) if bool(biases.any()) else None)


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
        mask = _mask_by_position(contexts, cached, positions, is_real).to(device)
    real = None if bool(is_real.all()) else is_real.to(device)
    return Inputs(ids.to(device), positions.to(device), real if mask is None else mask, real)


def _mask_by_position(
    contexts: Sequence[Context], cached: int, positions_BT: torch.Tensor, is_real_BK: torch.Tensor
) -> torch.Tensor:
    """Columns lie in the order of the cache, not of the context: who sees whom is asked of their positions."""
    columns_BK = torch.cat([torch.zeros(len(contexts), cached, dtype=torch.long), positions_BT], dim=1)
    for row, context in enumerate(contexts):
        column = cached - context.cached_tokens
        for state, start in context.states:
            columns_BK[row, column : column + len(state)] = torch.arange(start, start + len(state))
            column += len(state)
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
