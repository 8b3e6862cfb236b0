"""Whole numbers from 0 to 15, two to a byte, in rows that PyTorch's own kernel for 4-bit embeddings unpacks.

That kernel is several times as fast as shifts and masks over tensors. Behind the nibbles of a row it expects the step
between two numbers and what 0 stands for, in float16 each (Guan et al. 2019, arXiv 1911.02079).
"""

from collections.abc import Sequence

import torch

ALIGNED = 4
"""Numbers: rows have a multiple of so many, so that what is behind them begins at an even byte."""

BEHIND = 4
"""Bytes behind the numbers of a row."""


def pack(numbers: torch.Tensor, step: float = 1.0, zero: float = 0.0) -> torch.Tensor:
    """Whole numbers `[R, n]` in any type to uint8 `[R, bytes]`, which `unpack` reads as `zero + step * number`."""
    rows = torch.nn.functional.pad(numbers.to(torch.uint8), (0, -numbers.shape[1] % ALIGNED))
    behind = torch.tensor([step, zero], dtype=torch.float16).view(torch.uint8)
    return torch.cat([rows[:, ::2] | rows[:, 1::2] << 4, behind.expand(len(rows), -1)], dim=1)


def unpack(rows: torch.Tensor, count: int) -> torch.Tensor:
    """uint8 `[R, bytes]` to float32 `[R, count]`, contiguous, where the rows are."""
    if rows.device.type != "cpu":
        return unpack_by_shifts(rows, count)
    numbers: torch.Tensor = torch.ops.quantized.embedding_bag_4bit_unpack(rows)
    return numbers if numbers.shape[1] == count else numbers[:, :count].contiguous()


def unpack_joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """As `unpack`, of rows each of which goes on in the next part, on any device. No row is filled up, and all have the
    same step and zero."""
    behind = parts[0][:, -BEHIND:]
    return unpack_by_shifts(torch.cat([*(part[:, :-BEHIND] for part in parts), behind], dim=1), None)


def unpack_by_shifts(rows: torch.Tensor, count: int | None) -> torch.Tensor:
    """As `unpack`, on any device: that kernel is for processors only. All numbers where `count` is None."""
    codes, behind = rows[:, :-BEHIND], rows[:, -BEHIND:].contiguous().view(torch.float16).float()
    numbers = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)[:, :count].float()
    return torch.addcmul(behind[:, 1:], numbers, behind[:, :1])
