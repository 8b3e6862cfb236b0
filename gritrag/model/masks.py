"""Masks of attention in the form that is added to its scores.

Shape letters: `B` contexts, `C` columns of a cache.
"""

import torch
from torch.nn.functional import pad


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
