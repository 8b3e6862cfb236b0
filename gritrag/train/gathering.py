"""Contexts gathered from one tensor of all states of a step, with gradients: for a GPU, in the place of many copies.

`gritrag.train.placing` copies state by state, which a processor does at the speed of its memory. A GPU would spend its
time on starting thousands of small kernels; here a chunk of answers costs a few large ones, however many states it has.

Shape letters: `B` contexts, `C` columns of states, `P` tokens of all states of the step, `L` layers, `H` key/value
heads, `K` head dim.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from transformers import Cache

from gritrag.model.context import Context
from gritrag.model.placing import cells
from gritrag.model.rotation import Rotation
from gritrag.model.state import DocumentState
from gritrag.train.placing import PlacedLayer, layers_of


class Pool:
    """The states of a step behind each other, and their gradients, gathered in float32 until `backward`.

    Args:
        states: with gradients.
    """

    def __init__(self, states: Sequence[DocumentState]) -> None:
        self.starts = {id(state): start for state, start in zip(states, self._starts(states), strict=True)}
        self.empty = sum(map(len, states))
        """Column that is zero."""
        self._whole = [self._joined([s.keys for s in states]), self._joined([s.values for s in states])]
        device = states[0].keys.device.type
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states[0].keys.dtype
        """What attention computes in."""
        self.keys_LHPK, self.values_LHPK = self._leaves = [
            whole.detach().float().requires_grad_(whole.requires_grad) for whole in self._whole
        ]

    @staticmethod
    def _starts(states: Sequence[DocumentState]) -> list[int]:
        return list(accumulate(map(len, states), initial=0))[:-1]

    @staticmethod
    def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([*tensors, torch.zeros_like(tensors[0][:, :, :1])], dim=2)

    def backward(self) -> None:
        """Hand the gradients on to the states, once."""
        used = [
            (w, leaf.grad.to(w.dtype))
            for w, leaf in zip(self._whole, self._leaves, strict=True)
            if leaf.grad is not None
        ]
        if used:
            torch.autograd.backward([whole for whole, _ in used], [gradient for _, gradient in used])


class _Fill(torch.autograd.Function):
    """Keys and values of every layer, `[B, H, C, K]` each, cut from buffers that are filled here."""

    @staticmethod
    def forward(
        ctx: Any, buffers: tuple[torch.Tensor, torch.Tensor], keys_LBHCK: torch.Tensor, values_LBHCK: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.dtype, width = keys_LBHCK.dtype, keys_LBHCK.shape[3]
        for buffer, part in zip(buffers, (keys_LBHCK, values_LBHCK), strict=True):
            buffer[:, :, :, :width] = part
        return tuple(layer[:, :, :width] for buffer in buffers for layer in layers_of(buffer))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor, torch.Tensor]:
        layers = len(gradients) // 2
        of_keys, of_values = (torch.stack(part).to(ctx.dtype) for part in (gradients[:layers], gradients[layers:]))
        return None, of_keys, of_values


def place(contexts: Sequence[Context], rotation: Rotation, room: int, pool: Pool) -> Cache:
    """As `gritrag.train.placing.place`, from a pool that holds the states of the contexts.

    Args:
        contexts: one for each row; each has a state.
        rotation: the model's.
        room: most tokens that follow.
        pool: of the step.
    """
    width, rows = max(context.cached_tokens for context in contexts), len(contexts)
    columns_BC = np.full((rows, width), pool.empty)
    positions_BC = np.zeros((rows, width), dtype=np.int64)
    for row, columns, placed in cells(contexts):
        start, length = pool.starts[id(placed.state)], len(placed.state)
        columns_BC[row, columns] = np.arange(start, start + length)
        positions_BC[row, columns] = np.arange(placed.position, placed.position + length)
    device = pool.keys_LHPK.device
    index = torch.from_numpy(columns_BC.reshape(-1)).to(device)
    keys, values = (
        part.index_select(2, index).unflatten(2, (rows, width)).transpose(1, 2)
        for part in (pool.keys_LHPK, pool.values_LHPK)
    )
    keys = rotation.rotate(keys, torch.from_numpy(positions_BC).to(device))
    layers, _, heads, _, head_dim = keys.shape
    shape = (layers, rows, heads, width + room, head_dim)
    buffers = tuple(torch.empty(shape, dtype=pool.dtype, device=device) for _ in range(2))
    placed = _Fill.apply(buffers, keys, values)
    rooms = zip(layers_of(buffers[0]), layers_of(buffers[1]), strict=True)
    return Cache(
        layers=[PlacedLayer(k, v, room) for k, v, room in zip(placed[:layers], placed[layers:], rooms, strict=True)]
    )
