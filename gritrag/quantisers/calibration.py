"""Fitting the bases of `Transform` to states of a model.

Shape letters: `L` layers, `H` key/value heads, `N` tokens of all documents, `K` head dim, `B` blocks of layers, `D`
numbers of a token in a block, `R` directions that are kept.
"""

import torch

from gritrag.quantisers.transform import Basis, Bits, in_blocks

RIDGE = 0.02
"""Of the mean of a head's moments: directions that no query has looked along count so much all the same."""

STEPS = torch.linspace(0.6, 2.0, 29)
"""Widths of a level that are tried, relative to what suits a normal distribution."""

NORMAL_STEPS = {256: 0.0308, 16: 0.3352, 4: 0.9957}
"""Best step of a uniform quantiser with so many levels, for variance 1 (Max 1960, table II)."""

NORMAL_ERRORS = {256: 0.0001, 16: 0.01154, 4: 0.1188}
"""Its mean squared error there, and about so for 8 bits."""


def fit(numbers_LHNK: torch.Tensor, moments_LHKK: torch.Tensor | None, bytes_per_token: int, blocks: int) -> Basis:
    """The basis that loses least of these keys or values.

    Args:
        numbers_LHNK: of documents such as will be packed.
        moments_LHKK: mean outer product of the vectors they are multiplied with; None if all directions matter alike.
        bytes_per_token: in each block, at most.
        blocks: of neighbouring layers. The fewer, the better the states are packed, and the longer that takes.
    """
    layers, heads, _, head_dim = numbers_LHNK.shape
    mean_LHK = numbers_LHNK.mean(2)
    centred = numbers_LHNK - mean_LHK[:, :, None]
    root = torch.eye(head_dim).expand(layers, heads, -1, -1) if moments_LHKK is None else _root(moments_LHKK)
    # an error relative to what a layer varies counts the same in every layer
    deviation_L = (centred @ root).square().mean((1, 2, 3)).sqrt().clamp_min(1e-6)
    metric_LHKK = (root / deviation_L[:, None, None, None]).half()
    weighted_BND = in_blocks(centred @ metric_LHKK.float(), blocks)
    variance_BD, directions_BDD = torch.linalg.eigh(weighted_BND.mT @ weighted_BND / weighted_BND.shape[1])
    variance_BD, directions_BDD = variance_BD.flip(1).clamp_min(0), directions_BDD.flip(2)
    bits = _allot((variance_BD / variance_BD.sum(1, keepdim=True)).mean(0), bytes_per_token)
    directions_BDR = directions_BDD[:, :, : bits.directions]
    deviation_BR = variance_BD[:, : bits.directions].sqrt().clamp_min(1e-6)
    step_BR = deviation_BR * _steps(weighted_BND @ directions_BDR / deviation_BR[:, None], bits)
    return Basis(bits, in_blocks(mean_LHK[:, :, None], blocks)[:, 0], metric_LHKK, directions_BDR, step_BR)


def _root(moments: torch.Tensor) -> torch.Tensor:
    """Symmetric square root of `[..., K, K]`, brought to a mean of about 1 and away from singular ones."""
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-12)
    values, vectors = torch.linalg.eigh(moments / mean + RIDGE * torch.eye(moments.shape[-1]))
    return vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT


def _allot(share_D: torch.Tensor, most: int) -> Bits:
    """Bits for directions with these shares of the variance, least loss for `most` bytes. All blocks are alike."""
    left_D = torch.cat([torch.zeros(1), share_D.cumsum(0)]).tolist()
    size, best = len(share_D), (float("inf"), Bits(0, 0, 0))
    for eight in range(0, min(size, most) + 1):
        for four in range(0, min(size - eight, 2 * (most - eight)) + 1, 2):
            two = min((size - eight - four) // 4, most - eight - four // 2) * 4
            ends = (eight, eight + four, eight + four + two)
            eights, fours, twos = left_D[ends[0]], left_D[ends[1]] - left_D[ends[0]], left_D[ends[2]] - left_D[ends[1]]
            loss = 1 - left_D[ends[2]]
            loss += NORMAL_ERRORS[256] * eights + NORMAL_ERRORS[16] * fours + NORMAL_ERRORS[4] * twos
            best = min(best, (loss, Bits(eight, four, two)))
    return best[1]


def _steps(coordinates_BNR: torch.Tensor, bits: Bits) -> torch.Tensor:
    """For each direction the step, `[R]`, that is best for all of as many bits, where coordinates have variance 1."""
    steps = []
    for part_BN, levels in zip(coordinates_BNR.split(list(bits), dim=2), NORMAL_STEPS, strict=True):
        tried = NORMAL_STEPS[levels] * STEPS
        sample = part_BN.flatten()[:: max(1, part_BN.numel() // 1_000_000)]
        errors = [_error(sample, levels, step) for step in tried.tolist()]
        steps.append(tried[errors.index(min(errors))].expand(part_BN.shape[2]))
    return torch.cat(steps)


def _error(sample: torch.Tensor, levels: int, step: float) -> float:
    middle = (levels - 1) / 2
    codes = (sample / step + middle).round().clamp(0, levels - 1)
    return float(((codes - middle) * step - sample).square().sum())
