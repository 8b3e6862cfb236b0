"""Fitting the bases of `Transform` to states of a model.

Shape letters: `L` layers, `H` key/value heads, `N` tokens of all documents, `K` head dim, `B` blocks of layers, `D`
numbers of a token in a block, `R` directions that are kept.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import torch

from gritrag.codecs.transform import Basis, Bits, in_blocks, pick_product

RIDGE = 0.02
"""Of the mean of a head's moments: what no gradient has pointed along counts so much all the same."""

FLOOR = 1e-5
"""Of the mean of all moments, for heads that have had no gradient: so that float16 holds the root."""

SAMPLE = 2048
"""Tokens that the steps are measured on."""

STEPS = torch.linspace(0.6, 2.4, 19)
"""Widths of a level that are tried, relative to what suits a normal distribution."""

NORMAL_STEPS = (0.0308, 0.3352, 0.9957)
"""Best step between evenly spaced levels of 8, 4 and 2 bits, for variance 1 (Max 1960, table II)."""

NORMAL_ERRORS = (0.0001, 0.01154, 0.1188)
"""Its mean squared error there, and about so for 8 bits."""

GAINS = (
    (NORMAL_ERRORS[1] - NORMAL_ERRORS[0]) / 4,
    (NORMAL_ERRORS[2] - NORMAL_ERRORS[1]) / 2,
    (1 - NORMAL_ERRORS[2]) / 2,
)
"""What each bit takes off the loss of a direction with variance 1: from 4 to 8 bits, from 2 to 4, from none to 2."""


class _Spread(NamedTuple):
    """Keys or values after their metric `[L, H, K, K]`, and how they vary there.

    Before it their mean was `[B, D]`; after it, less the mean, they are `weighted`, `[B, N, D]`, and vary by `variance`
    `[B, D]` along `directions` `[B, D, D]`, the largest first.
    """

    mean: torch.Tensor
    metric: torch.Tensor
    weighted: torch.Tensor
    variance: torch.Tensor
    directions: torch.Tensor


def fit(
    numbers: Sequence[torch.Tensor], moments: Sequence[torch.Tensor], bytes_per_token: int, blocks: int
) -> list[Basis]:
    """The bases that together lose least: bits go where an error would cost most, whichever part and block it is in.

    Args:
        numbers: parts, such as keys and values, `[L, H, N, K]` of documents such as will be packed.
        moments: for each part `[L, H, K, K]`: what an error `e` in a head costs is `e @ moments @ e`, on one scale for
            all layers, heads and parts. The mean outer product of gradients of a log-probability is such a matrix.
        bytes_per_token: at most, all parts together.
        blocks: of neighbouring layers. The fewer, the better the states are packed, and the longer that takes.
    """
    mean = sum(float(each.diagonal(dim1=-2, dim2=-1).mean()) for each in moments) / len(moments)
    roots = [_root(each / max(mean, 1e-30)) for each in moments]
    spreads = [_spread(part, root, blocks) for part, root in zip(numbers, roots, strict=True)]
    bits = allot(torch.cat([spread.variance for spread in spreads]), bytes_per_token)
    return [_basis(spread, bits[n * blocks : (n + 1) * blocks]) for n, spread in enumerate(spreads)]


def _root(moments: torch.Tensor) -> torch.Tensor:
    """Symmetric square root of `[..., K, K]`, kept away from singular ones, in numbers that float16 holds."""
    ridge = RIDGE * moments.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + FLOOR
    values, vectors = torch.linalg.eigh(moments + ridge * torch.eye(moments.shape[-1]))
    return (vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT).half()


def _spread(numbers_LHNK: torch.Tensor, metric_LHKK: torch.Tensor, blocks: int) -> _Spread:
    mean_LHK = numbers_LHNK.mean(2)
    weighted_BND = in_blocks((numbers_LHNK - mean_LHK[:, :, None]) @ metric_LHKK.float(), blocks)
    variance_BD, directions_BDD = torch.linalg.eigh(weighted_BND.mT @ weighted_BND / weighted_BND.shape[1])
    mean_BD = in_blocks(mean_LHK[:, :, None], blocks)[:, 0]
    return _Spread(mean_BD, metric_LHKK, weighted_BND, variance_BD.flip(1).clamp_min(1e-12), directions_BDD.flip(2))


def allot(variance_BD: torch.Tensor, most: int) -> list[Bits]:
    """Bits for the directions of each block, of which those with the largest variance come first.

    A bit is given wherever it takes at least so much off the loss; how much is sought by bisection, so that all
    together need nearly `most` bytes for a token, and no more.
    """
    low, high = log(float(variance_BD.min()) * min(GAINS)) - 1, log(float(variance_BD.max()) * max(GAINS)) + 1
    best = _worth(variance_BD, high)
    for _ in range(50):
        middle = (low + high) / 2
        tried = _worth(variance_BD, middle)
        if sum(bits.bytes for bits in tried) <= most:
            best, high = tried, middle
        else:
            low = middle
    return best


def _worth(variance_BD: torch.Tensor, least: float) -> list[Bits]:
    """All bits that take at least `least` off the loss (its logarithm), but for some that would not fill a byte."""
    counts_B3 = torch.stack([((variance_BD * gain).log() > least).sum(1) for gain in GAINS], dim=1)
    bits = []
    for eight, to_four, to_two in counts_B3.tolist():
        four = (to_four - eight) // 2 * 2
        bits.append(Bits(eight, four, (to_two - eight - four) // 4 * 4))
    return bits


def _basis(spread: _Spread, bits: Sequence[Bits]) -> Basis:
    directions, steps = [], []
    for of_block, weighted_ND, variance_D, directions_DD in zip(
        bits, spread.weighted, spread.variance, spread.directions, strict=True
    ):
        kept_DR, deviation_R = directions_DD[:, : of_block.directions], variance_D[: of_block.directions].sqrt()
        sample = weighted_ND[:: -(-len(weighted_ND) // SAMPLE)]
        directions.append(kept_DR)
        steps.append(deviation_R * _steps(sample @ kept_DR / deviation_R, of_block))
    return Basis(bits, pick_product(), spread.mean, spread.metric, torch.cat(directions, dim=1), torch.cat(steps))


def _steps(coordinates_NR: torch.Tensor, bits: Bits) -> torch.Tensor:
    """The best step `[R]` of each direction, where coordinates have variance 1."""
    middle_R = (bits.levels() - 1) / 2
    normal_R = torch.tensor(NORMAL_STEPS).repeat_interleave(torch.tensor(bits))
    errors = []
    for wider in STEPS:
        codes = (coordinates_NR / (wider * normal_R) + middle_R).round_().clamp_(min=0)
        kept = (torch.minimum(codes, 2 * middle_R) - middle_R) * (wider * normal_R)
        errors.append((kept - coordinates_NR).square().sum(0))
    return normal_R * STEPS[torch.stack(errors).argmin(0)]
