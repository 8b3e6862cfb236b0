"""Fake quantisation: in training, answers see the states that a codec will leave of those that were read.

Gradients pass as if nothing had happened to the numbers (straight-through estimator: Bengio et al. 2013, section 3).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from gritrag.codecs import Cast, get_codec
from gritrag.codecs.int4 import Int4
from gritrag.model.state import DocumentState


class _ThereAndBack(torch.autograd.Function):
    """What a codec left of keys and values, and their gradients as they come."""

    @staticmethod
    def forward(
        ctx: Any, keys: torch.Tensor, values: torch.Tensor, left: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return left[0].to(keys), left[1].to(values)

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
        self._codec = get_codec(name)
        if isinstance(self._codec, Cast):
            raise ValueError(f"codec {name!r} loses nothing; use int8, int4 or transform")

    def __call__(self, states: Sequence[DocumentState]) -> list[DocumentState]:
        """In the forward pass what decoding the written state would give; on a GPU nearly that, of int4."""
        pairs = zip(states, self._left(states), strict=True)
        return [state.with_tensors(*_ThereAndBack.apply(state.keys, state.values, left)) for state, left in pairs]

    def _left(self, states: Sequence[DocumentState]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Codecs compute on the processor. A faster device does not wait for that where one can be approximated; else
        the processor computes with all of its cores."""
        given = [(state.keys.detach(), state.values.detach()) for state in states]
        if not given or given[0][0].device.type == "cpu":
            return [self._codec(*pair) for pair in given]
        if isinstance(self._codec, Int4):
            return [self._codec.approximate(*pair) for pair in given]
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda pair: self._codec(*pair), given))
