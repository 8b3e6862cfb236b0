"""LoRA in training, one product a layer: what a layer computes is `x (W + s B A)^T`, and the sum is taken once a step.

The usual way adds a second, thin product to every layer and reads what the layer puts out three times more. The sum is
kept for as long as none of its parts is changed, so it costs a copy of the linear layers in memory. Gradients are those
of the usual way: none of `W` is taken. Hu et al. 2021 (arXiv 2106.09685) describe the method; nothing here changes it.

Shape letters: `T` tokens, `I` and `O` numbers that go into and come out of a layer, `R` rank.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from torch.nn.functional import linear

from gritrag.model.packed import state_of


class _Product(torch.autograd.Function):
    """`x (W + s B A)^T`, whose backward pass goes through the factors."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, down_RI: torch.Tensor, up_OR: torch.Tensor, sum_OI: torch.Tensor, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, down_RI, up_OR)
        ctx.sum_OI, ctx.scale = sum_OI, scale
        return linear(x, sum_OI)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, down_RI, up_OR = ctx.saved_tensors
        gradient_TO, x_TI = gradient.flatten(0, -2), x.flatten(0, -2)
        of_x = (gradient_TO @ ctx.sum_OI).view_as(x) if ctx.needs_input_grad[0] else None
        of_down = (ctx.scale * (gradient_TO @ up_OR)).T @ x_TI
        of_up = gradient_TO.T @ (x_TI @ (ctx.scale * down_RI).T)
        return of_x, of_down, of_up, None, None


class SummedForward:
    """The forward pass of one of peft's linear layers. Whatever it is not made for, it leaves to peft.

    Args:
        layer: with its adapter.
    """

    def __init__(self, layer: LoraLinear) -> None:
        self._layer: Any = layer
        self._usual = layer.forward
        self._sum_OI: torch.Tensor | None = None
        self._of: tuple[Any, ...] = ()

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer = self._layer
        if args or kwargs or not self._can_sum(x):
            return self._usual(x, *args, **kwargs)
        (name,) = layer.active_adapters
        down, up, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        base = layer.get_base_layer()
        product: torch.Tensor = _Product.apply(x, down, up, self._sum(base.weight, down, up, scale), scale)
        return product if base.bias is None else product + base.bias

    def _can_sum(self, x: torch.Tensor) -> bool:
        layer = self._layer
        if layer.disable_adapters or layer.merged or torch.is_autocast_enabled("cpu"):
            return False
        if len(layer.active_adapters) != 1 or (name := layer.active_adapters[0]) not in layer.lora_A:
            return False
        down, up = layer.lora_A[name], layer.lora_B[name]
        has_variant = name in layer.lora_variant or not isinstance(layer.lora_dropout[name], nn.Identity)
        if has_variant or down.bias is not None or up.bias is not None:
            return False
        parts = (down, up, layer.get_base_layer())
        return all(t.dtype == torch.float32 for t in (x, *(part.weight for part in parts)))

    @torch.no_grad()
    def _sum(self, base_OI: torch.Tensor, down_RI: torch.Tensor, up_OR: torch.Tensor, scale: float) -> torch.Tensor:
        """`W + s B A`, float32 `[O, I]`, from before where all parts are what they were."""
        of = (scale, *(state_of(part) for part in (base_OI, down_RI, up_OR)))
        if self._sum_OI is None or of != self._of:
            self._sum_OI, self._of = torch.addmm(base_OI, up_OR, down_RI, alpha=scale), of
        return self._sum_OI


def sum_layers(lm: nn.Module) -> None:
    """Let every adapted linear layer of a model on a processor compute with the sum, in place."""
    for module in lm.modules():
        if isinstance(module, LoraLinear) and module.get_base_layer().weight.device.type == "cpu":
            module.forward = SummedForward(module)  # type: ignore[method-assign]
