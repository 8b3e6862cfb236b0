"""Evenly spaced levels: un-rotated keys share them along a channel, values along a token.

A channel of un-rotated keys has its own mean and spread, whatever the token; values have outlying tokens instead (KIVI,
Liu et al. 2024, arXiv 2402.02750, section 3; KVQuant, Hooper et al. 2024, arXiv 2401.18079, section 3.2). The first
token stays in float16: much attention rests there (Xiao et al. 2023, arXiv 2309.17453).

Shape letters: `L` layers, `H` key/value heads, `T` tokens, `t` tokens but the first, `K` head dim, `G` groups of
tokens, `l` layers of a run.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import ClassVar

import torch

from gritrag.codecs.base import LARGEST, Codec, Packed, Region

HEAD_DIM = 64
"""Heads have seldom less; with more, values share their scales with more."""

TYPICAL = 200
"""Tokens of a document, for the estimate of its bytes."""

RUN = 400_000
"""Numbers that are unpacked at a time, where a layer has no more: so many stay in a processor's cache. A GPU unpacks
all layers at once."""


class Integers(Codec):
    """Rounds to the nearest level.

    Args:
        group: at least so many tokens share the levels of their keys (all of a document that is shorter).

    Raises:
        ValueError: a group without tokens.
    """

    bits: ClassVar[int]
    unpacks_anywhere = True
    held = ("length", "bands")
    names: ClassVar[tuple[str, ...]] = ("length", "first", "keys", "key_scale", "key_zero", "values")
    """Of the tensors: number of tokens; keys and values of the first, float16 `[2, L, H, 1, K]`; codes of the other
    keys, the distance of two levels and the lowest level, both float16 `[L, H, G, K]`; codes of the other values."""

    def __init__(self, group: int = 120) -> None:
        if group < 1:
            raise ValueError(f"a group must have at least 1 token, got {group}")
        self.group = group

    def pack(self, keys: torch.Tensor, values: torch.Tensor) -> dict[str, torch.Tensor]:
        keys, values = (part.detach().float().cpu().clamp(-LARGEST, LARGEST) for part in (keys, values))
        tokens = keys.shape[2]
        first = _first(tokens)
        groups = [keys[:, :, group] for group in cut(first, tokens, max(1, (tokens - first) // self.group))]
        least, most = (torch.stack(ends, dim=2) for ends in zip(*(part.aminmax(dim=2) for part in groups), strict=True))
        spread = (most - least).amax(2)
        zero = least.half()
        scale = above_zero((most - zero.float()) / self._intervals(spread)[:, :, None])
        levels = [
            (part - zero[:, :, [number]].float()) / scale[:, :, [number]].float() for number, part in enumerate(groups)
        ]
        packed = {
            "length": torch.tensor([tokens], dtype=torch.int32),
            "first": torch.stack([keys[:, :, :first], values[:, :, :first]]).half(),
            "key_scale": scale,
            "key_zero": zero,
            **self._pack_keys(torch.cat(levels, dim=2), spread),
            **self._pack_values(values[:, :, first:]),
        }
        return {name: packed[name].contiguous() for name in self.names}

    @abstractmethod
    def _intervals(self, spread_LHK: torch.Tensor) -> torch.Tensor:
        """Between the lowest and the highest level of each channel, `[L, H, K]`."""

    @abstractmethod
    def _pack_keys(self, levels_LHtK: torch.Tensor, spread_LHK: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is written of keys that were divided by the distance of two levels, counted from the lowest."""

    @abstractmethod
    def _pack_values(self, values_LHtK: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is written of values."""

    def check(self, packed: Packed) -> None:
        if (found := sorted(packed)) != (names := sorted(self.names)):
            raise ValueError(f"{self.name} is made of {', '.join(names)}, this of {', '.join(found)}")

    def shape(self, packed: Packed) -> tuple[int, ...]:
        layers, heads, _, head_dim = packed["key_scale"].shape
        return layers, heads, int(packed["length"]), head_dim

    def runs(self, packed: Packed, values_LHTK: torch.Tensor) -> Iterator[tuple[Region, torch.Tensor]]:
        layers, heads, tokens, head_dim = self.shape(packed)
        first = _first(tokens)
        if first:
            values_LHTK[:, :, :first] = packed["first"][1]
            yield Region(slice(0, layers), slice(0, first)), packed["first"][0].float()
        scale, zero = packed["key_scale"].float(), packed["key_zero"].float()
        lengths = [group.stop - group.start for group in cut(0, tokens - first, scale.shape[2])]
        at_once = max(1, RUN // (heads * (tokens - first) * head_dim)) if scale.device.type == "cpu" else layers
        for start in range(0, layers, at_once):
            run = slice(start, min(start + at_once, layers))
            self._unpack_values(packed, run, values_LHTK[run, :, first:])
            keys = self._unpack_keys(packed, run)
            parts = (keys.split(lengths, 2), zero[run].split(1, 2), scale[run].split(1, 2))
            for numbers, lowest, distance in zip(*parts, strict=True):
                torch.addcmul(lowest, numbers, distance, out=numbers)
            yield Region(run, slice(first, tokens)), keys
            del keys, parts, numbers  # before the next are asked for: another block of memory is new to the cache

    def together(self, packed: Sequence[Packed]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of several documents, one behind the other, float32 `[L, H, T, K]` where the tensors are.

        What a GPU computes for one document takes it less time than starting it; here all of them cost one start.
        """
        lengths = [int(each["length"]) for each in packed]
        firsts = [_first(tokens) for tokens in lengths]
        counts = [each["key_scale"].shape[2] for each in packed]
        cuts = [cut(*ends) for ends in zip(firsts, lengths, counts, strict=True)]
        groups = torch.tensor([group.stop - group.start for groups in cuts for group in groups])
        rest = torch.tensor(lengths) - torch.tensor(firsts)
        device = packed[0]["key_scale"].device
        group_t, document_t = (torch.arange(len(each)).repeat_interleave(each).to(device) for each in (groups, rest))
        is_first = torch.zeros(sum(lengths), dtype=torch.bool)
        is_first[[start for start, first in zip(accumulate([0, *lengths]), firsts, strict=False) if first]] = True
        scale, zero = (
            torch.cat([each[part] for each in packed], dim=2).float().index_select(2, group_t)
            for part in ("key_scale", "key_zero")
        )
        keys = torch.addcmul(zero, self._keys_together(packed, document_t), scale)
        values = self._values_together(packed, document_t)
        first = torch.cat([each["first"] for each in packed], dim=3).float()
        found = []
        for own, others in zip(first, (keys, values), strict=True):
            whole = others.new_empty(*others.shape[:2], sum(lengths), others.shape[3])
            whole.index_copy_(2, is_first.nonzero()[:, 0].to(device), own)
            whole.index_copy_(2, (~is_first).nonzero()[:, 0].to(device), others)
            found.append(whole)
        return found[0], found[1]

    @abstractmethod
    def _keys_together(self, packed: Sequence[Packed], document_t: torch.Tensor) -> torch.Tensor:
        """As `_unpack_keys`, of all layers of several documents; `document_t` says of which one each token is."""

    @abstractmethod
    def _values_together(self, packed: Sequence[Packed], document_t: torch.Tensor) -> torch.Tensor:
        """The values of all layers of several documents, float32 `[L, H, t, K]`."""

    @abstractmethod
    def _unpack_keys(self, packed: Packed, run: slice) -> torch.Tensor:
        """What `_pack_keys` was given of these layers, nearly: float32 `[l, H, t, K]`, contiguous and nobody else's."""

    @abstractmethod
    def _unpack_values(self, packed: Packed, run: slice, out_lHtK: torch.Tensor) -> None:
        """The values of these layers into a buffer of any type on any device."""

    def bytes_per_token(self, elements: int) -> float:
        levels, first = 2 * 2 * elements / 2 / self.group, 2 * elements / TYPICAL
        return elements * self.bits / 8 + levels + first


def cut(start: int, end: int, count: int) -> list[slice]:
    """So many groups of neighbouring tokens, all of nearly the same length."""
    ends = (start + (end - start) * number // count for number in range(count + 1))
    return [slice(*group) for group in pairwise(ends)]


def above_zero(scale: torch.Tensor) -> torch.Tensor:
    """In float16, where nothing that is divided by may vanish."""
    return scale.half().clamp_min(torch.finfo(torch.float16).tiny)


def multiply(numbers: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    """Into a buffer of any type on any device, in one pass where that can be; `numbers` may be written over."""
    if out.device == numbers.device:
        torch.mul(numbers, scale, out=out)
    else:
        out.copy_(numbers.mul_(scale))


def _first(tokens: int) -> int:
    """How many tokens stay in float16; one that is alone has to be written in levels all the same."""
    return min(1, tokens - 1)
