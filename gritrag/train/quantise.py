"""Fake quantisation: in training, answers see the states that a codec will leave of those that were read.

Gradients pass as if nothing had happened to the numbers (straight-through estimator: Bengio et al. 2013, section 3).
"""

from collections.abc import Sequence
from typing import Any

import torch

from gritrag.quantisers import Quantiser, get_quantiser
from gritrag.train.contexts import StateTensors


class _ThereAndBack(torch.autograd.Function):
    """What a quantiser leaves of keys and values, and their gradients as they come."""

    @staticmethod
    def forward(
        ctx: Any, keys: torch.Tensor, values: torch.Tensor, quantiser: Quantiser
    ) -> tuple[torch.Tensor, torch.Tensor]:
        left_keys, left_values = quantiser(keys, values)
        return left_keys.to(keys), left_values.to(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        keys, values = gradients
        return keys, values, None


class FakeQuantise:
    """Passes states through a codec's arithmetic, and gradients straight through.

    Args:
        name: of the codec, such as ``int4``.

    Raises:
        ValueError: no such codec, or one that loses nothing.
    """

    def __init__(self, name: str) -> None:
        self._quantiser = get_quantiser(name)

    def __call__(self, states: Sequence[StateTensors]) -> list[StateTensors]:
        """In the forward pass exactly what decoding the written state would give."""
        return [StateTensors(*_ThereAndBack.apply(state.keys, state.values, self._quantiser)) for state in states]
