"""Packed weights: a copy in 16 bits, laid out for products of few rows, of several projections of one input at once.

What a few tokens cost is what reading the weights costs: half as many bytes are read in half the time, and bytes in the
order in which the kernel wants them faster than others. Two kernels are used. On a processor that computes in bfloat16
it is oneDNN's, over the very weights of a bfloat16 model, laid out once rather than at each product. For float32 it is
FBGEMM's, from weights in half precision: one is packed only where half precision holds every one of its numbers, so a
product is that of the float32 weights, summed in another order. Weights come so from a checkpoint in 16 bits, or are
rounded at load (`round_to_half`).

Shape letters: `I` and `O` numbers that go into and come out of a projection.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from gritrag.model.pages import give_back, is_of_file

MOST_ROWS = {torch.float32: 256, torch.bfloat16: 1 << 30}
"""By the dtype of the weights. Above this the product of full weights is as fast or faster: it is bound by arithmetic.
What oneDNN has laid out was never slower, up to 1,024 rows."""

LAID_OUT_FOR = 8
"""Rows for which oneDNN lays weights out; other numbers of rows take the same layout."""

BLOCK_INPUTS, BLOCK_OUTPUTS = 512, 16
"""Of a block of weights as FBGEMM packs them in half precision."""

COMPARED_AT_ONCE = 1 << 17
"""Numbers of a weight: what is made of them takes no fresh memory, and is still in the processor's cache when it is
compared."""

SMALLEST = 1 << 20
"""Models with fewer numbers in their linear layers than this are not packed: they stay in the processor's cache."""

MOST_AT_ONCE = 4
"""So many weights are compared or packed at a time: more take more memory, and memory is no faster."""


def at_once(dtype: torch.dtype) -> ThreadPoolExecutor:
    """Threads to compare or pack weights of this dtype: FBGEMM uses one for each, oneDNN all that there are."""
    threads = min(MOST_AT_ONCE, torch.get_num_threads()) if dtype == torch.float32 else 1
    return ThreadPoolExecutor(threads, thread_name_prefix="gritrag-pack")


def can_pack(device: torch.device) -> bool:
    """Whether this build of torch computes in float32 from packed weights on this machine."""
    has_kernel = hasattr(torch.ops.quantized, "linear_prepack_fp16")
    return device.type == "cpu" and has_kernel and "fbgemm" in torch.backends.quantized.supported_engines


def can_pack_bf16(device: torch.device) -> bool:
    """Whether oneDNN computes in bfloat16 on this machine, and this build of torch lays weights out for it."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    has_kernel = hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return has_kernel and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def round_to_half(lm: PreTrainedModel) -> None:
    """Round the weights of all linear layers to half precision, in place; they stay float32.

    A model with a weight beyond the range of half precision is left as it is.
    """
    weights = _weights(lm)
    if all(float(weight.abs().max()) <= torch.finfo(torch.float16).max for weight in weights):
        for weight in weights:
            rounded = weight.half().to(weight.dtype)
            if not torch.equal(rounded, weight):  # what lies in a mapped file stays there
                weight.copy_(rounded)


def is_packable(lm: PreTrainedModel) -> bool:
    """Whether the linear layers of a model can be packed with nothing lost, and are large enough to gain by it."""
    weights = _weights(lm)
    if not weights or sum(weight.numel() for weight in weights) < SMALLEST:
        return False
    if all(weight.dtype == torch.bfloat16 for weight in weights):
        return can_pack_bf16(weights[0].device)
    if not can_pack(weights[0].device):
        return False
    with at_once(weights[0].dtype) as threads:
        return all(threads.map(_is_of_half, weights))


def _is_of_half(weight: torch.Tensor) -> bool:
    """Whether a weight is float32 and half precision holds each of its numbers. Its pages are given back: those of all
    weights together would be more than what they are packed into."""
    if weight.dtype != torch.float32:
        return False
    parts = weight.detach().flatten().split(COMPARED_AT_ONCE)
    # torch.equal takes four times as long as NumPy
    is_of_half = all(np.array_equal(part.half().float().numpy(), part.numpy()) for part in parts)
    give_back([weight])
    return is_of_half


def _weights(lm: PreTrainedModel) -> list[torch.Tensor]:
    """Of the linear layers, each once, though layers may share one."""
    weights = {id(module.weight): module.weight for module in lm.modules() if type(module) is nn.Linear}
    return list(weights.values())


class Packed:
    """Weights `[O, I]` of one input, one below the other, in the layout of the kernel.

    They are in memory once: what they were packed from is given back to the system, where it lies in a mapped file.

    Args:
        weights: all bfloat16, or all float32 that half precision holds.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self._weights = [(weight, state_of(weight)) for weight in weights]
        self._is_bf16 = weights[0].dtype == torch.bfloat16
        self.most_rows = MOST_ROWS[weights[0].dtype]
        with torch.no_grad():
            joined_OI = weights[0].detach() if len(weights) == 1 else torch.cat(list(weights)).detach()
            self._packed: Any = (
                torch.ops.mkldnn._reorder_linear_weight(joined_OI, LAID_OUT_FOR)
                if self._is_bf16
                else torch.ops.quantized.linear_prepack_fp16(joined_OI, None)
            )
        self.give_back()

    @property
    def weights(self) -> list[torch.Tensor]:
        """That were packed, `[O, I]` each."""
        return [weight for weight, _ in self._weights]

    @property
    def is_current(self) -> bool:
        """Whether the weights are still what they were when they were packed."""
        return all(state_of(weight) == state for weight, state in self._weights)

    @property
    def is_of_file(self) -> bool:
        """Whether the weights lie in a mapped file, and were not written to."""
        return all(map(is_of_file, self.weights))

    @property
    def spare_bytes(self) -> int:
        """Memory that is held beyond the numbers: FBGEMM fills inputs up to whole blocks with zeros."""
        if self._is_bf16:
            return 0
        outputs, inputs = sum(map(len, self.weights)), self.weights[0].shape[1]
        return torch.float16.itemsize * -(-outputs // BLOCK_OUTPUTS) * BLOCK_OUTPUTS * (-inputs % BLOCK_INPUTS)

    def give_back(self) -> None:
        """Let the system take the pages of the weights, where they come back from a file when they are read."""
        give_back(self.weights)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x W^T`, `[..., O]`, for `x` of shape `[..., I]` in the dtype of the weights."""
        product: torch.Tensor
        if not self._is_bf16:
            product = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
            return product
        rows = _never_alone(x)
        product = torch.ops.mkldnn._linear_pointwise.default(rows, self._packed, None, "none", [], "")
        return product if rows is x else product[..., : x.shape[-2], :]

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """`residual + x W^T`, which oneDNN adds before it rounds."""
        if not self._is_bf16:
            return residual + self(x)
        rows, residual_rows = _never_alone(x), _never_alone(residual)
        total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, residual_rows, self._packed, None, "add")
        return total if rows is x else total[..., : x.shape[-2], :]


def _never_alone(x: torch.Tensor) -> torch.Tensor:
    """A single row twice: oneDNN sums it in another order than one of several, and a token would depend on whether
    others are read beside it."""
    return x if x.shape[:-1].numel() > 1 else torch.cat([x, x], dim=-2)


def state_of(weight: torch.Tensor) -> tuple[int, int]:
    """Changes with every write in place, and with every exchange of what the weight consists of."""
    return weight._version, weight.data_ptr()
