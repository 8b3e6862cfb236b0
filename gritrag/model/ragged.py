"""Ragged: one forward over texts of any lengths, each with a cache of its own.

Projections take all tokens of all rows together, so that rows share the reading of the weights, and none is padded.
Attention takes rows of one token whose caches are neighbours together, too. How many columns it is given is rounded up,
so that in fewer bits than float32 a token comes out the same whoever stands beside it.

Shape letters: `T` tokens of all rows, `N` rows, `S` tokens that are kept, `D` hidden, `L` layers, `H` key/value heads,
`G` query heads per key head, `C` columns of a cache, `K` head dim.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from gritrag.model.caches import PlacedCache
from gritrag.model.layers import AttentionMask, needs_dense
from gritrag.model.masks import hidden
from gritrag.model.slots import Slot
from gritrag.model.step import COLUMN_BLOCK, Step

PADDED = 32
"""Texts that are read from their start are padded to a multiple of this, and may be cut there. torch's kernel takes so
many tokens at a time, so a text comes out the same whatever stands beside it, and however it is cut."""

TOGETHER = 128
"""Longer texts without caches attend each by itself: much would be padding."""


class Row(NamedTuple):
    """One text of a ragged batch, with a cache of its own.

    Args:
        ids, positions: `[1, T]`, read now.
        cache: of one row; what is read is left behind what it holds. None for a text that is read whole and once.
        keep: of how many of the last tokens the outcome is wanted; 0 where more of the text is still to be read.
        mask: that of `context.Inputs`, where states stand behind tokens.
        slot: where the cache lies, if it lies beside others.
        text_tokens: how many the text has in all, if it is read from its start, all at once or cut after a multiple of
            `PADDED` tokens. Its cache is a multiple of `PADDED` long, with a finite number everywhere. 0 for others.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    cache: PlacedCache | None
    keep: int
    mask: torch.Tensor | None = None
    slot: Slot | None = None
    text_tokens: int = 0

    @property
    def is_step(self) -> bool:
        """Whether it is the next token of a text whose cache lies beside others."""
        return self.slot is not None and self.mask is None and self.ids.shape[1] == 1 == self.keep


