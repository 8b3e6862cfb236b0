"""Sharding: each process keeps a part of every weight, of its gradient and of what the optimizer knows of it (FSDP2).

Processes read different documents, in different numbers of chunks, so they cannot gather layers chunk by chunk: one
would wait for the other. Weights are gathered once before a step; gradients add up in place and are averaged and
scattered once behind it. While a step runs, each process holds all weights and their gradients; the moments of the
optimizer, which are twice as large as the weights, it never holds whole.

Zhao et al. 2023 (arXiv 2304.11277) describe the method; `torch.distributed.fsdp.fully_shard` is what carries it out.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gritrag.model.grit import GritModel


class Shards:
    """The language model of one process among several. Alone, or switched off, everything here does nothing.

    All processes must call the same methods in the same order. Parts beside the language model are small, and are not
    sharded.

    Args:
        model: its parameters are replaced by this process's part of them: take hold of them after, not before.
        is_on: whether the recipe asks for it.
    """

    def __init__(self, model: GritModel, is_on: bool) -> None:
        self._lm = model.lm
        self._sharded: list[FSDPModule] = []
        if not is_on or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        model.forwards.drop_step()  # it holds the weights as they were, all of them
        mesh = init_device_mesh(self._lm.device.type, (dist.get_world_size(),))
        blocks = [m for m in self._lm.modules() if type(m).__name__ in (self._lm._no_split_modules or ())]
        for module in [*blocks, self._lm]:
            self._sharded.append(fully_shard(module, mesh=mesh, reshard_after_forward=False))
        root = self._sharded[-1]
        root.set_reshard_after_backward(False)
        root.set_requires_gradient_sync(False)
        root.set_force_sum_reduction_for_comms(mesh.device_type == "cpu")  # gloo knows sums, but no means
        with self.whole(), torch.no_grad():
            self._run()  # whichever module runs first is the root from then on, and layers are run on their own

    @property
    def is_on(self) -> bool:
        """Whether this process lacks a part of the weights."""
        return bool(self._sharded)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """While open, this process has all weights, and may run the model as often as it likes, without the others."""
        for module in self._sharded:
            module.unshard()
        try:
            yield
        finally:
            for module in self._sharded:
                module.reshard()

    @contextmanager
    def step(self) -> Iterator[None]:
        """As `whole`; at the end, gradients are averaged over processes, and each is left with its part of them."""
        with self.whole():
            yield
            if self._sharded:
                self._average()

    def _average(self) -> None:
        """A last backward pass, the same for all processes, that adds nothing and takes along what was added up."""
        for parameter in self._lm.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        root = self._sharded[-1]
        root.set_requires_gradient_sync(True)
        (self._run() * 0.0).backward()
        root.set_requires_gradient_sync(False)

    def _run(self) -> torch.Tensor:
        """A number that depends on all weights, from the shortest forward pass there is."""
        ids = torch.zeros(1, 1, dtype=torch.long, device=self._lm.device)
        total: torch.Tensor = self._lm(input_ids=ids, use_cache=False).logits.sum()
        return total


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which every process holds a part; all of them must ask. A whole one is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def scattered(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that every process has whole, cut and placed as `like` is."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale gradients, sharded and whole ones, so that their common norm is `max_norm` at most. Returns what it was."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [[p for p in trained if isinstance(p, DTensor) == is_sharded] for is_sharded in (True, False)]
    kinds = [kind for kind in kinds if kind] or [[]]  # torch takes no list of both
    norms = [gathered(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return norm
