"""A codec: how the numbers of a state are written. Names are listed in `CODECS`.

Shape letters: `L` layers, `H` key/value heads, `T` tokens, `K` head dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from gritrag.codecs import QUANTISERS, Packed, Quantiser, Region, get_quantiser
from gritrag.model.state import DocumentState

__all__ = ["CODECS", "Codec", "get_codec"]


class Codec(ABC):
    """The contract: `decode(encode(state), state.reading)` is the state again, as exactly as the codec promises.

    Token ids are kept exactly by every codec.
    """

    name: str

    @abstractmethod
    def encode(self, state: DocumentState) -> dict[str, torch.Tensor]:
        """Contiguous CPU tensors by name, `token_ids` int32 `[T]` among them."""

    @abstractmethod
    def decode(self, tensors: Mapping[str, torch.Tensor], reading: str) -> DocumentState:
        """The state. It may share memory with `tensors`."""

    @abstractmethod
    def bytes_per_token(self, elements: int) -> float:
        """Bytes on disk for one token whose state has `elements` numbers, token id included, file header not.

        Scales that tokens share are counted as in documents of a few hundred tokens. Those of a few tokens pay more for
        each; of one or two, less than 16 bits can take more bytes than `bf16`.
        """


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


class QuantisedState(DocumentState):
    """A state that stays packed until it is placed.

    Args:
        quantiser: what packed it.
        packed: its tensors; they may be mapped from a file.
        token_ids, reading: as those of any state.
    """

    quantiser: Quantiser
    packed: Packed

    def __init__(self, quantiser: Quantiser, packed: Packed, token_ids: torch.Tensor, reading: str) -> None:
        fields = {"token_ids": token_ids, "reading": reading, "is_lossless": False}
        self.__dict__ |= {"quantiser": quantiser, "packed": packed, **fields}  # the class is frozen

    @property
    def keys(self) -> torch.Tensor:
        """Unpacked with every look at them; so are the values."""
        return self.dense().keys

    @property
    def values(self) -> torch.Tensor:
        return self.dense().values

    def dense(self) -> DocumentState:
        """The same, unpacked once and for all."""
        keys, values = self.quantiser.unpack(self.packed)
        return DocumentState(keys, values, self.token_ids, self.reading, is_lossless=False)

    def runs(self, values_LHTK: torch.Tensor) -> Iterator[tuple[Region, torch.Tensor]]:
        return self.quantiser.runs(self.packed, values_LHTK)

    def __getitem__(self, tokens: slice) -> DocumentState:
        return self.dense()[tokens]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.packed.values())


class Quantised(Codec):
    """Fewer bits, the work of a quantiser; unpacked where the state is placed and not before.

    Args:
        name: of the quantiser.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.quantiser = get_quantiser(name)

    def encode(self, state: DocumentState) -> dict[str, torch.Tensor]:
        packed = self.quantiser.pack(state.keys, state.values)
        return {**packed, "token_ids": state.token_ids.to("cpu", torch.int32)}

    def decode(self, tensors: Mapping[str, torch.Tensor], reading: str) -> DocumentState:
        packed = {name: tensor for name, tensor in tensors.items() if name != "token_ids"}
        self.quantiser.check(packed)
        if (tokens := self.quantiser.shape(packed)[2]) != len(tensors["token_ids"]):
            raise ValueError(f"it holds the numbers of {tokens} tokens and the ids of {len(tensors['token_ids'])}")
        return QuantisedState(self.quantiser, packed, tensors["token_ids"].long(), reading)

    def bytes_per_token(self, elements: int) -> float:
        return self.quantiser.bytes_per_token(elements) + torch.int32.itemsize


CASTS: dict[str, Codec] = {codec.name: codec for codec in (Float32(), BFloat16())}
CODECS = (*CASTS, *QUANTISERS)
"""Names of the codecs; ``transform`` takes a calibration of one's own as ``transform:FILE``."""


def get_codec(name: str) -> Codec:
    """The codec of that name, or a ValueError that lists the known ones."""
    if name in CASTS:
        return CASTS[name]
    if name.partition(":")[0] not in QUANTISERS:
        raise ValueError(f"unknown state codec {name!r}; known codecs: {', '.join(CODECS)}, or 'none' for vectors only")
    return Quantised(name)
