"""A state as the tensors of a file: what a codec makes of its keys and values, and its token ids as they are.

Shape letters: `L` layers, `H` key/value heads, `T` tokens, `K` head dim.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from gritrag.codecs import Cast, Codec, Packed, Region, get_codec
from gritrag.codecs.integers import Integers
from gritrag.codecs.pinned import brought
from gritrag.model.state import DocumentState

__all__ = ["PackedState", "bytes_per_token", "decode", "encode"]


class PackedState(DocumentState):
    """A state that stays packed until it is placed.

    Args:
        codec: what packed it.
        packed: its tensors; they may be mapped from a file.
        token_ids, reading: as those of any state.
    """

    codec: Codec
    packed: Packed

    def __init__(self, codec: Codec, packed: Packed, token_ids: torch.Tensor, reading: str) -> None:
        fields = {"token_ids": token_ids, "reading": reading, "is_lossless": False}
        self.__dict__ |= {"codec": codec, "packed": packed, **fields}  # the class is frozen

    @property
    def keys(self) -> torch.Tensor:
        """Unpacked with every look at them; so are the values."""
        return self.dense().keys

    @property
    def values(self) -> torch.Tensor:
        """As `keys`."""
        return self.dense().values

    def dense(self) -> DocumentState:
        """The same, unpacked once and for all."""
        keys, values = self.codec.unpack(self.packed)
        return DocumentState(keys, values, self.token_ids, self.reading, is_lossless=False)

    def runs(self, values_LHTK: torch.Tensor) -> Iterator[tuple[Region, torch.Tensor]]:
        """Values into a buffer, and keys run by run; see `Codec.runs`."""
        return self.codec.runs(self._near(values_LHTK.device), values_LHTK)

    def _near(self, device: torch.device) -> Packed:
        """The tensors where they are to be unpacked: packed, they take a quarter of the way to a GPU or less."""
        if device.type == "cpu" or not self.codec.unpacks_anywhere:
            return self.packed
        held = {name: tensor for name, tensor in self.packed.items() if name in self.codec.held}
        return {**brought({name: t for name, t in self.packed.items() if name not in held}, device), **held}

    @classmethod
    def together(
        cls, states: Sequence[DocumentState], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """See `DocumentState.together`; for codecs that compute anywhere."""
        packed = [state for state in states if isinstance(state, PackedState)]
        codec = packed[0].codec
        if not isinstance(codec, Integers) or any(type(state.codec) is not type(codec) for state in packed):
            return None
        named = {(n, name): tensor for n, state in enumerate(packed) for name, tensor in state.packed.items()}
        held = {key: tensor for key, tensor in named.items() if key[1] in codec.held}
        there = brought({key: tensor for key, tensor in named.items() if key not in held}, device) | held
        return codec.together([{name: there[n, name] for name in state.packed} for n, state in enumerate(packed)])

    def __getitem__(self, tokens: slice) -> DocumentState:
        return self.dense()[tokens]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed tensors."""
        return sum(tensor.nbytes for tensor in self.packed.values())


def encode(state: DocumentState, codec: str) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors by name, `token_ids` int32 `[T]` among them."""
    packed = get_codec(codec).pack(state.keys, state.values)
    return {**packed, "token_ids": state.token_ids.to("cpu", torch.int32)}


def decode(tensors: Mapping[str, torch.Tensor], codec: str, reading: str) -> DocumentState:
    """The state again, as exactly as the codec promises; token ids always exactly. It may share memory with `tensors`.

    Raises:
        ValueError: another codec made these tensors, or they hold the numbers of other tokens than `token_ids`.
    """
    packed = {name: tensor for name, tensor in tensors.items() if name != "token_ids"}
    coded, token_ids = get_codec(codec), tensors["token_ids"].long()
    coded.check(packed)
    if (tokens := coded.shape(packed)[2]) != len(token_ids):
        raise ValueError(f"it holds the numbers of {tokens} tokens and the ids of {len(token_ids)}")
    if isinstance(coded, Cast):
        return DocumentState(packed["keys"], packed["values"], token_ids, reading)
    return PackedState(coded, packed, token_ids, reading)


def bytes_per_token(codec: str, elements: int) -> float:
    """Bytes on disk for one token whose state has `elements` numbers, token id included, file header not."""
    return get_codec(codec).bytes_per_token(elements) + torch.int32.itemsize
