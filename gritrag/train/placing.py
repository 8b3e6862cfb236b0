"""States placed into a cache with gradients, copied once: straight to their columns, keys rotated on the way.

The buffers have room for the tokens that follow, which each layer writes behind the states. On the way back each part
of the gradient goes to its state at once, however many contexts the state stands in.

Shape letters: `B` contexts, `C` columns of states, `T` tokens that follow, `L` layers, `H` key/value heads, `K` head
dim.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from gritrag.model.context import Context
from gritrag.model.placing import Cell, cells
from gritrag.model.rotation import Rotation
from gritrag.model.state import DocumentState


class _Place(torch.autograd.Function):
    """Keys and values of every layer, `[B, H, C, K]` each, cut from buffers that are filled here.

    What is returned are views that share no version counter with each other: each layer writes into its own later.
    """

    @staticmethod
    def forward(
        ctx: Any,
        placed: Sequence[tuple[Cell, int]],
        rotation: Rotation,
        buffers: tuple[torch.Tensor, torch.Tensor],
        width: int,
        *states: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.placed, ctx.rotation = placed, rotation
        ctx.shapes = [state.shape for state in states]
        keys_LBHCK, values_LBHCK = buffers
        for (row, columns, cell), number in placed:
            rotation.apply(states[2 * number], cell.position, out=keys_LBHCK[:, row, :, columns])
            values_LBHCK[:, row, :, columns] = states[2 * number + 1]
        return tuple(layer[:, :, :width] for buffer in buffers for layer in layers_of(buffer))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layers = len(gradients) // 2
        of_states: list[torch.Tensor | None] = [None] * len(ctx.shapes)
        for (row, columns, cell), number in ctx.placed:
            for part, of_layers in enumerate((gradients[:layers], gradients[layers:])):
                own_LHTK = torch.stack([gradient[row, :, columns] for gradient in of_layers])
                if part == 0:
                    own_LHTK = ctx.rotation.gradient(own_LHTK, cell.position)
                known = of_states[2 * number + part]
                of_states[2 * number + part] = own_LHTK if known is None else known.add_(own_LHTK)
        return None, None, None, None, *of_states


class _Append(torch.autograd.Function):
    """One layer's states with new tokens behind them, `[B, H, C + T, K]`: the tokens are written into the room, in the
    dtype of the states (under autocast a model hands out keys in float32)."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, new: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        ctx.dtype, ctx.width, end = new.dtype, states.shape[2], states.shape[2] + new.shape[2]
        buffer[:, :, ctx.width : end] = new
        return buffer[:, :, :end].detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (gradient,) = gradients
        return gradient[:, :, : ctx.width], gradient[:, :, ctx.width :].to(ctx.dtype), None


class PlacedLayer(CacheLayerMixin):
    """One layer of a cache that holds placed states, and takes the tokens of one forward behind them.

    Args:
        keys, values: `[B, H, C, K]`, with gradients.
        buffers: what these are cut from, with room behind them.
    """

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, buffers: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        self.keys, self.values, self._buffers = keys, values, buffers
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The states are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of states and new tokens; called once."""
        self.keys = _Append.apply(self.keys, key_states, self._buffers[0])
        self.values = _Append.apply(self.values, value_states, self._buffers[1])
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that are there once `query_length` tokens have come, and the first of them."""
        return self.keys.shape[2] + query_length, 0

    def get_seq_length(self) -> int:
        """Columns that are there."""
        return self.keys.shape[2]

    def get_max_length(self) -> int:
        """None: transformers says so with -1."""
        return -1


def place(contexts: Sequence[Context], rotation: Rotation, room: int) -> Cache:
    """As `gritrag.model.placing.place`, with the same `cells`, but with gradients into the states.

    Args:
        contexts: one for each row; each has a state.
        rotation: the model's.
        room: most tokens that follow.
    """
    known: dict[int, int] = {}
    states: list[DocumentState] = []
    placed: list[tuple[Cell, int]] = []
    for cell in cells(contexts):
        state = cell.placed.state
        if id(state) not in known:
            known[id(state)] = len(states)
            states.append(state)
        placed.append((cell, known[id(state)]))
    assert len({cell.row for cell, _ in placed}) == len(contexts), "every context has a state"
    width = max(context.cached_tokens for context in contexts)
    layers, heads, _, head_dim = states[0].keys.shape
    shape = (layers, len(contexts), heads, width + room, head_dim)
    buffers = tuple(tensor.detach().new_empty(shape) for tensor in (states[0].keys, states[0].values))
    for row, context in enumerate(contexts):
        for buffer in buffers:  # what pads a context on the left is masked, but must be a number
            buffer[:, row, :, : width - context.cached_tokens] = 0
    tensors = [tensor for state in states for tensor in (state.keys, state.values)]
    outputs = _Place.apply(placed, rotation, buffers, width, *tensors)
    rooms = zip(layers_of(buffers[0]), layers_of(buffers[1]), strict=True)
    return Cache(
        layers=[
            PlacedLayer(keys, values, room)
            for keys, values, room in zip(outputs[:layers], outputs[layers:], rooms, strict=True)
        ]
    )


def layers_of(buffer: torch.Tensor) -> list[torch.Tensor]:
    """Each layer of a buffer, with a version counter of its own: writing into one spoils no other's gradient."""
    return [layer.data for layer in buffer.unbind(0)]
