"""GEMM layout: in which order a few rows are multiplied with a weight, by what is faster on this machine.

What a few tokens cost is what reading the weights costs, and the kernels of a processor read them at different speeds
by the order of the factors: `x W^T` and `(W x^T)^T` are the same sums. With two threads of an AMD processor the second
took 0.4 to 0.7 of the time for 1 to 16 rows, if these are filled up to a size that the kernel likes; with one thread
it gained little. So it is measured, at load.

Shape letters: `R` rows, `S` rows filled up, `I` and `O` numbers that go into and come out of a projection.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear, pad

SIZES = (2, 4, 8, 16)
"""Rows are padded with zeros to one of these."""

GAIN = 1.2
"""So many times faster the weight in front must be to be chosen."""

ROUNDS = 3
SMALLEST = 1 << 20
"""Weights with fewer numbers than this stay in the cache of the processor, and either order will do."""


class GemmLayout:
    """Which sizes go with the weight in front. For each number of threads it is measured once.

    Args:
        weights: `[O, I]` each, to measure on; as many as one forward reads, or enough of them to outgrow the cache.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        is_worth_it = weights[0].device.type == "cpu" and sum(weight.numel() for weight in weights) >= SMALLEST
        self._weights = list(weights) if is_worth_it else []
        self._chosen: dict[int, frozenset[int]] = {}

    @property
    def weight_first(self) -> frozenset[int]:
        """The sizes for which the weight is the first factor, with as many threads as torch has now."""
        threads = torch.get_num_threads()
        if threads not in self._chosen:
            self._chosen[threads] = self._measure()
        return self._chosen[threads]

    def __call__(self, x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        """`x W^T + b` for `x` of shape `[..., I]`."""
        rows = x.shape[:-1].numel()
        if rows > SIZES[-1] or not self._weights:
            return linear(x, weight_OI, bias_O)
        size = next(size for size in SIZES if size >= rows)
        if size not in self.weight_first:
            return linear(x, weight_OI, bias_O)
        y_RO = weight_first(x.reshape(rows, -1), weight_OI, size).view(*x.shape[:-1], -1)
        return y_RO if bias_O is None else y_RO + bias_O

    def _measure(self) -> frozenset[int]:
        with torch.inference_mode():
            return frozenset(size for size in SIZES if self._weights and self._gain(size) > GAIN)

    def _gain(self, size: int) -> float:
        """How many times faster the weight in front is, by the fastest of some rounds of each."""
        x_by_width = {weight.shape[1]: weight.new_ones(size, weight.shape[1]) for weight in self._weights}

        def seconds(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
            began = time.perf_counter()
            for weight in self._weights:
                product(x_by_width[weight.shape[1]], weight)
            return time.perf_counter() - began

        rounds = [(seconds(linear), seconds(lambda x, w: weight_first(x, w, size))) for _ in range(ROUNDS)]
        rows_first, weights_first = (min(column) for column in zip(*rounds, strict=True))
        return rows_first / weights_first


def weight_first(x_RI: torch.Tensor, weight_OI: torch.Tensor, size: int) -> torch.Tensor:
    """`x W^T`, `[R, O]`, computed as `(W x^T)^T` over `size` rows, those that are filled up left away again."""
    rows = len(x_RI)
    filled_SI = x_RI.contiguous() if rows == size else pad(x_RI, (0, 0, 0, size - rows))
    return torch.mm(weight_OI, filled_SI.t())[:, :rows].t()
