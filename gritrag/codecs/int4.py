"""Half a byte for each number; shape letters are those of `gritrag.codecs.integers`.

Some channels of keys spread many times as far as the others, for the most part those that rotate slowly; 16 levels for
them cause most of what all this changes in the next token. They get a second nibble. The two channels that rotate as
one spread alike, so they are taken in bands of such pairs: `N` of the `B` of each head, of `w` channels in each half.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import ClassVar

import torch

from gritrag.codecs import nibbles
from gritrag.codecs.base import Packed
from gritrag.codecs.integers import HEAD_DIM, Integers, multiply

WIDTH = 16
"""Channels of a band in each half, at most."""

REFINED = 0.13
"""Share of the bands that have a second nibble."""

FINE = 16
"""A second nibble divides the distance of two levels by this."""

VALUES = 7.5
"""Levels of values are at -7.5, -6.5, ... 7.5 times their scale: sixteen of them, and no zero to be written."""

OCTAVE = 16
"""Scales of values are written in steps of a sixteenth octave below the greatest of their head."""

OCTAVES = torch.tensor([2 ** (-code / OCTAVE) for code in range(256)])


class Int4(Integers):
    """Nibbles, a second one where keys spread farthest, and scales of values in 8 bits."""

    name = "int4"
    bits = 4
    names: ClassVar[tuple[str, ...]] = (*Integers.names, "value_scale", "value_octave", "bands", "fine")
    """And the greatest scale of a head's values, float16 `[L, H, 1]`; how far below it a token's is, uint8 `[L, H, t]`;
    heads and bands that have a second nibble, int32 `[2, N]`; these, `[N, t * 2 * w]`. All nibbles are in rows of
    `gritrag.codecs.nibbles`, those of keys and values `[L * H, t * K]`."""

    def _intervals(self, spread_LHK: torch.Tensor) -> torch.Tensor:
        intervals = torch.full_like(spread_LHK, 15)
        _in_bands(intervals)[self._bands(spread_LHK)] = 15 + 15 / FINE
        return intervals

    def _bands(self, spread_LHK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Head `[N]` and number `[N]` in it of the bands where a level more or less would change most, in order."""
        error = _in_bands(spread_LHK).square().sum((2, 3))
        chosen = error.flatten().topk(int(REFINED * error.numel())).indices.sort().values
        return chosen // max(1, error.shape[1]), chosen % max(1, error.shape[1])

    def _pack_keys(self, levels_LHtK: torch.Tensor, spread_LHK: torch.Tensor) -> dict[str, torch.Tensor]:
        heads, bands = chosen = self._bands(spread_LHK)
        codes = levels_LHtK.round().clamp(0, 15).to(torch.uint8)
        fine = (_in_bands(levels_LHtK)[chosen] * FINE).round().clamp(0, 255).to(torch.uint8)
        _in_bands(codes)[chosen] = fine >> 4
        return {
            "keys": nibbles.pack(codes.flatten(0, 1).flatten(1)),
            "bands": torch.stack([heads, bands]).to(torch.int32),
            "fine": nibbles.pack((fine & 15).flatten(1), step=1 / FINE),
        }

    def _pack_values(self, values_LHtK: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = (values_LHtK.abs().amax(3) / VALUES).clamp_min(torch.finfo(torch.float16).tiny)
        greatest = scale.amax(2, keepdim=True).half()
        octave = ((greatest.float() / scale).log2() * OCTAVE).floor().clamp(0, 255).to(torch.uint8)
        numbers = values_LHtK / self._scale(greatest, octave) + VALUES
        rows = nibbles.pack(numbers.round().clamp(0, 15).flatten(0, 1).flatten(1), zero=-VALUES)
        return {"values": rows, "value_scale": greatest, "value_octave": octave}

    @staticmethod
    def _scale(greatest: torch.Tensor, octave: torch.Tensor) -> torch.Tensor:
        """Distance of two levels, float32 `[..., t, 1]`."""
        below = OCTAVES.to(octave.device).index_select(0, octave.flatten().int()).view(octave.shape)
        return (below * greatest.float()).unsqueeze(-1)

    def _unpack_keys(self, packed: Packed, run: slice) -> torch.Tensor:
        keys = self._numbers(packed, "keys", run)
        heads, bands = packed["bands"].tolist()
        first, last = (bisect_left(heads, end * keys.shape[1]) for end in (run.start, run.stop))
        if first < last:
            tokens, head_dim = keys.shape[2:]
            width, half = _width(head_dim), head_dim // 2
            size, strides = (tokens, 2, width), (head_dim, half, 1)
            fine = nibbles.unpack(packed["fine"][first:last], tokens * 2 * width).view(-1, *size)
            before = run.start * keys.shape[1]
            starts = [(heads[n] - before) * tokens * head_dim + bands[n] * width for n in range(first, last)]
            add = add_one_by_one if keys.device.type == "cpu" else add_at_once
            add(keys, fine, starts, strides)
        return keys

    def _unpack_values(self, packed: Packed, run: slice, out_lHtK: torch.Tensor) -> None:
        scale = self._scale(packed["value_scale"][run], packed["value_octave"][run])
        multiply(self._numbers(packed, "values", run), scale, out_lHtK)

    def _numbers(self, packed: Packed, part: str, run: slice) -> torch.Tensor:
        """Of these layers, float32 `[l, H, t, K]`."""
        _, heads, tokens = packed["value_octave"].shape
        head_dim = packed["key_scale"].shape[3]
        rows = packed[part][run.start * heads : run.stop * heads]
        return nibbles.unpack(rows, tokens * head_dim).view(-1, heads, tokens, head_dim)

    def _keys_together(self, packed: Sequence[Packed], document_t: torch.Tensor) -> torch.Tensor:
        layers, heads, _, head_dim = packed[0]["key_scale"].shape
        tokens, half, width = len(document_t), head_dim // 2, _width(head_dim)
        keys = self._rows_together(packed, "keys", head_dim).view(layers, heads, tokens, head_dim)
        fine = self._rows_together(packed, "fine", 2 * width)
        if not fine.numel():
            return keys
        head_DN, band_DN = torch.stack([each["bands"].long() for each in packed], dim=1)
        start_ND = (head_DN * tokens * head_dim + band_DN * width).T.to(keys.device)
        token_t = torch.arange(0, tokens * head_dim, head_dim, device=keys.device)
        in_band = torch.arange(width, device=keys.device) + torch.tensor([[0], [half]], device=keys.device)
        places = (start_ND.index_select(1, document_t) + token_t)[:, :, None, None] + in_band
        keys.view(-1).index_add_(0, places.flatten(), fine.flatten())
        return keys

    def _values_together(self, packed: Sequence[Packed], document_t: torch.Tensor) -> torch.Tensor:
        octave, greatest = (
            torch.cat([each[f"value_{part}"] for each in packed], dim=2) for part in ("octave", "scale")
        )
        scale = self._scale(greatest.index_select(2, document_t), octave)
        layers, heads, _, head_dim = packed[0]["key_scale"].shape
        numbers = self._rows_together(packed, "values", head_dim)
        return numbers.view(layers, heads, len(document_t), head_dim).mul_(scale)

    @staticmethod
    def _rows_together(packed: Sequence[Packed], part: str, per_token: int) -> torch.Tensor:
        """The rows of nibbles of several documents, one behind the other, float32 `[R, t * per_token]`."""
        tokens = [each["value_octave"].shape[2] for each in packed]
        return (
            torch.cat(
                [nibbles.unpack(each[part], t * per_token) for each, t in zip(packed, tokens, strict=True)], dim=1
            )
            if per_token % nibbles.ALIGNED
            else nibbles.unpack_joined([each[part] for each in packed])
        )

    def approximate(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `unpack(pack(...))` leaves, nearly: nothing is packed, so it is computed where the tensors are.

        Keys in bands with a second nibble and the first token stay as they are, the scales of values are not rounded,
        and all tokens share the levels of their keys.

        Args:
            keys, values: `[L, H, T, K]`.

        Returns:
            float32 `[L, H, T, K]` each.
        """
        keys, values = keys.detach().float(), values.detach().float()
        least, most = keys[:, :, min(1, keys.shape[2] - 1) :].aminmax(dim=2, keepdim=True)
        distance = ((most - least) / 15).clamp_min(torch.finfo(torch.float16).tiny)
        coarse = ((keys - least) / distance).round() * distance + least
        is_fine = torch.zeros_like(distance[:, :, 0], dtype=torch.bool)
        _in_bands(is_fine)[self._bands((most - least)[:, :, 0])] = True
        scale = (values.abs().amax(3, keepdim=True) / VALUES).clamp_min(torch.finfo(torch.float16).tiny)
        rounded = ((values / scale + VALUES).round().clamp(0, 15) - VALUES) * scale
        left = torch.where(is_fine[:, :, None], keys, coarse)
        left[:, :, :1], rounded[:, :, :1] = keys[:, :, :1], values[:, :, :1]
        return left, rounded

    def bytes_per_token(self, elements: int) -> float:
        return super().bytes_per_token(elements) + elements / 2 * (REFINED / 2 + 1 / HEAD_DIM)


def add_one_by_one(into: torch.Tensor, added: torch.Tensor, starts: Sequence[int], strides: Sequence[int]) -> None:
    """Add `added[n]` to what begins at `starts[n]` of a contiguous tensor and has these strides; none of them overlap.

    What `_in_bands` says of one band at a time takes as long as all of this.
    """
    torch._foreach_add_([into.as_strided(added.shape[1:], strides, start) for start in starts], added.unbind())


def add_at_once(into: torch.Tensor, added: torch.Tensor, starts: Sequence[int], strides: Sequence[int]) -> None:
    """As `add_one_by_one`, in a few large operations: a GPU would spend its time on starting one for each band."""
    device = into.device
    places = torch.tensor(starts, device=device).view(-1, *[1] * len(strides))
    for dim, stride in enumerate(strides, start=1):
        steps = torch.arange(0, added.shape[dim] * stride, stride, device=device)
        places = places + steps.view(-1, *[1] * (len(strides) - dim))
    into.view(-1).index_add_(0, places.flatten(), added.flatten())


def _in_bands(numbers: torch.Tensor) -> torch.Tensor:
    """`[L, H, ..., K]` seen as `[L * H, B, ..., 2, w]`; where bands do not fill a half, the last are in none."""
    half, width = numbers.shape[-1] // 2, _width(numbers.shape[-1])
    halves = numbers.flatten(0, 1)[..., : 2 * half].unflatten(-1, (2, half))
    return halves[..., : half // width * width].unflatten(-1, (-1, width)).movedim(-2, 1)


def _width(head_dim: int) -> int:
    return max(1, min(WIDTH, head_dim // 4))
