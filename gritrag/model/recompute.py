"""Recompute: some tokens of placed states are read again, with everything before them in sight.

A state saw only its own document when it was read. Its tokens would look different with the other documents in sight.
This matters most for the first tokens of each document: read alone, they are the attention sink of their document, and
a context with ten sinks draws attention away from everything else (EPIC, Hu et al. 2024, arXiv 2410.15332, section 4).
A model that was trained on states knows them, any other does not. Next come the tokens that the question attends to
(ProphetKV, arXiv 2602.02579, abstract). They are read again in one forward, and their keys and values overwritten in
the context (CacheBlend, Yao et al. 2024, arXiv 2405.16444, section 4), never in the store.

Shape letters: `B` batch, `T` tokens, `H` heads, `K` head dim, `C` columns of the cache.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention, softmax
from torch.overrides import TorchFunctionMode
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from gritrag.model.context import Context, cells, inputs
from gritrag.model.module_forward import Forward
from gritrag.model.state import PlacedCache

FIRST_TOKENS = 4
"""So many of each document are read again before all others; see docs/experiments/2026-11-recompute.md."""


class AttentionObserver(TorchFunctionMode):
    """Sums the attention that each of the first columns gets, over all calls of torch's attention while it is entered.

    It sees the calls of its own thread and changes none of them. Models that compute attention in pieces ("eager") are
    seen by their softmax.

    Args:
        columns: so many are counted.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._columns = columns
        self.total_C: torch.Tensor | None = None

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function is scaled_dot_product_attention:
            self._add(attention_of(*args, **kwargs))
        elif function is softmax and result.dim() == 4:
            self._add(result)
        return result

    def _add(self, attention_BHTC: torch.Tensor) -> None:
        seen_C = attention_BHTC[..., : self._columns].float().sum(dim=(0, 1, 2))
        self.total_C = seen_C if self.total_C is None else self.total_C + seen_C


def attention_of(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The probabilities `[B, H, T, C]` that `scaled_dot_product_attention` weighs values by; arguments as there."""
    grouped = query.reshape(
        query.shape[0], key.shape[1], -1, query.shape[-1]
    )  # heads that share keys: rows of a product
    scores = (grouped @ key.mT).reshape(*query.shape[:3], -1).float()
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        hides = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if hides else scores + attn_mask.float()
    return scores.softmax(-1)


class OverwritingLayer(CacheLayerMixin):
    """One layer of a context, of whose columns some are written anew.

    Args:
        keys, values: `[1, H, C, K]`.
        columns: int64 `[T]`, for the tokens that will be read.
    """

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, columns: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self._columns = keys, values, columns
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The columns are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Overwrite the columns; all keys and values, as they are now."""
        self.keys[:, :, self._columns], self.values[:, :, self._columns] = key_states, value_states
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a query sees, and where they begin."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Tokens beside those that are read."""
        return self.keys.shape[2] - len(self._columns)

    def get_max_length(self) -> int:
        """Tokens that there is room for."""
        return self.keys.shape[2]


@torch.inference_mode()
def recompute(forward: Forward, cache: PlacedCache, contexts: Sequence[Context], share: float) -> list[int]:
    """Read a share of the tokens of placed states again, each with all that stands before it in sight.

    Args:
        forward: of the causal model.
        cache: one row per context, filled by `gritrag.model.context.place`; written over.
        contexts: their states stand one behind the other and before what is still to be read.
        share: of the tokens of states, above 0. 1 leaves what an ordinary forward over the same tokens leaves.

    Returns:
        for each context, how many tokens were read again.
    """
    return [_recompute(forward, _row(cache, row, context), context, share) for row, context in enumerate(contexts)]


def _row(cache: PlacedCache, row: int, context: Context) -> PlacedCache:
    """One context of a batch, without the columns on its left; a view."""
    gap = cache.length - context.cached_tokens
    keys, values = (buffer[:, row : row + 1, :, gap:] for buffer in cache.buffers)
    return PlacedCache(keys, values, context.cached_tokens, None if cache.bias is None else cache.bias[[row], gap:])


def _recompute(forward: Forward, cache: PlacedCache, context: Context, share: float) -> int:
    assert not context.is_interleaved, "states stand before what is read"
    columns_T = _chosen(forward, cache, context, math.ceil(share * context.cached_tokens))
    if not len(columns_T):
        return 0
    columns_C = torch.arange(context.cached_tokens, device=columns_T.device)
    keys, values = (buffer[..., : context.cached_tokens, :] for buffer in cache.buffers)
    forward.logits(
        torch.tensor([context.token_ids[: context.cached_tokens]], device=columns_T.device)[:, columns_T],
        _positions(context, columns_T.device)[None, columns_T],
        (columns_C <= columns_T[:, None])[None, None],
        Cache(layers=[OverwritingLayer(k, v, columns_T) for k, v in zip(keys, values, strict=True)]),
    )
    return len(columns_T)


def _positions(context: Context, device: torch.device) -> torch.Tensor:
    """Of all columns, `[C]`."""
    positions_C = torch.empty(context.cached_tokens, dtype=torch.long)
    for _, columns, placed in cells([context]):
        positions_C[columns] = torch.arange(placed.position, placed.position + len(placed.state))
    return positions_C.to(device)


def _chosen(forward: Forward, cache: PlacedCache, context: Context, count: int) -> torch.Tensor:
    """The columns of the tokens that are read again, in order, int64 `[T]`.

    First come the first `FIRST_TOKENS` of every document, then those that the question attends to most. What was read
    causally at the start of the context saw all that it could, so it comes last.
    """
    device = cache.buffers[0].device
    if count >= context.cached_tokens:
        return torch.arange(context.cached_tokens, device=device)
    places_C = torch.cat([torch.arange(len(placed.state)) for placed in context.states])
    is_exact_C = torch.zeros(context.cached_tokens, dtype=torch.bool)
    first = context.states[0].state
    if first.reading == "causal" and first.is_lossless:
        is_exact_C[: len(first)] = True
    is_first_C = (places_C < FIRST_TOKENS) & ~is_exact_C
    rank_C = torch.where(is_first_C, FIRST_TOKENS - places_C, 0).float()  # of few, the very first of each document
    if count > int(is_first_C.sum()):
        attention_C = _attention(forward, cache, context).cpu()
        rank_C += torch.where(is_first_C, 1.0, attention_C / attention_C.sum())
    rank_C -= is_exact_C.float() * 2
    return rank_C.topk(count).indices.sort().values.to(device)


def _attention(forward: Forward, cache: PlacedCache, context: Context) -> torch.Tensor:
    """Of the question and of all else that is still to be read to each cached token, float32 `[C]`."""
    given = inputs([context], cache.buffers[0].device)
    with AttentionObserver(context.cached_tokens) as observer:
        forward.logits(given.ids, given.positions, given.mask, cache)
    cache.cut(context.cached_tokens)
    assert observer.total_C is not None, "this model computes attention in a way of its own"
    return observer.total_C
