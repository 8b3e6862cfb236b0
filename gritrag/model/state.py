"""DocumentState: the keys and values that one read pass leaves behind.

Shape letters: `T` tokens, `L` layers, `H` key/value heads, `K` head dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from gritrag.codecs.base import Region
from gritrag.codecs.pinned import brought
from gritrag.model.rotation import Rotation


@dataclass(frozen=True)
class DocumentState:
    """Un-rotated keys and values of every layer for one document, and how it was read.

    Args:
        keys: `[L, H, T, K]`, before rotary embedding (after key normalisation where the model has one).
        values: `[L, H, T, K]`.
        token_ids: int64 `[T]`, the tokens the state was computed from, scaffold included.
        reading: ``"causal"`` or ``"bidirectional"``.
        is_lossless: whether these are the numbers that were computed, as far as their dtype holds them.
    """

    keys: torch.Tensor
    values: torch.Tensor
    token_ids: torch.Tensor
    reading: str
    is_lossless: bool = True

    def __post_init__(self) -> None:
        tokens = self.token_ids.shape[0]
        if self.keys.shape != self.values.shape or self.keys.dim() != 4 or self.keys.shape[2] != tokens:
            raise ValueError(
                f"a state needs keys and values of one shape [layers, heads, {tokens} tokens, head dim]; "
                f"got keys {list(self.keys.shape)}, values {list(self.values.shape)}"
            )

    def __len__(self) -> int:
        """Tokens."""
        return self.token_ids.shape[0]

    def __getitem__(self, tokens: slice) -> "DocumentState":
        """The state of some of the tokens, as they were when they were read: a view, no copy."""
        return DocumentState(
            self.keys[:, :, tokens], self.values[:, :, tokens], self.token_ids[tokens], self.reading, self.is_lossless
        )

    def with_tensors(self, keys: torch.Tensor, values: torch.Tensor) -> "DocumentState":
        """The state of the same tokens with other numbers."""
        return DocumentState(keys, values, self.token_ids, self.reading, self.is_lossless)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values as they are held now."""
        return self.keys.nbytes + self.values.nbytes

    def runs(self, values_LHTK: torch.Tensor) -> Iterator[tuple[Region, torch.Tensor]]:
        """Copy the values into a buffer, and give the keys in runs, as suits the form they are held in.

        A run's keys are there until the next run is asked for.
        """
        pair, device = {"keys": self.keys, "values": self.values}, values_LHTK.device
        if self.keys.device.type == "cpu" != device.type:
            pair = brought(pair, device)
        values_LHTK[:] = pair["values"]
        yield Region(slice(0, len(self.keys)), slice(0, len(self))), pair["keys"]

    @classmethod
    def together(
        cls, states: Sequence["DocumentState"], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values of states of this class one behind the other, `[L, H, T, K]` on another device; None where
        each has to be written by itself."""
        tensors = {f"{part} {n}": getattr(state, part) for n, state in enumerate(states) for part in ("keys", "values")}
        if any(tensor.device.type == "cpu" for tensor in tensors.values()):
            tensors = brought({name: tensor.cpu() for name, tensor in tensors.items()}, device)
        keys, values = (
            torch.cat([tensors[f"{part} {n}"] for n in range(len(states))], dim=2) for part in ("keys", "values")
        )
        return keys, values

    def write(self, keys_LHTK: torch.Tensor, values_LHTK: torch.Tensor, rotation: Rotation | None, start: int) -> None:
        """Into a cache's buffers, rotated to positions `start ...`; as it is where keys cannot be moved."""
        assert rotation is not None or start == 0, "a state that cannot be moved must come first"
        for (layers, tokens), keys in self.runs(values_LHTK):
            out = keys_LHTK[layers, :, tokens]
            if rotation is None:
                out[:] = keys
            else:
                rotation.apply(keys.to(out.device), start + tokens.start, out=out, layers=layers)


class Reading(NamedTuple):
    """What one read pass gives: `vector` float32 `[dim]`, L2-normalised, and the `state`."""

    vector: np.ndarray
    state: DocumentState
