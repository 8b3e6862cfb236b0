"""The caches that states come from and go to: one that records a read pass, and one that states are placed in.

Shape letters: `B` batch, `T` tokens, `L` layers, `H` key/value heads, `K` head dim, `C` capacity of a cache in tokens.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from gritrag.model.arena import ARENA
from gritrag.model.rotation import Rotation
from gritrag.model.state import DocumentState
from gritrag.model.watched import Watched


class RecordingLayer(CacheLayerMixin):
    """Keeps what a single forward hands over, as it is: no concatenation, no window, no copy."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to prepare."""
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the tensors of this forward, and give them back as they are."""
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a query sees, and where they begin."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Tokens before this forward: none."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class RecordingCache(Cache):
    """What a read pass runs with: afterwards it holds rotated keys and values, `[B, H, T, K]` per layer."""

    layers: list[RecordingLayer]  # type: ignore[assignment]  # transformers allows any kind in one cache

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RecordingLayer)

    @property
    def recorded(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of each layer."""
        return [(layer.keys, layer.values) for layer in self.layers]

    def unrotated(self, rotation: Rotation | None, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys with the rotation of positions `start ...` undone in float32, and values; both `[L, B, H, T, K]`.

        Where keys cannot be moved (`rotation` is None) they are left as they were computed.
        """
        keys, values = (torch.stack(tensors) for tensors in zip(*self.recorded, strict=True))
        if rotation is None:
            return keys, values
        positions = torch.arange(start, start + keys.shape[3], device=keys.device)
        return rotation.undo(keys, positions), values

    def states(
        self, rotation: Rotation | None, prompts: Sequence[Sequence[int]], reading: str, start: int = 0
    ) -> list[DocumentState]:
        """One state per row, trimmed of padding and owning its memory."""
        keys, values = self.unrotated(rotation, start)
        return [
            DocumentState(
                keys[:, row, :, : len(ids)].clone(),
                values[:, row, :, : len(ids)].clone(),
                torch.tensor(ids, dtype=torch.long),
                reading,
            )
            for row, ids in enumerate(prompts)
        ]


class PlacedLayer(CacheLayerMixin):
    """One layer of a `PlacedCache`: writes new tokens into a buffer that was large enough from the start.

    A sliding-window layer keeps all tokens too; the mask, not the memory, is its window.
    """

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.length, self.shown = length, 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The buffer is there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values behind those that are there; all of them so far, as views."""
        end = self.length + key_states.shape[2]
        assert end <= self.keys.shape[2], f"the cache holds {self.keys.shape[2]} tokens, {end} are needed"
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        shown = max(end, self.shown)
        if shown == self.keys.shape[2]:
            return self.keys, self.values
        return self.keys[:, :, :shown], self.values[:, :, :shown]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a query sees, and where they begin."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens that are there."""
        return self.length

    def get_max_length(self) -> int:
        """Tokens that there is room for."""
        return self.keys.shape[2]


class PlacedCache(Cache):
    """A transformers `Cache` of fixed capacity whose first tokens are placed states.

    Args:
        keys, values: buffers `[L, B, H, C, K]` in the model's dtype.
        length: columns that are filled.
        bias: `[B, length]`, added to the attention scores of these columns; None for nothing.

    Attributes:
        watched: hidden states that a forward is to keep; None for none.
        token_ids: of the columns of a single text, for forwards that may have to read it again.
    """

    watched: Watched | None = None
    layers: list[PlacedLayer]  # type: ignore[assignment]  # transformers allows any kind in one cache

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int, bias: torch.Tensor | None = None) -> None:
        self.buffers, self.bias = (keys, values), bias
        self.token_ids: list[int] = []
        super().__init__(layers=[PlacedLayer(k, v, length) for k, v in zip(keys, values, strict=True)])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PlacedLayer`: all layers are there from the start."""
        return self.layers[layer_idx].update(key_states, value_states)

    @property
    def length(self) -> int:
        """Columns that are filled."""
        return self.layers[0].get_seq_length()

    @property
    def capacity(self) -> int:
        """Columns that there are."""
        return self.buffers[0].shape[3]

    @property
    def shown(self) -> int:
        """At least so many columns are given to attention, which has to hide those behind `length`."""
        return self.layers[0].shown

    @contextmanager
    def showing(self, columns: int) -> Iterator[None]:
        """Meanwhile, attention is given at least so many columns."""
        assert columns <= self.capacity, f"the cache holds {self.capacity} tokens, not {columns}"
        for layer in self.layers:
            layer.shown = columns
        try:
            yield
        finally:
            for layer in self.layers:
                layer.shown = 0

    def cut(self, length: int) -> None:
        """Forget every token behind the first `length`."""
        assert length <= self.length, f"the cache holds {self.length} tokens, fewer than {length}"
        if self.watched is not None:
            self.watched.cut(length)
        for layer in self.layers:
            layer.length = length

    def end_watch(self) -> torch.Tensor | None:
        """What was `watched` of the latest forward, float32 `[B, layers * D]`; None if nothing was. Later forwards keep
        nothing."""
        watched, self.watched = self.watched, None
        return None if watched is None else watched.hidden

    def advance(self, tokens: int) -> None:
        """So many tokens more have been written into the buffers, past the layers."""
        for layer in self.layers:
            layer.length += tokens

    def state(self, rotation: Rotation | None, token_ids: Sequence[int], reading: str) -> DocumentState:
        """Back from a cache of one row to a state: all tokens so far, un-rotated."""
        keys, values = (buffer[:, 0, :, : self.length].clone() for buffer in self.buffers)
        if rotation is not None:
            keys = rotation.undo(keys, torch.arange(self.length, device=keys.device))
        return DocumentState(keys, values, torch.tensor(token_ids, dtype=torch.long), reading)


class CacheShape(NamedTuple):
    """What a cache of a model looks like; the same in every layer, or the model's states are refused."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    def empty(self, rows: int, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Buffers for keys and for values, `[L, rows, H, capacity, K]`, whatever is in them."""
        shape = (2, self.layers, rows, self.heads, capacity, self.head_dim)
        if self.device.type != "cpu":
            both = torch.empty(shape, dtype=self.dtype, device=self.device)
        else:
            both = ARENA.take(math.prod(shape) * self.dtype.itemsize).view(self.dtype).view(shape)
        return both[0], both[1]
