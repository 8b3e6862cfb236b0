"""A codec: how the numbers of a state are written. One small class each, listed in `CODECS`.

Shape letters: `L` layers, `H` key/value heads, `T` tokens, `K` head dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch

from gritrag.model.state import DocumentState

__all__ = ["CODECS", "Codec", "get_codec"]


class Codec(ABC):
    """The contract: `decode(encode(state), state.reading)` is the state again, as exactly as the codec promises.

    Token ids are kept exactly by every codec.
    """

    name: ClassVar[str]

    @abstractmethod
    def encode(self, state: DocumentState) -> dict[str, torch.Tensor]:
        """Contiguous CPU tensors by name, `token_ids` int32 `[T]` among them."""

    @abstractmethod
    def decode(self, tensors: Mapping[str, torch.Tensor], reading: str) -> DocumentState:
        """The state. It may share memory with `tensors`."""

    @abstractmethod
    def bytes_per_token(self, elements: int) -> float:
        """Bytes on disk for one token whose state has `elements` numbers, token id included, file header not."""


class _Cast(Codec):
    """Keys and values as they are, `[L, H, T, K]`, in one floating-point type."""

    dtype: ClassVar[torch.dtype]

    def encode(self, state: DocumentState) -> dict[str, torch.Tensor]:
        return {
            "keys": state.keys.detach().to("cpu", self.dtype).contiguous(),
            "values": state.values.detach().to("cpu", self.dtype).contiguous(),
            "token_ids": state.token_ids.to("cpu", torch.int32),
        }

    def decode(self, tensors: Mapping[str, torch.Tensor], reading: str) -> DocumentState:
        return DocumentState(tensors["keys"], tensors["values"], tensors["token_ids"].long(), reading)

    def bytes_per_token(self, elements: int) -> float:
        return elements * self.dtype.itemsize + torch.int32.itemsize


class Float32(_Cast):
    """What a model computed in float32, to the last bit; twice the bytes of `bf16`."""

    name = "float32"
    dtype = torch.float32


class BFloat16(_Cast):
    """What a model computed in bfloat16, to the last bit; relative error at most 2^-8 for the others."""

    name = "bf16"
    dtype = torch.bfloat16


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Float32(), BFloat16())}


def get_codec(name: str) -> Codec:
    """The codec of that name, or a ValueError that lists the known ones."""
    if name not in CODECS:
        raise ValueError(f"unknown state codec {name!r}; known codecs: {', '.join(CODECS)}, or 'none' for vectors only")
    return CODECS[name]
