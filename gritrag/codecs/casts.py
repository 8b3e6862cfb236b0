"""Keys and values in one floating-point type; shape letters are those of `gritrag.codecs.base`."""

from collections.abc import Iterator
from typing import ClassVar

import torch

from gritrag.codecs.base import Codec, Packed, Region


class Cast(Codec):
    """Keys and values as they are, `[L, H, T, K]`: nothing is lost that the type can hold."""

    dtype: ClassVar[torch.dtype]

    def pack(self, keys: torch.Tensor, values: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = {"keys": keys, "values": values}
        return {name: part.detach().to("cpu", self.dtype).contiguous() for name, part in parts.items()}

    def check(self, packed: Packed) -> None:
        for name in ("keys", "values"):
            if name not in packed or packed[name].dtype != self.dtype:
                raise ValueError(f"{self.name} is made of keys and values in {self.dtype}, this is not")

    def shape(self, packed: Packed) -> tuple[int, ...]:
        return tuple(packed["keys"].shape)

    def runs(self, packed: Packed, values_LHTK: torch.Tensor) -> Iterator[tuple[Region, torch.Tensor]]:
        layers, _, tokens, _ = self.shape(packed)
        values_LHTK.copy_(packed["values"])
        yield Region(slice(0, layers), slice(0, tokens)), packed["keys"].float()

    def bytes_per_token(self, elements: int) -> float:
        return elements * self.dtype.itemsize


class Float32(Cast):
    """What a model computed in float32, to the last bit; twice the bytes of `bf16`."""

    name = "float32"
    dtype = torch.float32


class BFloat16(Cast):
    """What a model computed in bfloat16, to the last bit; relative error at most 2^-8 for the others."""

    name = "bf16"
    dtype = torch.bfloat16
