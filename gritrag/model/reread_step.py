"""Reading over placed states by our own step; see `gritrag.model.recompute`.

No more is computed than is asked for: no layers behind those whose attention chooses, nothing behind the last keys and
values, no logits. Tokens that are read again lie scattered over the columns, so a mask over all of them would hide half
of what is computed: blocks of them attend, each to the columns up to its own last one.

Shape letters: `T` tokens, `H` key/value heads, `G` query heads per key head, `K` head dim, `C` columns of the cache,
`R` rows of a product (query heads of one key head, and tokens).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention, softmax

from gritrag.model.caches import PlacedCache
from gritrag.model.inputs import Inputs
from gritrag.model.layers import needs_dense
from gritrag.model.masks import added, hidden
from gritrag.model.recompute import Again, choosing_layers
from gritrag.model.step import Step

BLOCK = 64
"""Tokens that attend together. On a processor with AVX2 all 400 at once take a sixth longer."""

DENSE_BLOCK = 128
"""The same where attention is computed in products, which are better with more rows."""

COLUMNS = 64
"""Where it is computed in products, a block is given a multiple of so many columns: for every shape of a product oneDNN
makes kernels of its own and keeps them."""

OBSERVED_ROWS = 1 << 10
"""So many rows of a key head are looked at together, where attention is summed up."""


class Block(NamedTuple):
    """Tokens that attend together, to so many of the first columns, and what is added to their scores `[T, C]`."""

    tokens: slice
    columns: int
    bias: torch.Tensor

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """`[1, T, H * G * K]`, of queries `[1, T, H * G, K]` of all tokens, keys and values `[1, H, C, K]`."""
        query = query[:, self.tokens]
        key, value = key[:, :, : self.columns], value[:, :, : self.columns]
        if needs_dense(query):
            return _ungrouped(_weighed(_grouped(query, key.shape[1]), key[0], value[0], self.bias, scale)[0], query)
        mixed = scaled_dot_product_attention(
            query.transpose(1, 2), key, value, self.bias, scale=scale, enable_gqa=query.shape[2] > key.shape[1]
        )
        return mixed.transpose(1, 2).flatten(2)


def blocks(columns: Sequence[int], capacity: int, like: torch.Tensor) -> list[Block]:
    """Of tokens in these columns, in order, each of which sees all columns up to its own.

    Args:
        capacity: columns that there are, each of a finite number: what is hidden is multiplied all the same.
    """
    size = DENSE_BLOCK if needs_dense(like) else BLOCK
    if like.device.type != "cpu":
        size = len(columns)  # to start a kernel takes longer than what is computed in vain
    found = []
    for start in range(0, len(columns), size):
        own = torch.tensor(columns[start : start + size], device=like.device)
        end = columns[min(start + size, len(columns)) - 1] + 1
        if needs_dense(like):
            end = min(-(-end // COLUMNS) * COLUMNS, capacity)
        seen = torch.arange(end, device=like.device) <= own[:, None]
        found.append(Block(slice(start, start + len(own)), end, hidden(seen, like.dtype)))
    return found


def _grouped(query: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries `[1, T, H * G, K]` as rows `[H, R, K]`."""
    _, tokens, _, size = query.shape
    return query.view(tokens, heads, -1, size).permute(1, 2, 0, 3).reshape(heads, -1, size)


def _ungrouped(rows: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Rows `[H, R, K]` as `[1, T, H * G * K]`, of the tokens of `query`."""
    tokens, size = query.shape[1], rows.shape[-1]
    return rows.view(len(rows), -1, tokens, size).permute(2, 0, 1, 3).reshape(1, tokens, -1)


def _weighed(
    rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias_TC: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values `[H, R, K]` by attention, and the attention `[H, R, C]`."""
    bias = bias_TC.repeat(rows.shape[1] // len(bias_TC), 1)
    attention = softmax(torch.baddbmm(bias, rows, key.transpose(1, 2), alpha=scale), dim=-1)
    return torch.bmm(attention, value), attention


class StepRereader:
    """See `gritrag.model.recompute.Rereader`.

    Args:
        step: of the model.
    """

    def __init__(self, step: Step) -> None:
        self._step = step

    def attention(self, given: Inputs, cache: PlacedCache) -> torch.Tensor:
        step, columns = self._step, cache.length
        tokens = given.ids.shape[1]
        x = step.embed(given.ids)
        rotary = step.rotary(x, given.positions)
        bias_TC = added(given.mask, tokens, columns + tokens, x, cache.bias)[0, 0]
        total_C = torch.zeros(columns, device=x.device)
        counted = choosing_layers(len(step.layers))
        size = max(1, OBSERVED_ROWS // step.layers[0].groups)
        for number, layer in enumerate(step.layers[: counted.stop]):
            query, key, value = layer.rotated(x, rotary, rotary)
            keys, values = cache.update(key.transpose(1, 2), value.transpose(1, 2), number)
            mixed = []
            for start in range(0, tokens, size):
                own = query[:, start : start + size]
                rows, bias = _grouped(own, keys.shape[1]), bias_TC[start : start + size]
                weighed, attention = _weighed(rows, keys[0], values[0], bias, layer.scale)
                mixed.append(_ungrouped(weighed, own))
                if number in counted:
                    total_C += attention[..., :columns].sum((0, 1), dtype=torch.float32)
            if number + 1 < counted.stop:
                x = layer.out.plus(torch.cat(mixed, 1), x)
                x = layer.down.plus(layer.gated(x), x)
        cache.cut(columns)
        return total_C

    def overwrite(self, again: Again, cache: PlacedCache) -> None:
        step = self._step
        x = step.embed(again.ids)
        rotary = step.rotary(x, again.positions)
        columns_T = again.columns.to(x.device)
        parts = blocks(again.columns.tolist(), cache.capacity, x)
        *_, last = step.layers
        for layer, keys, values in zip(step.layers, *cache.buffers, strict=True):
            query, key, value = layer.rotated(x, rotary, rotary)
            keys[:, :, columns_T], values[:, :, columns_T] = key.transpose(1, 2), value.transpose(1, 2)
            if layer is last:
                break
            x = layer.out.plus(torch.cat([each.attend(query, keys, values, layer.scale) for each in parts], 1), x)
            x = layer.down.plus(layer.gated(x), x)
