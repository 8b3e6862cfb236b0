"""Transform coding: what a calibration knows of all states of a model need not be written with each of them.

The heads of a layer, or of a few neighbouring ones, are decorrelated by a basis that was fitted once, in which errors
count as they do for the next token. Directions along which they would cost much get 8 or 4 bits, others 2 or none; so
keys and values, and early and late layers, get very different numbers of bits.
The tokens that all documents begin with are read alike in all of them, so they are kept once, in the calibration: much
attention rests on them, and errors in them cost more than all others (attention sinks, Xiao et al. 2023).
Transform coding of keys and values with a calibrated basis: KVTC (Staniszewski and Łańcucki 2025, arXiv 2511.01815);
without an entropy coder here, and with a metric of errors in addition (`gritrag.train.after.calibrate` tells which).

What takes time at loading is the product of codes and bases: it is computed in bfloat16 where the processor can, with
sums in float32. Codes are exact there, and bases are as exact as 8 bits along a direction.

Shape letters: `L` layers, `H` key/value heads, `T` tokens, `K` head dim, `B` blocks of layers, `D` numbers of a token
in a block, `R` directions that are kept, of a block or of all of them, `P` bytes of a token, `b` blocks and `l` layers
of a group, `S` codes of its largest block and what is before them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save

from gritrag.codecs.base import LARGEST, Codec, Packed, Region
from gritrag.processor import has_bf16

RUN = 256
"""Tokens that are unpacked at a time, at most."""

TOGETHER = 6
"""Layers whose codes are multiplied in one call, at most: so many stay in a processor's cache."""

LAYOUT = b"one row of codes for each direction, of all blocks"
"""What identifies a packed state, beside its calibration: until November 2026 the codes of each block stood apart."""

PARTS = ("keys", "values")


def pick_product() -> torch.dtype:
    """In what codes and bases are multiplied: bfloat16 where the processor computes in it."""
    return torch.bfloat16 if has_bf16() else torch.float32


