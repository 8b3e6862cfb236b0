"""A codec: keys and values as named tensors, in full or in fewer bits, and back.

Arithmetic only: of states, files and training steps it knows nothing.

Shape letters: `L` layers, `H` key/value heads, `T` tokens, `K` head dim, `l` layers and `t` tokens of a run.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch

Packed = Mapping[str, torch.Tensor]
"""What a codec made of keys and values: CPU tensors by name."""

LARGEST = torch.finfo(torch.float16).max
"""Codecs of fewer than 16 bits clip what is beyond: their scales are in float16, and no model computes such numbers."""


class Region(NamedTuple):
    """Which part of a state a run is."""

    layers: slice
    tokens: slice


class Codec(ABC):
    """The contract: `unpack(pack(keys, values))` are the keys and values again, nearly; and always the same."""

    name: ClassVar[str]
    unpacks_anywhere: ClassVar[bool] = False
    """Whether `runs` works where the tensors are, on a GPU too; else on the processor only."""
    held: ClassVar[tuple[str, ...]] = ()
    """Tensors that stay on the processor: the few numbers that say where others go."""

    @abstractmethod
    def pack(self, keys: torch.Tensor, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Un-rotated keys and values `[L, H, T, K]` of one document, in any floating-point type, as contiguous tensors.

        Codecs of fewer than 16 bits clip numbers beyond `LARGEST`.
        """

    @abstractmethod
    def check(self, packed: Packed) -> None:
        """See whether this is what this codec has packed.

        Raises:
            ValueError: it is not, and other numbers would be made of it.
        """

    @abstractmethod
    def shape(self, packed: Packed) -> tuple[int, ...]:
        """`[L, H, T, K]`."""

    @abstractmethod
    def runs(self, packed: Packed, values_LHTK: torch.Tensor) -> Iterator[tuple[Region, torch.Tensor]]:
        """Unpack the values into a buffer of any type, and the keys run by run: where they are, `[l, H, t, K]` in
        float32, or in the type of 16 bits that they were computed in.

        A run is small enough to be found in the processor's cache by what works on it. Its keys are there until the
        next run is asked for; nobody else needs them.
        """

    @abstractmethod
    def bytes_per_token(self, elements: int) -> float:
        """Bytes for one token whose state has `elements` numbers, at most.

        Scales that tokens share are counted as in documents of a few hundred tokens. Documents of a few tokens pay more
        for each; of one or two, less than 16 bits can take more bytes than `bf16`.
        """

    def unpack(self, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, float32 `[L, H, T, K]`."""
        keys, values = (torch.empty(self.shape(packed)) for _ in range(2))
        for (layers, tokens), run in self.runs(packed, values):
            keys[layers, :, tokens] = run
        return keys, values

    def __call__(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """There and back: what is left of keys and values, float32 `[L, H, T, K]`."""
        return self.unpack(self.pack(keys, values))
