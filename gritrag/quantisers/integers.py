"""Evenly spaced levels: un-rotated keys share a scale along a channel, values along a token.

A channel of un-rotated keys has its own mean and spread, whatever the token; values have outlying tokens instead (KIVI,
Liu et al. 2024, arXiv 2402.02750, section 3; KVQuant, Hooper et al. 2024, arXiv 2401.18079, section 3.2).

Shape letters: `L` layers, `H` key/value heads, `T` tokens, `K` head dim, `t` tokens of a group.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import torch

from gritrag.quantisers.base import LARGEST, Packed, Quantiser

HEAD_DIM = 64
"""Heads have seldom less; with more, values share their scales with more."""


TYPICAL = 200
"""Tokens of a document, for the estimate of its bytes."""


class Levels(ABC):
    """Numbers that share their scale along one dimension become codes, and these numbers again."""

    bits: ClassVar[int]
    scales: ClassVar[tuple[str, ...]]
    """What describes levels, in float16 each."""

    @abstractmethod
    def encode(self, numbers: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
        """Codes of float32 `[L, H, t, K]`, and the scales that they share along `dim`, float16."""

    @abstractmethod
    def decode(self, codes: torch.Tensor, *scales: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The numbers into `out`, float32 `[L, H, t, K]`; scales in float32."""


