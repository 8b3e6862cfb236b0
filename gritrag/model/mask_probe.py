"""The probe of masks: what a model of transformers makes of those that reused states need.

Every model takes a mask and position ids, and not every model listens. Some count positions in columns, padding
included (MPT, BART); some build their own mask from one that they take for plain padding (Bloom); and one takes
whatever is not zero for hidden (Doge).

Shape letters: `B` batch, `T` tokens, `C` columns of the cache.
"""

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from gritrag.model.cache_names import given_cache
from gritrag.model.caches import CacheShape, RecordingCache
from gritrag.model.context import Context
from gritrag.model.inner_errors import INNER_ERRORS
from gritrag.model.inputs import inputs
from gritrag.model.module_forward import ModuleForward
from gritrag.model.placing import place
from gritrag.model.probed import SHIFT, TOKENS, Masks, differ
from gritrag.model.reread_modules import AttentionObserver
from gritrag.model.state import DocumentState

FAR = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
"""How far logits may be off, relative to the largest. Rounding in 16 bits takes those of a deep model to 0.05; tokens
that stand or see otherwise take them beyond that in all but a few models."""

FAR_BY_BIAS = 0.1
"""The same for a small bias, which takes them to 0.01 in any dtype; a bias that hides takes them beyond 0.5."""

BIAS = 2**-7

GAP = 32
"""So much padding stands in front of a short text: ALiBi's slopes are small, and a few columns change little."""


@torch.no_grad()
def probe_masks(lm: PreTrainedModel, ids_BT: torch.Tensor, shape: CacheShape) -> Masks:
    """Asked of models whose states are read by the forward of transformers. Costs nine forwards over a few tokens."""
    far = FAR[shape.dtype]
    return Masks(
        in_rows=_off(_rows_differ, lm, ids_BT, shape) <= far,
        by_token=_off(_masked_differs, lm, ids_BT, shape) <= far,
        with_bias=_off(_biased_differs, lm, ids_BT, shape) <= FAR_BY_BIAS,
    )


def _off(
    asked: Callable[[PreTrainedModel, torch.Tensor, CacheShape], float],
    lm: PreTrainedModel,
    ids_BT: torch.Tensor,
    shape: CacheShape,
) -> float:
    try:
        return asked(lm, ids_BT, shape)
    except torch.OutOfMemoryError:
        raise
    except INNER_ERRORS:  # it takes no such mask
        return math.inf


def _states(lm: PreTrainedModel, ids_BT: torch.Tensor) -> list[DocumentState]:
    """Of the first tokens of each row, with keys as they were computed."""
    cache = RecordingCache()
    lm(input_ids=ids_BT[:, :SHIFT], **given_cache(lm, cache), use_cache=True)
    return cache.states(None, ids_BT[:, :SHIFT].tolist(), "causal")


def _rows_differ(lm: PreTrainedModel, ids_BT: torch.Tensor, shape: CacheShape) -> float:
    """A short text beside a long one, with padding in front of its state and behind it, and the same text alone."""
    long, short = _states(lm, ids_BT)
    cut, text_T = len(short) - 2, ids_BT[1, : TOKENS - 3]
    beside = ids_BT[0, SHIFT:].repeat(GAP).tolist()[:GAP]
    contexts = [Context.of(long, beside), Context.of(short[:cut], text_T[cut:].tolist())]
    cache, given = place(contexts, shape, None, GAP), inputs(contexts, shape.device)
    alone = lm(input_ids=text_T[None]).logits[:, -1]
    return differ(ModuleForward(lm).logits(given.ids, given.positions, given.mask, cache)[1], alone)


def _tail(lm: PreTrainedModel, ids_BT: torch.Tensor, shape: CacheShape, bias: float, is_masked: bool) -> torch.Tensor:
    """Logits behind states of both rows, with a mask by token and a bias of the states where they are asked for."""
    contexts = [Context.of(state, row[SHIFT:].tolist()) for state, row in zip(_states(lm, ids_BT), ids_BT, strict=True)]
    cache, given = place(contexts, shape, None, TOKENS), inputs(contexts, shape.device)
    cache.bias = torch.full((2, SHIFT), bias, dtype=shape.dtype, device=shape.device) if bias else None
    mask_TC = torch.ones(TOKENS - SHIFT, TOKENS, dtype=torch.bool, device=shape.device).tril(SHIFT)
    mask = mask_TC.expand(2, 1, -1, -1) if is_masked else None
    return ModuleForward(lm).logits(given.ids, given.positions, mask, cache)


def _masked_differs(lm: PreTrainedModel, ids_BT: torch.Tensor, shape: CacheShape) -> float:
    """Infinite where its attention cannot be seen, by which tokens that are read again are chosen."""
    plain = _tail(lm, ids_BT, shape, 0.0, False)
    with AttentionObserver(SHIFT) as observer:
        masked = _tail(lm, ids_BT, shape, 0.0, True)
    return differ(masked, plain) if observer.calls else math.inf


def _biased_differs(lm: PreTrainedModel, ids_BT: torch.Tensor, shape: CacheShape) -> float:
    """A small bias changes little, unless it is taken for a mask."""
    plain, biased = (_tail(lm, ids_BT, shape, bias, False) for bias in (0.0, BIAS))
    return differ(biased, plain)
