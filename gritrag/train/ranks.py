"""The other processes of a run: their vectors as negatives, their counts, and the mean of everyone's gradients.

Alone, everything here is the identity. All processes must call the same methods in the same order.
"""

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor import DTensor

Item = TypeVar("Item")


class Ranks:
    """`rank` of `world` processes, over torch.distributed where it is initialised."""

    def __init__(self) -> None:
        is_on = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if is_on else 0
        self.world: int = dist.get_world_size() if is_on else 1

    def vectors(self, own: torch.Tensor) -> torch.Tensor:
        """Rows of all processes, in the order of their ranks, with gradients to every one of them.

        Each process may take the same loss on the result: gradients of all copies are added up on the way back, and
        `average` divides them by their number again.
        """
        if self.world == 1:
            return own
        counts = self.lists(own.shape[0])
        padded = torch.cat([own, own.new_zeros(max(counts) - own.shape[0], own.shape[1])])
        gathered = all_gather(padded)
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

    def lists(self, own: Item) -> list[Item]:
        """What each process has, in the order of their ranks."""
        if self.world == 1:
            return [own]
        found: list[Item | None] = [None] * self.world
        dist.all_gather_object(found, own)
        return found  # type: ignore[return-value]

    def share(self, size: int) -> float:
        """What a mean over this process's `size` items must weigh, so that `average` gives the mean over everyone's."""
        total = sum(self.lists(size))
        return self.world * size / total if total else 0.0

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every gradient the mean over processes; one that a process lacks counts as zero.

        Gradients of sharded parameters are such means already; see `gritrag.train.sharding`.
        """
        parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        if self.world == 1 or not parameters:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
        dist.all_reduce(flat)
        flat /= self.world
        start = 0
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
