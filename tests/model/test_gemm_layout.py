"""Laws of the GEMM layout: both orders of the factors give the same, padding is left away again, choices hold."""

import pytest
import torch
from torch.nn.functional import linear

from gritrag.model.gemm_layout import SIZES, SMALLEST, GemmLayout, weight_first


def weights(numbers: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = int(numbers**0.5) + 1
    return [torch.randn(width, width, generator=generator)]


@pytest.mark.parametrize("rows", range(1, 2 * SIZES[-1]))
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_that_of_linear_whatever_is_chosen(rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, bias = torch.randn(40, 24, generator=generator), torch.randn(40, generator=generator)
    layout = GemmLayout(weights(SMALLEST))
    for chosen in (frozenset(), frozenset(SIZES)):
        layout._chosen[torch.get_num_threads()] = chosen
        for x in (torch.randn(1, rows, 24, generator=generator), torch.randn(24, rows, generator=generator).t()):
            want = linear(x, weight, bias if has_bias else None)
            got = layout(x, weight, bias if has_bias else None)
            assert got.shape == want.shape
            torch.testing.assert_close(got, want)


def test_rows_that_are_filled_up_change_nothing() -> None:
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    torch.testing.assert_close(weight_first(x, weight, 16), x @ weight.t())


def test_small_weights_are_not_measured() -> None:
    layout = GemmLayout([torch.randn(8, 8)])
    assert layout.weight_first == frozenset()


def test_what_was_measured_stands() -> None:
    layout = GemmLayout(weights(SMALLEST))
    chosen = layout.weight_first
    assert chosen <= set(SIZES)
    assert layout.weight_first is chosen
