"""Packed weights: a copy in half precision, from which products of few rows are computed in float32 (FBGEMM).

What a few tokens cost is what reading the weights costs, and half as many bytes are read in half the time. A weight is
packed only where half precision holds every one of its numbers, so a product is that of the float32 weights, summed in
another order. Weights come so from a checkpoint in 16 bits, or are rounded at load (`round_to_half`).

Shape letters: `I` and `O` numbers that go into and come out of a projection.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

MOST_ROWS = 256
"""Above this the product of full weights is as fast or faster: it is bound by arithmetic."""

SMALLEST = 1 << 20
"""Models with fewer numbers in their linear layers than this are not packed: they stay in the processor's cache."""


def can_pack(device: torch.device) -> bool:
    """Whether this build of torch computes with packed weights on this machine."""
    has_kernel = hasattr(torch.ops.quantized, "linear_prepack_fp16")
    return device.type == "cpu" and has_kernel and "fbgemm" in torch.backends.quantized.supported_engines


@torch.no_grad()
def round_to_half(lm: PreTrainedModel) -> None:
    """Round the weights of all linear layers to half precision, in place; they stay float32.

    A model with a weight beyond the range of half precision is left as it is.
    """
    weights = _weights(lm)
    if all(float(weight.abs().max()) <= torch.finfo(torch.float16).max for weight in weights):
        for weight in weights:
            weight.copy_(weight.half())


def pack(lm: PreTrainedModel) -> "dict[int, Packed]":
    """The packed copies of a model's linear layers by the identity of the weight; empty where not all can be packed."""
    weights = _weights(lm)
    if not weights or not can_pack(weights[0].device) or sum(weight.numel() for weight in weights) < SMALLEST:
        return {}
    if not all(weight.dtype == torch.float32 and torch.equal(weight.half().float(), weight) for weight in weights):
        return {}
    return {id(weight): Packed(weight) for weight in weights}


def _weights(lm: PreTrainedModel) -> list[torch.Tensor]:
    """Of the linear layers, each once, though layers may share one."""
    weights = {id(module.weight): module.weight for module in lm.modules() if type(module) is nn.Linear}
    return list(weights.values())


class Packed:
    """One weight `[O, I]` in half precision, in the layout of the kernel."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self._weight, self._state = weight_OI, state_of(weight_OI)
        self._packed: Any = torch.ops.quantized.linear_prepack_fp16(weight_OI.detach(), None)

    @property
    def is_current(self) -> bool:
        """Whether the weight is still what it was when it was packed."""
        return state_of(self._weight) == self._state

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x W^T`, float32 `[..., O]`, for float32 `x` of shape `[..., I]`."""
        product: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return product


def state_of(weight: torch.Tensor) -> tuple[int, int]:
    """Changes with every write in place, and with every exchange of what the weight consists of."""
    return weight._version, weight.data_ptr()
