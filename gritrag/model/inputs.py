"""Inputs: what is still to be read of contexts, as one padded batch, and who sees whom in it.

Shape letters: `B` contexts, `T` tokens that are still to be read, `C` columns of a cache, `K` columns and tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gritrag.model.context import Context
from gritrag.model.placing import cells


class Inputs(NamedTuple):
    """The first forward over a batch of contexts whose states are in the cache.

    Args:
        ids, positions: int64 `[B, T]`, padded on the left.
        mask: bool, True where attention is allowed: None if that is everything that causality allows, `[B, C + T]` if
            some columns are padding, `[B, 1, T, C + T]` if states stand behind tokens.
        is_real: bool `[B, C + T]`: which columns are no padding; None if all are.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    is_real: torch.Tensor | None


def inputs(contexts: Sequence[Context], device: torch.device) -> Inputs:
    """What is still to be read of each context, beside a cache that `place` has filled."""
    fresh = [context.fresh_ids for context in contexts]
    cached, width = max(context.cached_tokens for context in contexts), max(map(len, fresh))
    ids, positions = (torch.zeros(len(contexts), width, dtype=torch.long) for _ in range(2))
    is_real = torch.zeros(len(contexts), cached + width, dtype=torch.bool)
    for row, context in enumerate(contexts):
        column = width - len(fresh[row])
        ids[row, column:] = torch.tensor(fresh[row])
        positions[row, column:] = torch.tensor(context.fresh_positions)
        is_real[row, cached - context.cached_tokens : cached] = True
        is_real[row, cached + column :] = True
    mask: torch.Tensor | None = None
    if any(context.is_interleaved for context in contexts):
        mask = mask_by_position(contexts, cached, positions, is_real).to(device)
    real = None if bool(is_real.all()) else is_real.to(device)
    return Inputs(ids.to(device), positions.to(device), real if mask is None else mask, real)


def mask_by_position(
    contexts: Sequence[Context], cached: int, positions_BT: torch.Tensor, is_real_BK: torch.Tensor
) -> torch.Tensor:
    """Who sees whom, bool `[B, 1, T, K]`. Columns lie in the order of the cache, not of the context, so that is asked
    of their positions.

    Args:
        contexts: one for each row.
        cached: columns of the states, as `cells` has them.
        positions_BT: of the tokens that are read now.
        is_real_BK: which columns are no padding.
    """
    columns_BK = torch.cat([torch.zeros(len(contexts), cached, dtype=torch.long), positions_BT], dim=1)
    for row, columns, placed in cells(contexts):
        columns_BK[row, columns] = torch.arange(placed.position, placed.position + len(placed.state))
    mask_BTK = is_real_BK[:, None] & (columns_BK[:, None] <= positions_BT[:, :, None])
    # a padding token must see something, or softmax gives NaN, which spreads through everything that it is added to
    width = positions_BT.shape[1]
    own_TK = torch.cat([torch.zeros(width, cached, dtype=torch.bool), torch.eye(width, dtype=torch.bool)], dim=1)
    return (mask_BTK | own_TK)[:, None]
