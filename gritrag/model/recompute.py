"""Recompute: some tokens of placed states are read again, with everything before them in sight.

A state saw only its own document when it was read. Its tokens would look different with the other documents in sight.
This matters most for the first tokens of each document: read alone, they are the attention sink of their document, and
a context with ten sinks draws attention away from everything else (EPIC, Hu et al. 2024, arXiv 2410.15332, section 4).
A model that was trained on states knows them, any other does not. Next come the tokens that the question attends to
(ProphetKV, arXiv 2602.02579, abstract). They are read again in one forward, and their keys and values overwritten in
the context (CacheBlend, Yao et al. 2024, arXiv 2405.16444, section 4), never in the store.

Shape letters: `T` tokens that are read again, `C` columns of the cache.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context
from gritrag.model.inputs import Inputs, inputs
from gritrag.model.placing import cells, row_of

FIRST_TOKENS = 4
"""So many of each document are read again before all others; see docs/experiments/2026-11-recompute.md."""


class Again(NamedTuple):
    """Tokens of one context that are read again: ids and positions `[1, T]`, and their columns in order, int64 `[T]`,
    on the processor."""

    ids: torch.Tensor
    positions: torch.Tensor
    columns: torch.Tensor


class Rereader(Protocol):
    """Reads over the placed states of one context."""

    def attention(self, given: Inputs, cache: PlacedCache) -> torch.Tensor:
        """Of all that is still to be read to each cached token, summed over `choosing_layers`, float32 `[C]`. The cache
        is left as it was."""

    def overwrite(self, again: Again, cache: PlacedCache) -> None:
        """Write the keys and values of some tokens anew, each with all that stands before it in sight."""


def choosing_layers(layers: int) -> range:
    """Of so many layers those whose attention tells what matters to a question: the middle third."""
    return range(layers // 3, -(-2 * layers // 3))


@torch.inference_mode()
def recompute(reader: Rereader, cache: PlacedCache, contexts: Sequence[Context], share: float) -> list[int]:
    """Read a share of the tokens of placed states again, each with all that stands before it in sight.

    Args:
        reader: of the model.
        cache: one row per context, filled by `gritrag.model.placing.place`; written over.
        contexts: their states stand one behind the other and before what is still to be read.
        share: of the tokens of states, above 0. 1 leaves what an ordinary forward over the same tokens leaves.

    Returns:
        for each context, how many tokens were read again.
    """
    return [_recompute(reader, row_of(cache, row, context), context, share) for row, context in enumerate(contexts)]


def _recompute(reader: Rereader, cache: PlacedCache, context: Context, share: float) -> int:
    assert not context.is_interleaved, "states stand before what is read"
    columns_T = _chosen(reader, cache, context, math.ceil(share * context.cached_tokens))
    if len(columns_T):
        device = cache.buffers[0].device
        ids_C = torch.tensor(context.token_ids[: context.cached_tokens])
        ids, positions = (each_C[None, columns_T].to(device) for each_C in (ids_C, _positions(context)))
        reader.overwrite(Again(ids, positions, columns_T), cache)
    return len(columns_T)


def _positions(context: Context) -> torch.Tensor:
    """Of all columns, `[C]`."""
    positions_C = torch.empty(context.cached_tokens, dtype=torch.long)
    for _, columns, placed in cells([context]):
        positions_C[columns] = torch.arange(placed.position, placed.position + len(placed.state))
    return positions_C


def _chosen(reader: Rereader, cache: PlacedCache, context: Context, count: int) -> torch.Tensor:
    """The columns of the tokens that are read again, in order, int64 `[T]`, on the processor.

    First come the first `FIRST_TOKENS` of every document, then those that the question attends to most. What was read
    causally at the start of the context saw all that it could, so it comes last.
    """
    if count >= context.cached_tokens:
        return torch.arange(context.cached_tokens)
    places_C = torch.cat([torch.arange(len(placed.state)) for placed in context.states])
    is_exact_C = torch.zeros(context.cached_tokens, dtype=torch.bool)
    first = context.states[0].state
    if first.reading == "causal" and first.is_lossless:
        is_exact_C[: len(first)] = True
    is_first_C = (places_C < FIRST_TOKENS) & ~is_exact_C
    rank_C = torch.where(is_first_C, FIRST_TOKENS - places_C, 0).float()  # of few, the very first of each document
    if count > int(is_first_C.sum()):
        attention_C = reader.attention(inputs([context], cache.buffers[0].device), cache).cpu()
        rank_C += torch.where(is_first_C, 1.0, attention_C / attention_C.sum())
    rank_C -= is_exact_C.float() * 2
    return rank_C.topk(count).indices.sort().values