class Signed8(Levels):
    """255 levels around zero."""

    bits, scales = 8, ("scale",)

    def encode(self, numbers: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
        scale = _above_zero(numbers.abs().amax(dim, keepdim=True) / 127)
        return (numbers / scale.float()).round().clamp(-127, 127).to(torch.int8), scale

    def decode(self, codes: torch.Tensor, *scales: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(codes).mul_(scales[0])


class Signed4(Levels):
    """15 levels around zero, two to a byte."""

    bits, scales = 4, ("scale",)

    def encode(self, numbers: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
        scale = _above_zero(numbers.abs().amax(dim, keepdim=True) / 7)
        return _in_pairs((numbers / scale.float()).round().clamp(-7, 7).to(torch.int8)), scale

    def decode(self, codes: torch.Tensor, *scales: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        half = codes.shape[3]
        signed = codes.view(torch.int8)  # shifted to the right, the sign stays
        out[..., :half] = signed << 4 >> 4
        out[..., half:] = (signed >> 4)[..., : out.shape[3] - half]
        return out.mul_(scales[0])


class Unsigned4(Levels):
    """16 levels from the least to the greatest number, two to a byte."""

    bits, scales = 4, ("scale", "zero")

    def encode(self, numbers: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
        least, most = numbers.aminmax(dim=dim, keepdim=True)
        zero = least.half()
        scale = _above_zero((most - zero.float()) / 15)
        codes = ((numbers - zero.float()) / scale.float()).round().clamp(0, 15)
        return _in_pairs(codes.to(torch.int8)), scale, zero

    def decode(self, codes: torch.Tensor, *scales: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        half = codes.shape[3]
        out[..., :half] = codes & 15
        out[..., half:] = (codes >> 4)[..., : out.shape[3] - half]
        return torch.addcmul(scales[1], out, scales[0], out=out)


class Integers(Quantiser):
    """Rounds to the nearest level.

    Args:
        group: at least so many tokens share the scales of their keys (all of a document that is shorter).

    Raises:
        ValueError: a group without tokens.
    """

    keys: ClassVar[Levels]
    values: ClassVar[Levels]
    first: ClassVar[int] = 0
    """So many tokens at the start stay in float16: much attention rests there (Xiao et al. 2023, arXiv 2309.17453)."""

    def __init__(self, group: int = 48) -> None:
        if group < 1:
            raise ValueError(f"a group must have at least 1 token, got {group}")
        self.group = group

    def pack(self, keys: torch.Tensor, values: torch.Tensor) -> dict[str, torch.Tensor]:
        keys, values = (part.detach().float().clamp(-LARGEST, LARGEST) for part in (keys, values))
        first = min(self.first, keys.shape[2] - 1)
        groups = cut(first, keys.shape[2], max(1, (keys.shape[2] - first) // self.group))
        of_groups = zip(*(self.keys.encode(keys[:, :, tokens], 2) for tokens in groups), strict=True)
        parts = [torch.stack([keys[:, :, :first], values[:, :, :first]]).half()] if self.first else []
        parts += [torch.cat(tensors, dim=2) for tensors in of_groups]
        parts += self.values.encode(values[:, :, first:], 3)
        return {name: part.cpu().contiguous() for name, part in zip(self._names(), parts, strict=True)}

    def _names(self) -> list[str]:
        """Of the tensors: the first tokens, codes and scales of the other keys, and of the other values."""
        keys, values = self.keys.scales, self.values.scales
        names = ["keys", *(f"key_{name}" for name in keys), "values", *(f"value_{name}" for name in values)]
        return ["first", *names] if self.first else names

    def check(self, packed: Packed) -> None:
        if (found := sorted(packed)) != (names := sorted(self._names())):
            raise ValueError(f"{self.name} is made of {', '.join(names)}, this of {', '.join(found)}")

    def shape(self, packed: Packed) -> tuple[int, ...]:
        layers, heads, tokens, _ = packed["keys"].shape
        return layers, heads, tokens + self._first(packed), packed["key_scale"].shape[3]

    def _first(self, packed: Packed) -> int:
        return packed["first"].shape[3] if self.first else 0

    def runs(self, packed: Packed, values_LHTK: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        layers, heads, tokens, head_dim = self.shape(packed)
        key_scales, value_scales = (
            [packed[f"{part}_{name}"].float() for name in levels.scales]
            for part, levels in (("key", self.keys), ("value", self.values))
        )
        first = self._first(packed)
        groups = cut(first, tokens, key_scales[0].shape[2])
        scratch = torch.empty(layers, heads, max(group.stop - group.start for group in groups), head_dim)
        is_direct = values_LHTK.dtype == scratch.dtype and values_LHTK.device == scratch.device
        if first:
            values_LHTK[:, :, :first] = packed["first"][1]
            yield slice(0, first), packed["first"][0].float()
        for number, group in enumerate(groups):
            run, values = scratch[:, :, : group.stop - group.start], values_LHTK[:, :, group]
            stored = slice(group.start - first, group.stop - first)
            scales = (scale[:, :, stored] for scale in value_scales)
            numbers = self.values.decode(packed["values"][:, :, stored], *scales, out=values if is_direct else run)
            if not is_direct:
                values.copy_(numbers)
            scales = (scale[:, :, number : number + 1] for scale in key_scales)
            yield group, self.keys.decode(packed["keys"][:, :, stored], *scales, out=run)

    def bytes_per_token(self, elements: int) -> float:
        per_part = elements / 2
        codes = per_part * (self.keys.bits + self.values.bits) / 8
        scales = per_part * (len(self.keys.scales) / self.group + len(self.values.scales) / HEAD_DIM)
        return codes + torch.float16.itemsize * scales + self.first * torch.float16.itemsize * elements / TYPICAL


class Int8(Integers):
    """A byte for each number; twice as small as bf16, and all but the same."""

    name = "int8"
    keys = values = Signed8()


class Int4(Integers):
    """Half a byte for each number."""

    name = "int4"
    keys, values = Unsigned4(), Signed4()
    first = 1


def cut(start: int, end: int, count: int) -> list[slice]:
    """So many groups of neighbouring tokens, all of nearly the same length."""
    ends = (start + (end - start) * number // count for number in range(count + 1))
    return [slice(*group) for group in pairwise(ends)]


def _in_pairs(codes: torch.Tensor) -> torch.Tensor:
    """Half a byte each: a channel beside the one half a head further on, which is where rotation wants it too."""
    half = (codes.shape[3] + 1) // 2
    low, high = (part.view(torch.uint8) for part in codes.split([half, codes.shape[3] - half], dim=3))
    pairs = low & 15
    pairs[..., : high.shape[3]] |= high << 4
    return pairs


def _above_zero(scale: torch.Tensor) -> torch.Tensor:
    """In float16, where nothing that is divided by may vanish."""
    return scale.half().clamp_min(torch.finfo(torch.float16).tiny)
