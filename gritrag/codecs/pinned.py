"""Host memory on its way to a GPU: many tensors in one copy, through memory that is pinned."""

from collections.abc import Mapping
from itertools import accumulate
from typing import TypeVar

import torch

Name = TypeVar("Name")

ALIGNED = 16
"""Bytes: tensors that are joined begin at a multiple."""


def brought(tensors: Mapping[Name, torch.Tensor], device: torch.device) -> dict[Name, torch.Tensor]:
    """Contiguous CPU tensors on another device, in one copy.

    What is mapped from a file, or was allocated as usual, reaches a GPU at a quarter of the speed of memory that is
    pinned; so it is copied there first. torch keeps such memory for the next time, and waits until it was read. Memory
    that is not pinned it may let go before a device has read it: on Apple's, other numbers arrived (pytorch issue
    189690).
    """
    is_pinned = device.type == "cuda"
    ends = list(accumulate(-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors.values()))
    joined = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8, pin_memory=is_pinned)
    spans = [slice(end, end + t.nbytes) for end, t in zip([0, *ends], tensors.values(), strict=False)]
    for span, tensor in zip(spans, tensors.values(), strict=True):
        joined[span] = tensor.reshape(-1).view(torch.uint8)
    there = joined.to(device, non_blocking=is_pinned)
    pairs = zip(spans, tensors.items(), strict=True)
    return {name: there[span].view(tensor.dtype).view(tensor.shape) for span, (name, tensor) in pairs}
