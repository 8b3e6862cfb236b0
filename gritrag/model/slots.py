"""Slots: caches of one row each that lie side by side, so that one product attends to those of many texts.

Shape letters: `L` layers, `N` slots, `H` key/value heads, `C` columns, `K` head dim.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from gritrag.model.caches import CacheShape

BLOCK_COLUMNS = 8192
"""Of all slots of a block together; a larger slot has a block of its own."""

GRAIN, SHARE = 256, 8
"""Columns of a slot are a multiple of `GRAIN`, and of about a part of so many of its length: few sizes, so that many
texts are neighbours, of which none is much longer than needed, for attention sees all of it. The size follows from the
text alone, not from the slots that are free: in bfloat16 sums over more columns may be rounded otherwise."""

KEPT = 2
"""Blocks that stay when nobody uses them: the system gives fresh memory slowly."""


@dataclass(eq=False)
class Block:
    """Memory of some slots of one size; every number in it is finite, for what is hidden is still multiplied."""

    keys: torch.Tensor
    values: torch.Tensor
    written: list[int] = field(init=False)
    """Columns of each slot that hold something else than zeros, at most."""
    free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        slots = self.keys.shape[1]
        self.written, self.free = [0] * slots, list(range(slots))

    @property
    def columns(self) -> int:
        """Of each slot."""
        return self.keys.shape[3]

    @property
    def is_empty(self) -> bool:
        return len(self.free) == self.keys.shape[1]


class Slot(NamedTuple):
    """A place for the cache of one text."""

    block: Block
    number: int

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For keys and for values, `[L, 1, H, C, K]`."""
        part = slice(self.number, self.number + 1)
        return self.block.keys[:, part], self.block.values[:, part]


def size_of(columns: int) -> int:
    """Of a slot for so many columns."""
    grain = max(GRAIN, (1 << columns.bit_length() - 1) // SHARE)
    return -(-columns // grain) * grain


class Slots:
    """All blocks of one engine, whose thread alone uses them.

    Args:
        shape: of the model's caches.
    """

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._blocks: list[Block] = []

    def take(self, columns: int, filled: int = 0) -> Slot:
        """A slot for so many columns: the first that is free, so that those in use are neighbours.

        Args:
            columns: that are needed.
            filled: of them, that the caller writes before it does anything else; the others are zero.
        """
        size = size_of(columns)
        block = next((block for block in self._blocks if block.free and block.columns == size), None)
        if block is None:
            block = self._make(size)
            self._blocks.append(block)
        number = min(block.free)
        block.free.remove(number)
        for buffer in (block.keys, block.values):
            buffer[:, number, :, filled : block.written[number]] = 0
        block.written[number] = block.columns
        return Slot(block, number)

    def give_back(self, slot: Slot) -> None:
        """Whatever lies there may be written over."""
        slot.block.free.append(slot.number)
        empty = [block for block in self._blocks if block.is_empty]
        for block in empty[:-KEPT]:
            self._blocks.remove(block)

    @property
    def in_use(self) -> int:
        """Slots that were taken and not given back."""
        return sum(block.keys.shape[1] - len(block.free) for block in self._blocks)

    def _make(self, size: int) -> Block:
        shape = self._shape
        sizes = (shape.layers, max(1, BLOCK_COLUMNS // size), shape.heads, size, shape.head_dim)
        return Block(*(torch.zeros(sizes, dtype=shape.dtype, device=shape.device) for _ in range(2)))
