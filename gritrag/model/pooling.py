"""Hidden states to one vector. Only content tokens are pooled: never padding, scaffold or instruction.

Shape letters: `B` batch, `T` tokens, `D` hidden.
"""

from collections.abc import Callable

import torch

Pooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`(hidden_BTD, pool_mask_BT) -> float32 [B, D]`; every row of the mask holds at least one true."""


def mean(hidden_BTD: torch.Tensor, pool_mask_BT: torch.Tensor) -> torch.Tensor:
    """Average over content (GritLM, section 2)."""
    return _weighted(hidden_BTD, pool_mask_BT.float())


def weighted_mean(hidden_BTD: torch.Tensor, pool_mask_BT: torch.Tensor) -> torch.Tensor:
    """Average with weights 1, 2, 3, ...: a causal token knows more the later it stands (SGPT, section 3)."""
    mask_BT = pool_mask_BT.float()
    return _weighted(hidden_BTD, mask_BT.cumsum(1) * mask_BT)


def last(hidden_BTD: torch.Tensor, pool_mask_BT: torch.Tensor) -> torch.Tensor:
    """The last content token, on whichever side the padding is (E5-Mistral)."""
    steps = torch.arange(1, pool_mask_BT.shape[1] + 1, device=pool_mask_BT.device)
    return _at(hidden_BTD, (pool_mask_BT * steps).argmax(1))


def first(hidden_BTD: torch.Tensor, pool_mask_BT: torch.Tensor) -> torch.Tensor:
    """The first content token (of use under bidirectional reading only)."""
    return _at(hidden_BTD, pool_mask_BT.int().argmax(1))


def _weighted(hidden_BTD: torch.Tensor, weight_BT: torch.Tensor) -> torch.Tensor:
    weight_BT = weight_BT / weight_BT.sum(1, keepdim=True)
    # where, not a product: a padded position may hold anything, infinities too
    hidden_BTD = torch.where(weight_BT[..., None] > 0, hidden_BTD.float(), 0.0)
    return torch.einsum("btd,bt->bd", hidden_BTD, weight_BT)


def _at(hidden_BTD: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
    return hidden_BTD[torch.arange(len(index_B), device=index_B.device), index_B].float()


POOLINGS: dict[str, Pooling] = {"mean": mean, "weighted_mean": weighted_mean, "last": last, "first": first}
