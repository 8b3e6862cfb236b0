"""Products of linear layers in bfloat16, on processors with instructions for it; everything else stays float32.

Most of a step is products of activations and weights, and these instructions compute them twice as fast or faster, with
sums in float32. Attention, norms and sums stay float32: on a processor they are no faster in bfloat16. So do weights,
gradients and what the optimizer keeps (mixed precision: Micikevicius et al. 2018, arXiv 1710.03740, section 3.1). A
weight is rounded once, for as long as it is not changed, and its gradient is computed once, from all tokens of a step:
a step runs backward in several chunks, and each would write and add up gradients as large as the model.

Shape letters: `T` tokens, `I` and `O` numbers that go into and come out of a layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from gritrag.model.hardware import has_native_bf16
from gritrag.model.packed import state_of
from gritrag.model.weight_change import linear_layers

MOST_TOKENS = 4096
"""Of a backward pass, whose gradients and activations are kept until a weight's gradient is computed: 2 GB of a model
with 135M parameters."""


class _Product(torch.autograd.Function):
    """`x W^T`, float32, from factors in bfloat16. What is kept for the backward pass is in bfloat16 too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_OI: torch.Tensor,
        half_x: torch.Tensor,
        half_OI: torch.Tensor,
        keep: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> torch.Tensor:
        ctx.save_for_backward(half_x if weight_OI.requires_grad else None)
        ctx.half_OI, ctx.keep = half_OI, keep
        return linear(half_x, half_OI).float()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gradient_TO = gradient.flatten(0, -2).bfloat16()
        of_x = (gradient_TO @ ctx.half_OI).float().view(*gradient.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        if ctx.needs_input_grad[1]:
            ctx.keep(gradient_TO, x.flatten(0, -2))
        return of_x, None, None, None, None


class Rounded:
    """What was rounded last. Layers that read the same activations follow each other: they share one copy, which is
    also what each keeps for its backward pass."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` in bfloat16, without gradients."""
        if self._last is None or self._last[0] is not x or self._last[1] != x._version:
            self._last = (x, x._version, x.detach().bfloat16())
        return self._last[2]

    def clear(self) -> None:
        """Forget it."""
        self._last = None


class HalfForward:
    """The forward pass of one linear layer; `finish` gives its weight the gradient of all backward passes.

    Args:
        layer: with float32 weights.
        rounded: shared by the layers of a model.
    """

    def __init__(self, layer: nn.Linear, rounded: Rounded) -> None:
        self._layer, self._rounded, self._state = layer, rounded, (-1, -1)
        self._half_OI = torch.empty(0)
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight_OI = self._layer.weight
        if (state := state_of(weight_OI)) != self._state:
            self._half_OI, self._state = weight_OI.detach().bfloat16(), state
        product: torch.Tensor = _Product.apply(x, weight_OI, self._rounded(x), self._half_OI, self._keep)
        return product if self._layer.bias is None else product + self._layer.bias

    def _keep(self, gradient_TO: torch.Tensor, x_TI: torch.Tensor) -> None:
        self._pairs.append((gradient_TO, x_TI))
        if sum(len(kept) for _, kept in self._pairs) >= MOST_TOKENS:
            self.finish()

    def finish(self) -> None:
        """Add the gradient of the weight to what it has, and forget what it is computed from."""
        if not self._pairs:
            return
        gradient_TO, x_TI = (torch.cat(tensors) for tensors in zip(*self._pairs, strict=True))
        self._pairs.clear()
        gradient_OI = (gradient_TO.T @ x_TI).float()
        weight = self._layer.weight
        weight.grad = gradient_OI if weight.grad is None else weight.grad + gradient_OI

    def clear(self) -> None:
        """Forget what `finish` would compute."""
        self._pairs.clear()


class HalfProducts:
    """While it is entered, the linear layers of a float32 model compute so, where its processor gains by it; all but
    the LM head. Elsewhere it changes nothing.

    Args:
        lm: its linear layers are those it has now.
    """

    def __init__(self, lm: nn.Module) -> None:
        layers = [layer for layer in linear_layers(lm).values() if type(layer) is nn.Linear]
        kinds = {(layer.weight.device.type, layer.weight.dtype) for layer in layers}
        gains = kinds == {("cpu", torch.float32)} and has_native_bf16(torch.device("cpu"))
        self._rounded = Rounded()
        self._forwards = [(layer, HalfForward(layer, self._rounded)) for layer in layers] if gains else []

    @property
    def is_on(self) -> bool:
        """Whether it changes anything."""
        return bool(self._forwards)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Forward and backward belong inside; weights have their gradients behind it."""
        for layer, forward in self._forwards:
            layer.forward = forward  # type: ignore[method-assign,assignment]
        try:
            yield
            for _, forward in self._forwards:
                forward.finish()
        finally:
            for layer, forward in self._forwards:
                del layer.forward  # the method of its class again
                forward.clear()
            self._rounded.clear()