class Bits(NamedTuple):
    """How many directions, of a block or of all, get 8, 4 and 2 bits. In a block the most bits go to those where errors
    would cost most."""

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

    def part(self, joined_PT: torch.Tensor, rows: int = 0) -> torch.Tensor:
        """uint8 `[P, T]` to uint8 `[R, T]`, with so many rows of ones behind."""
        eight, four, two = joined_PT.split([self.eight, self.four // 2, self.two // 4])
        codes = joined_PT.new_empty(self.directions + rows, joined_PT.shape[1])
        halves, quarters = [self.four // 2] * 2, [self.two // 4] * 4
        whole, low, high, *pairs, ones = codes.split([self.eight, *halves, *quarters, rows])
        whole.copy_(eight)
        torch.bitwise_and(four, 15, out=low)
        torch.bitwise_right_shift(four, 4, out=high)
        for number, pair in enumerate(pairs):
            torch.bitwise_right_shift(two, 2 * number, out=pair).bitwise_and_(3)
        ones.fill_(1)
        return codes


class _Block(NamedTuple):
    """What packs and unpacks a block: `[D, R]`, `[R, D]`, and the numbers `[D]` whose codes are all 0."""

    bits: Bits
    analysis: torch.Tensor
    synthesis: torch.Tensor
    lowest: torch.Tensor


class _Group(NamedTuple):
    """What unpacks some neighbouring blocks in one product.

    Args:
        layers: which these are.
        rows: of the codes of all blocks, int64 `[b * S]`, where a block has two ones before its codes, and ones behind
            them, up to the `S` of the largest.
        factors: `[b, S, D]`.
    """

    layers: slice
    rows: torch.Tensor
    factors: torch.Tensor


class Basis:
    """How the keys, or the values, of a model are written.

    Args:
        bits: of the directions of each block.
        product: the type in which codes are multiplied with what they stand for; see `pick_product`.
        mean: float32 `[B, D]`.
        metric: `[L, H, K, K]`: after it, an error counts the same wherever it is.
        directions: `[D, R]`, those of all blocks one after the other; those of a block are orthonormal after `metric`.
        step: float32 `[R]`, between two levels of a direction.
    """

    def __init__(
        self,
        bits: Sequence[Bits],
        product: torch.dtype,
        mean: torch.Tensor,
        metric: torch.Tensor,
        directions: torch.Tensor,
        step: torch.Tensor,
    ) -> None:
        self.bits, self.mean, self.step = tuple(bits), mean, step
        self._product = product
        self._all = Bits(*(sum(counts) for counts in zip(*self.bits, strict=True)))
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
        together = max(1, TOGETHER * len(self.bits) // self.shape[0])
        self.groups = [self._group(slice(n, n + together)) for n in range(0, len(self.bits), together)]

    def _block(
        self,
        bits: Bits,
        mean_D: torch.Tensor,
        metric_HKK: torch.Tensor,
        directions_DR: torch.Tensor,
        step_R: torch.Tensor,
    ) -> _Block:
        metric_DD = torch.block_diag(*metric_HKK)
        synthesis_RD = ((step_R[:, None] * directions_DR.T) @ torch.linalg.inv(metric_DD)).to(self._product)
        lowest_D = mean_D - (bits.levels() - 1) / 2 @ synthesis_RD.float()
        return _Block(bits, metric_DD @ directions_DR / step_R, synthesis_RD, lowest_D)

    def _group(self, blocks: slice) -> _Group:
        every = torch.arange(self._all.directions)
        widths = zip(every.split(list(self._all)), zip(*self.bits, strict=True), strict=True)
        rows = list(zip(*(of_all.split(list(counts)) for of_all, counts in widths), strict=True))[blocks]
        chosen, one = self._blocks[blocks], torch.tensor([self._all.directions])
        length = 2 + max(block.bits.directions for block in chosen)
        factors = self._blocks[0].synthesis.new_zeros(len(chosen), length, self.mean.shape[1])
        found = []
        for block, of_block, factors_SD in zip(chosen, rows, factors, strict=True):
            # what codes of 0 stand for is far from what most codes stand for: one row would round it too coarsely
            factors_SD[0] = block.lowest
            factors_SD[1] = block.lowest - factors_SD[0].float()
            factors_SD[2 : 2 + block.bits.directions] = block.synthesis
            found += [one, one, *of_block, one.expand(length - 2 - block.bits.directions)]
        per_block = self.shape[0] // len(self.bits)
        layers = slice(blocks.start * per_block, min(blocks.stop, len(self.bits)) * per_block)
        return _Group(layers, torch.cat(found), factors)

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, heads, head dim."""
        return tuple(self.metric.shape[:3])

    @property
    def bytes(self) -> int:
        """Of a token."""
        return self._all.bytes

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the arguments were, by name."""
        parts = {"mean": self.mean, "metric": self.metric, "directions": self.directions, "step": self.step}
        return {"bits": torch.tensor(self.bits, dtype=torch.int32), **parts}

    def pack(self, numbers: torch.Tensor) -> torch.Tensor:
        """float32 `[L, H, T, K]` to uint8 `[P, T]`."""
        codes = []
        for block, mean_D, numbers_TD in zip(self._blocks, self.mean, in_blocks(numbers, len(self.mean)), strict=True):
            most_R = block.bits.levels() - 1
            codes_TR = ((numbers_TD - mean_D) @ block.analysis).add_(most_R / 2).round_()
            codes.append(torch.minimum(codes_TR.clamp_(min=0), most_R).split(list(block.bits), dim=1))
        codes_TR = torch.cat([part for of_width in zip(*codes, strict=True) for part in of_width], dim=1)
        return self._all.join(codes_TR).T

    def codes(self, packed_PT: torch.Tensor) -> torch.Tensor:
        """Codes of all blocks, and ones, uint8 `[R + 1, T]`."""
        return self._all.part(packed_PT, rows=1)

    def synthesize(self, codes_RT: torch.Tensor, group: _Group, out_bTD: torch.Tensor) -> torch.Tensor:
        """Numbers `[l, H, T, K]` of a group of blocks: a view of `out_bTD` where each of them is one layer."""
        blocks, length, _ = group.factors.shape
        codes_bST = codes_RT.index_select(0, group.rows).to(self._product).view(blocks, length, -1)
        numbers_bTD = torch.bmm(codes_bST.mT, group.factors, out=out_bTD[:blocks])
        _, heads, head_dim = self.shape
        return numbers_bTD.unflatten(2, (-1, heads, head_dim)).permute(0, 2, 3, 1, 4).flatten(0, 1)

    def buffer(self, tokens: int) -> torch.Tensor:
        """For the numbers of a group."""
        return self.groups[0].factors.new_empty(len(self.groups[0].factors), tokens, self.mean.shape[1])

    def unpack(self, packed_PT: torch.Tensor) -> torch.Tensor:
        """uint8 `[P, T]` to numbers `[L, H, T, K]`, in the type of the product."""
        codes_RT = self.codes(packed_PT)
        groups = (self.synthesize(codes_RT, group, self.buffer(codes_RT.shape[1])) for group in self.groups)
        return torch.cat(list(groups))


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
        digest = xxhash.xxh3_64_digest(LAYOUT + self._file)
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
                Basis([Bits(*of_block) for of_block in part.pop("bits").tolist()], pick_product(), **part)
                for part in parts.values()
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
        coded = torch.stack(
            [self.keys.unpack(packed["keys"][:, first]), self.values.unpack(packed["values"][:, first])]
        )
        off = [(found - read).square().sum((1, 2, 4)) for found in (self.start[:, :, :, first].float(), coded.float())]
        is_nearer = (off[0] <= off[1]).all(0).tolist()
        return (*is_nearer, False).index(False)

    def check(self, packed: Packed) -> None:
        if not torch.equal(packed["calibration"], self._identity):
            theirs, ours = (bytes(identity.tolist()).hex() for identity in (packed["calibration"], self._identity))
            raise ValueError(f"it was packed with calibration {theirs}, this one is {ours}")

    def shape(self, packed: Packed) -> tuple[int, ...]:
        layers, heads, head_dim = self.keys.shape
        return layers, heads, packed["keys"].shape[1], head_dim

    def runs(self, packed: Packed, values_LHTK: torch.Tensor) -> Iterator[tuple[Region, torch.Tensor]]:
        layers, _, tokens, _ = self.shape(packed)
        leading = slice(0, int(packed["leading"]))
        if leading.stop:
            values_LHTK[:, :, leading] = self.start[1, :, :, leading]
            yield Region(slice(0, layers), leading), self.start[0, :, :, leading].float()
        for start in range(leading.stop, tokens, RUN):
            yield from self._run(packed, slice(start, min(start + RUN, tokens)), values_LHTK)

    def _run(self, packed: Packed, tokens: slice, values_LHTK: torch.Tensor) -> Iterator[tuple[Region, torch.Tensor]]:
        """Of some of the tokens, a few layers at a time."""
        bases = [(self.keys, packed["keys"]), (self.values, packed["values"])]
        key_codes, value_codes = (basis.codes(part[:, tokens]) for basis, part in bases)
        key_buffer, value_buffer = (basis.buffer(tokens.stop - tokens.start) for basis, _ in bases)
        for of_keys, of_values in zip(self.keys.groups, self.values.groups, strict=True):
            values_LHTK[of_values.layers, :, tokens] = self.values.synthesize(value_codes, of_values, value_buffer)
            yield Region(of_keys.layers, tokens), self.keys.synthesize(key_codes, of_keys, key_buffer)

    def bytes_per_token(self, elements: int) -> float:
        return self.keys.bytes + self.values.bytes
