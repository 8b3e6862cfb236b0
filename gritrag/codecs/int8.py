"""A byte for each number; shape letters are those of `gritrag.codecs.integers`."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from gritrag.codecs.base import Packed
from gritrag.codecs.integers import HEAD_DIM, Integers, above_zero, multiply


class Int8(Integers):
    """Twice as small as bf16, and all but the same: 256 levels for keys, 255 around zero for values."""

    name = "int8"
    bits = 8
    names: ClassVar[tuple[str, ...]] = (*Integers.names, "value_scale")
    """And the distance of two levels of values, float16 `[L, H, t, 1]`."""

    def _intervals(self, spread_LHK: torch.Tensor) -> torch.Tensor:
        return torch.full_like(spread_LHK, 255)

    def _pack_keys(self, levels_LHtK: torch.Tensor, spread_LHK: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"keys": levels_LHtK.round().clamp(0, 255).to(torch.uint8)}

    def _pack_values(self, values_LHtK: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = above_zero(values_LHtK.abs().amax(3, keepdim=True) / 127)
        return {"values": (values_LHtK / scale.float()).round().clamp(-127, 127).to(torch.int8), "value_scale": scale}

    def _unpack_keys(self, packed: Packed, run: slice) -> torch.Tensor:
        return packed["keys"][run].float()

    def _unpack_values(self, packed: Packed, run: slice, out_lHtK: torch.Tensor) -> None:
        multiply(packed["values"][run].float(), packed["value_scale"][run].float(), out_lHtK)

    def _keys_together(self, packed: Sequence[Packed], document_t: torch.Tensor) -> torch.Tensor:
        return torch.cat([each["keys"] for each in packed], dim=2).float()

    def _values_together(self, packed: Sequence[Packed], document_t: torch.Tensor) -> torch.Tensor:
        numbers, scale = (
            torch.cat([each[part] for each in packed], dim=2).float() for part in ("values", "value_scale")
        )
        return numbers.mul_(scale)

    def bytes_per_token(self, elements: int) -> float:
        return super().bytes_per_token(elements) + 2 * elements / 2 / HEAD_DIM
