"""Attention as layers compute it: over any number of tokens what a plain product in float32 gives."""

from itertools import product

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gritrag.model.layers import CAUSAL_BLOCK, AttentionMask

HEADS, GROUPS, SIZE, SCALE = 2, 3, 16, 0.25


@pytest.mark.parametrize(
    ("tokens", "rows"),
    list(product((2, CAUSAL_BLOCK - 1, CAUSAL_BLOCK, CAUSAL_BLOCK + 1, 3 * CAUSAL_BLOCK + 5), (1, 3))),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_attention_is_that_of_one_product_in_float32(tokens: int, rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(tokens)
    query = torch.randn(rows, tokens, HEADS * GROUPS, SIZE).to(dtype)
    key, value = (torch.randn(rows, tokens, HEADS, SIZE).to(dtype).transpose(1, 2) for _ in range(2))

    found = AttentionMask(is_causal=True, in_blocks=True).attend(query, key, value, SCALE)

    expected = scaled_dot_product_attention(
        query.float().transpose(1, 2), key.float(), value.float(), is_causal=True, scale=SCALE, enable_gqa=True
    )
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), expected.transpose(1, 2).reshape(rows, tokens, -1), atol=tolerance, rtol=tolerance
    )


def test_no_token_sees_a_later_one() -> None:
    torch.manual_seed(0)
    tokens = 2 * CAUSAL_BLOCK + 3
    query = torch.randn(1, tokens, HEADS * GROUPS, SIZE).bfloat16()
    key, value = (torch.randn(1, HEADS, tokens, SIZE).bfloat16() for _ in range(2))
    before = AttentionMask(is_causal=True, in_blocks=True).attend(query, key, value, SCALE)
    changed = CAUSAL_BLOCK + 7
    key[:, :, changed:], value[:, :, changed:] = 5.0, -5.0

    after = AttentionMask(is_causal=True, in_blocks=True).attend(query, key, value, SCALE)

    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed:], after[:, changed:])
