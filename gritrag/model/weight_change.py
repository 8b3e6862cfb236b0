"""The change of linear layers by training: which they are, what they are given, and what a smaller form loses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel


class Extraction(NamedTuple):
    """What a smaller form of a change is and what it lost: norms of the loss over norms of the change.

    `output_error` is of what the layers put out for the inputs that were measured (equal to `weight_error` where none
    were).
    """

    nbytes: int
    weight_error: float
    output_error: float


def linear_layers(lm: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer but the LM head, by name."""
    head = lm.get_output_embeddings() if isinstance(lm, PreTrainedModel) else None
    return {name: m for name, m in lm.named_modules() if isinstance(m, nn.Linear) and m is not head}


@contextmanager
def input_moments(lm: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """Sums of `x x'` over the inputs `x` of every linear layer, float32 `[in, in]`, while the context is open."""
    moments: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].detach().flatten(0, -2).float()
            moments[name] = moments.get(name, 0) + rows.T @ rows

        return add

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in linear_layers(lm).items()]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()