class Attending(Protocol):
    """Rows that attend together."""

    part: slice
    """Their tokens among all."""
    kept: slice
    """Those that are computed in the last layer."""

    def store(self, number: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Leave keys and values `[T, H, K]` of their tokens in the caches of layer `number`."""

    def mix(self, number: int, query: torch.Tensor, scale: float, is_last: bool) -> torch.Tensor:
        """`[T, H * G * K]` of queries `[T, H * G, K]` of their tokens."""

    def end(self) -> None:
        """The forward is over."""


class Alone:
    """One row, of any length."""

    def __init__(self, row: Row, part: slice, step: Step, like: torch.Tensor) -> None:
        tokens = row.ids.shape[1]
        self.part, self.kept = part, slice(part.stop - row.keep, part.stop)
        assert row.cache is not None
        self._cache = row.cache
        is_first = row.cache.length == 0 and row.mask is None
        self._is_dense = row.slot is not None and needs_dense(like) and not is_first
        self._mask = self._last = self._mask_of(row, tokens, step, like)
        if row.keep not in (0, tokens):
            self._last = self._mask_of(row, row.keep, step, like)

    def _mask_of(self, row: Row, tokens: int, step: Step, like: torch.Tensor) -> AttentionMask:
        """Of the last tokens of the row."""
        end, mask = step.end(row.ids.shape[1], row.cache), row.mask
        if self._is_dense:
            columns = self._cache.buffers[0].shape[3]
            if mask is None:
                mask = torch.ones(1, 1, tokens, end, dtype=torch.bool, device=like.device).tril(end - tokens)
            mask, end = pad(mask, (0, columns - end)), columns
        return AttentionMask.of(mask, tokens, end, like, self._cache.bias, step.layers[0].groups)

    def store(self, number: int, key: torch.Tensor, value: torch.Tensor) -> None:
        pair = self._cache.update(key[None].transpose(1, 2), value[None].transpose(1, 2), number)
        keys, values = self._cache.buffers
        self._seen = (keys[number], values[number]) if self._is_dense else pair

    def mix(self, number: int, query: torch.Tensor, scale: float, is_last: bool) -> torch.Tensor:
        mask = self._last if is_last else self._mask
        return mask.attend(query[None], *self._seen, scale)[0]

    def end(self) -> None:
        """Its cache has counted for itself."""


class Neighbours:
    """Rows of one token each, in slots side by side."""

    def __init__(self, rows: Sequence[Row], part: slice, step: Step, like: torch.Tensor) -> None:
        self.part = self.kept = part
        self._caches = [row.cache for row in rows if row.cache is not None]
        first = rows[0].slot
        assert first is not None
        slots = slice(first.number, first.number + len(rows))
        lengths = [cache.length for cache in self._caches]
        columns = first.block.columns if needs_dense(like) else (max(lengths) // COLUMN_BLOCK + 1) * COLUMN_BLOCK
        self._keys, self._values = first.block.keys[:, slots], first.block.values[:, slots]
        self._columns = columns
        self._lengths_N = torch.tensor(lengths, device=like.device)
        self._rows_N = torch.arange(len(rows), device=like.device)
        columns_C = torch.arange(columns, device=like.device)
        bias_NC = hidden(columns_C <= self._lengths_N[:, None], like.dtype)
        for bias_C, cache in zip(bias_NC, self._caches, strict=True):
            if cache.bias is not None:
                bias_C[: cache.bias.shape[1]] += cache.bias[0].to(like.dtype)
        heads = self._keys.shape[2]
        bias = bias_NC[:, None, None].expand(-1, heads, -1, -1).contiguous()
        self._mask = AttentionMask(False, bias, bias)

    def __len__(self) -> int:
        """Rows."""
        return len(self._caches)

    def store(self, number: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self._keys[number][self._rows_N, :, self._lengths_N] = key
        self._values[number][self._rows_N, :, self._lengths_N] = value

    def mix(self, number: int, query: torch.Tensor, scale: float, is_last: bool) -> torch.Tensor:
        key, value = self._keys[number, :, :, : self._columns], self._values[number, :, :, : self._columns]
        return self._mask.attend(query[:, None], key, value, scale)[:, 0]

    def end(self) -> None:
        for cache in self._caches:
            cache.advance(1)


class Whole:
    """Rows without caches: texts that are read from their first token to their last, padded on the right."""

    def __init__(self, rows: Sequence[Row], part: slice, like: torch.Tensor) -> None:
        self.part = self.kept = part
        lengths_N = torch.tensor([row.ids.shape[1] for row in rows], device=like.device)
        columns = padded(int(lengths_N.max()))
        columns_C = torch.arange(columns, device=like.device)
        self._is_real_NC = columns_C < lengths_N[:, None]
        firsts_N = lengths_N.cumsum(0) - lengths_N
        self._tokens_NC = (firsts_N[:, None] + columns_C).clamp_max(part.stop - part.start - 1)

    def store(self, number: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self._pair = key[self._tokens_NC].transpose(1, 2), value[self._tokens_NC].transpose(1, 2)

    def mix(self, number: int, query: torch.Tensor, scale: float, is_last: bool) -> torch.Tensor:
        mixed = AttentionMask(True).attend(query[self._tokens_NC], *self._pair, scale)
        return mixed[self._is_real_NC]

    def end(self) -> None:
        """It leaves nothing."""


class Stretch:
    """Some of a text that is read from its start, with its cache. All columns of the text are seen, those still empty
    as hidden ones, and queries are padded: so the kernel adds up the same numbers however the text is cut."""

    def __init__(self, row: Row, part: slice, like: torch.Tensor) -> None:
        assert row.cache is not None
        assert row.keep == row.ids.shape[1], "all of a text is kept"
        self.part = self.kept = part
        self._cache = row.cache
        self._padding = padded(row.keep) - row.keep
        self._columns, start = padded(row.text_tokens), row.cache.length
        seen = torch.ones(row.keep + self._padding, self._columns, dtype=torch.bool, device=like.device).tril(start)
        self._bias = hidden(seen, like.dtype)[None, None]

    def store(self, number: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self._cache.update(key[None].transpose(1, 2), value[None].transpose(1, 2), number)
        keys, values = self._cache.buffers
        self._seen = keys[number, :, :, : self._columns], values[number, :, :, : self._columns]

    def mix(self, number: int, query: torch.Tensor, scale: float, is_last: bool) -> torch.Tensor:
        rows = pad(query, (0, 0, 0, 0, 0, self._padding))[None].transpose(1, 2)
        mixed = scaled_dot_product_attention(
            rows, self._seen[0], self._seen[1], self._bias, scale=scale, enable_gqa=True
        )
        return mixed[0].transpose(0, 1)[: len(query)].flatten(1)

    def end(self) -> None:
        """Its cache has counted for itself."""


def padded(tokens: int) -> int:
    """The next multiple of `PADDED`."""
    return -(-tokens // PADDED) * PADDED


def attending(rows: Sequence[Row], step: Step, like: torch.Tensor) -> list[Attending]:
    """The rows, those together that can be and stand one behind the other."""
    lengths = [row.ids.shape[1] for row in rows]
    ends = list(accumulate(lengths))
    found: list[Attending] = []
    begin = 0
    while begin < len(rows):
        end = begin + 1
        part = slice(ends[begin] - lengths[begin], ends[begin])
        if rows[begin].cache is None:
            while end < len(rows) and rows[end].cache is None and max(lengths[begin : end + 1]) <= TOGETHER:
                end += 1
            found.append(Whole(rows[begin:end], slice(part.start, ends[end - 1]), like))
        elif rows[begin].text_tokens and like.device.type == "cpu":
            found.append(Stretch(rows[begin], part, like))
        elif not rows[begin].is_step:
            found.append(Alone(rows[begin], part, step, like))
        else:
            while end < len(rows) and _are_neighbours(rows[end - 1], rows[end]):
                end += 1
            found.append(Neighbours(rows[begin:end], slice(part.start, ends[end - 1]), step, like))
        begin = end
    return found


def _are_neighbours(one: Row, other: Row) -> bool:
    if one.slot is None or other.slot is None or not other.is_step:
        return False
    return one.slot.block is other.slot.block and one.slot.number + 1 == other.slot.number


def ragged(step: Step, rows: Sequence[Row]) -> torch.Tensor:
    """Last hidden states `[S, D]` of the tokens that are kept, row behind row.

    Their keys and values are left in their caches. Rows in neighbouring slots should stand one behind the other.
    """
    x_BTD = step.embed(torch.cat([row.ids for row in rows], dim=1))
    rotary = step.rotary(x_BTD, torch.cat([row.positions for row in rows], dim=1))
    groups = attending(rows, step, x_BTD)
    ends = list(accumulate(row.ids.shape[1] for row in rows))
    watched = [
        (row.cache.watched, slice(end - row.ids.shape[1], end))
        for row, end in zip(rows, ends, strict=True)
        if row.cache is not None and row.cache.watched is not None
    ]
    last = step.layers[-1]
    for number, layer in enumerate(step.layers):
        for kept, own in watched:
            kept.see(number, x_BTD[:, own])
        query, key, value = layer.rotated(x_BTD, rotary, rotary)
        for each in groups:
            each.store(number, key[0, each.part], value[0, each.part])
        parts = [each.kept if layer is last else each.part for each in groups]
        if layer is last:
            x_BTD = torch.cat([x_BTD[:, part] for part in parts], dim=1)
            if not x_BTD.shape[1]:
                break
        mixed = [
            each.mix(number, query[0, part], layer.scale, layer is last)
            for each, part in zip(groups, parts, strict=True)
            if part.stop > part.start
        ]
        x_BTD = layer.out.plus(torch.cat(mixed)[None], x_BTD)
        x_BTD = layer.down.plus(layer.gated(x_BTD), x_BTD)
    for each in groups:
        each.end()
    return step.norm(x_BTD)[0]
