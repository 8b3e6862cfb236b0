"""Transform coding: what a calibration knows of all states of a model need not be written with each of them.

The heads of a few neighbouring layers are decorrelated by a basis that was fitted once, in which errors count as they
do for the next token. Directions along which they would cost much get 8 or 4 bits, others 2 or none; so keys and
values, and early and late layers, get very different numbers of bits.
The tokens that all documents begin with are read alike in all of them, so they are kept once, in the calibration: much
attention rests on them, and errors in them cost more than all others (attention sinks, Xiao et al. 2023).
Transform coding of keys and values with a calibrated basis: KVTC (Staniszewski and Łańcucki 2025, arXiv 2511.01815);
without an entropy coder here, and with a metric of errors in addition (`gritrag.train.after.calibrate` tells which).

Shape letters: `L` layers, `H` key/value heads, `T` tokens, `K` head dim, `B` blocks of layers, `D` numbers of a token
in a block, `R` directions that are kept, of a block or of all of them, `P` bytes of a token, likewise.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save

from gritrag.codecs.base import LARGEST, Codec, Packed, Region

RUN = 128
"""Tokens that are unpacked at a time."""

PARTS = ("keys", "values")


class Bits(NamedTuple):
    """How many directions of a block get 8, 4 and 2 bits, those where errors would cost most first."""

    eight: int
    four: int
    two: int

    @property
    def directions(self) -> int:
        """Directions that are kept."""
        return sum(self)

    @property
    def bytes(self) -> int:
        """Bytes of a token."""
        return self.eight + self.four // 2 + self.two // 4

    def levels(self) -> torch.Tensor:
        """Of each direction, float32 `[R]`."""
        return torch.tensor([256.0] * self.eight + [16.0] * self.four + [4.0] * self.two)

    def join(self, codes: torch.Tensor) -> torch.Tensor:
        """Whole numbers `[..., R]` to uint8 `[..., P]`."""
        eight, four, two = codes.to(torch.uint8).split(list(self), dim=-1)
        low, high = four.chunk(2, dim=-1) if self.four else (four, four)
        a, b, c, d = two.chunk(4, dim=-1) if self.two else (two,) * 4
        return torch.cat([eight, low | high << 4, a | b << 2 | c << 4 | d << 6], dim=-1)

    def part(self, joined: torch.Tensor) -> torch.Tensor:
        """uint8 `[..., P]` to whole numbers in float32 `[..., R]`."""
        eight, four, two = joined.split([self.eight, self.four // 2, self.two // 4], dim=-1)
        parts = [eight, four & 15, four >> 4, two & 3, two >> 2 & 3, two >> 4 & 3, two >> 6]
        return torch.cat(parts, dim=-1).float()


class _Block(NamedTuple):
    """What packs and unpacks a block: `[D, R]`, `[R, D]`, and the numbers `[D]` whose codes are all 0."""

    bits: Bits
    analysis: torch.Tensor
    synthesis: torch.Tensor
    lowest: torch.Tensor


class Basis:
    """How the keys, or the values, of a model are written.

    Args:
        bits: of the directions of each block.
        mean: float32 `[B, D]`.
        metric: `[L, H, K, K]`: after it, an error counts the same wherever it is.
        directions: `[D, R]`, those of all blocks one after the other; those of a block are orthonormal after `metric`.
        step: float32 `[R]`, between two levels of a direction.
    """

    def __init__(
        self,
        bits: Sequence[Bits],
        mean: torch.Tensor,
        metric: torch.Tensor,
        directions: torch.Tensor,
        step: torch.Tensor,
    ) -> None:
        self.bits, self.mean, self.step = tuple(bits), mean, step
        self.metric, self.directions = metric.half(), directions.half()
        counts = [of_block.directions for of_block in self.bits]
        parts = zip(
            self.bits,
            mean,
            self.metric.float().flatten(0, 1).chunk(len(mean)),
            self.directions.float().split(counts, dim=1),
            step.split(counts),
            strict=True,
        )
        self._blocks = [self._block(*part) for part in parts]

    @staticmethod
    def _block(
        bits: Bits, mean_D: torch.Tensor, metric_HKK: torch.Tensor, directions_DR: torch.Tensor, step_R: torch.Tensor
    ) -> _Block:
        metric_DD = torch.block_diag(*metric_HKK)
        synthesis_RD = (step_R[:, None] * directions_DR.T) @ torch.linalg.inv(metric_DD)
        lowest_D = mean_D - (bits.levels() - 1) / 2 @ synthesis_RD
        return _Block(bits, metric_DD @ directions_DR / step_R, synthesis_RD, lowest_D)

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, heads, head dim."""
        return tuple(self.metric.shape[:3])

    @property
    def bytes(self) -> int:
        """Of a token."""
        return sum(bits.bytes for bits in self.bits)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the arguments were, by name."""
        parts = {"mean": self.mean, "metric": self.metric, "directions": self.directions, "step": self.step}
        return {"bits": torch.tensor(self.bits, dtype=torch.int32), **parts}

    def pack(self, numbers: torch.Tensor) -> torch.Tensor:
        """float32 `[L, H, T, K]` to uint8 `[T, P]`."""
        packed = []
        for block, mean_D, numbers_TD in zip(self._blocks, self.mean, in_blocks(numbers, len(self.mean)), strict=True):
            most_R = block.bits.levels() - 1
            codes_TR = ((numbers_TD - mean_D) @ block.analysis).add_(most_R / 2).round_()
            packed.append(block.bits.join(torch.minimum(codes_TR.clamp_(min=0), most_R)))
        return torch.cat(packed, dim=1)

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """uint8 `[T, P]` to float32 `[L, H, T, K]`."""
        numbers_BTD = torch.empty(len(self.mean), len(packed), self.mean.shape[1])
        pieces = packed.split([bits.bytes for bits in self.bits], dim=1)
        for block, piece, numbers_TD in zip(self._blocks, pieces, numbers_BTD, strict=True):
            torch.addmm(block.lowest, block.bits.part(piece), block.synthesis, out=numbers_TD)
        _, heads, head_dim = self.shape
        return numbers_BTD.unflatten(2, (-1, head_dim)).transpose(1, 2).unflatten(1, (-1, heads)).flatten(0, 1)


def in_blocks(numbers: torch.Tensor, blocks: int) -> torch.Tensor:
    """`[L, H, T, K]` to `[B, T, D]`."""
    return numbers.unflatten(0, (blocks, -1)).flatten(1, 2).transpose(1, 2).flatten(2)


class Transform(Codec):
    """Packs with what a calibration has found for one model; other models' states are refused.

    Args:
        keys, values: their bases, of one shape.
        start: keys and values `[2, L, H, T, K]` of the tokens that documents begin with; at most `RUN`.
    """

    name = "transform"

    def __init__(self, keys: Basis, values: Basis, start: torch.Tensor) -> None:
        self.keys, self.values, self.start = keys, values, start.half()
        tensors = {f"{part}.{name}": t for part in PARTS for name, t in getattr(self, part).tensors().items()}
        self._file = save({name: t.contiguous() for name, t in {**tensors, "start": self.start}.items()})
        digest = xxhash.xxh3_64_digest(self._file)
        self._identity = torch.frombuffer(bytearray(digest), dtype=torch.uint8)

    @classmethod
    def load(cls, path: Path) -> "Transform":
        """Read a calibration.

        Raises:
            ValueError: there is none, or a broken one.
        """
        try:
            tensors = load(path.read_bytes())
            start = tensors.pop("start")
            parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
            for name, tensor in tensors.items():
                part, _, argument = name.partition(".")
                parts[part][argument] = tensor
            keys, values = (
                Basis([Bits(*of_block) for of_block in part.pop("bits").tolist()], **part) for part in parts.values()
            )
            return cls(keys, values, start)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is no calibration: {error}; make one with: gritrag calibrate") from None

    def save(self, path: Path) -> None:
        """Write the calibration, for `load`."""
        path.write_bytes(self._file)

    def pack(self, keys: torch.Tensor, values: torch.Tensor) -> dict[str, torch.Tensor]:
        layers, heads, _, head_dim = keys.shape
        if (layers, heads, head_dim) != self.keys.shape:
            raise ValueError(
                f"the calibration is for states of {list(self.keys.shape)} layers, heads and head dim, this one has "
                f"{[layers, heads, head_dim]}; make one for this model with: gritrag calibrate"
            )
        keys, values = (part.detach().float().cpu().clamp(-LARGEST, LARGEST) for part in (keys, values))
        packed = {"keys": self.keys.pack(keys).contiguous(), "values": self.values.pack(values).contiguous()}
        leading = torch.tensor([self._leading(packed, keys, values)], dtype=torch.uint8)
        return {**packed, "leading": leading, "calibration": self._identity}

    def _leading(self, packed: Packed, keys: torch.Tensor, values: torch.Tensor) -> int:
        """How many of the first tokens are nearer to what documents begin with than to what the bits say."""
        count = min(self.start.shape[3], keys.shape[2])
        first = slice(0, count)
        read = torch.stack([keys[:, :, first], values[:, :, first]])
        coded = torch.stack([self.keys.unpack(packed["keys"][first]), self.values.unpack(packed["values"][first])])
        off = [(found - read).square().sum((1, 2, 4)) for found in (self.start[:, :, :, first].float(), coded)]
        is_nearer = (off[0] <= off[1]).all(0).tolist()
        return (*is_nearer, False).index(False)

    def check(self, packed: Packed) -> None:
        if not torch.equal(packed["calibration"], self._identity):
            theirs, ours = (bytes(identity.tolist()).hex() for identity in (packed["calibration"], self._identity))
            raise ValueError(f"it was packed with calibration {theirs}, this one is {ours}")

    def shape(self, packed: Packed) -> tuple[int, ...]:
        layers, heads, head_dim = self.keys.shape
        return layers, heads, len(packed["keys"]), head_dim

    def runs(self, packed: Packed, values_LHTK: torch.Tensor) -> Iterator[tuple[Region, torch.Tensor]]:
        for start in range(0, len(packed["keys"]), RUN):
            tokens = slice(start, min(start + RUN, len(packed["keys"])))
            keys, values = self.keys.unpack(packed["keys"][tokens]), self.values.unpack(packed["values"][tokens])
            if start == 0:
                leading = slice(0, int(packed["leading"]))
                keys[:, :, leading], values[:, :, leading] = self.start[:, :, :, leading].float()
            values_LHTK[:, :, tokens] = values
            yield Region(slice(0, len(keys)), tokens), keys

    def bytes_per_token(self, elements: int) -> float:
        return self.keys.bytes + self.values.bytes
