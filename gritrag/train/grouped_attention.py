"""Attention of grouped query heads without copies of keys and values, for training on a processor.

Where a mask is given, transformers repeats every key/value head for all of its query heads before the product, and sums
their gradients afterwards. Answers see contexts many times as long as themselves: there the copies cost more than the
attention. Here the query heads of a group stand behind each other as one longer sequence of queries instead.

Shape letters: `B` batch, `T` queries, `C` keys, `H` key/value heads, `G` query heads of each, `K` head dim.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' own ``sdpa``, which it leaves everything to that has no mask or no groups.

    Args:
        query: `[B, H * G, T, K]`.
        key, value: `[B, H, C, K]`.
        attention_mask: bool or added to the scores, `[B, 1, T, C]`.

    Returns:
        `[B, T, H * G, K]`.
    """
    batch, query_heads, tokens, head_dim = query.shape
    heads = key.shape[1]
    groups = query_heads // heads
    if attention_mask is None or groups == 1 or attention_mask.shape[1] != 1:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return found
    output = scaled_dot_product_attention(
        query.reshape(batch, heads, groups * tokens, head_dim),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        dropout_p=dropout,
        scale=scaling,
    )
    return output.view(batch, query_heads, tokens, -1).transpose(1, 2).contiguous(), None


def group_attention(lm: PreTrainedModel) -> None:
    """Let a model on a processor that computes attention with ``sdpa`` compute it so, in place."""
    if lm.device.type != "cpu" or lm.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    lm.set_attn_implementation(NAME)
