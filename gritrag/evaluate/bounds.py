"""What a first token from states takes at least here: reading weights and placed states once, and the products.

A forward of a few tokens behind a long context can hardly be faster than memory gives what it reads. Its products with
the weights are measured by themselves, as the model computes them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gritrag.evaluate.machine import fastest, memory_bandwidth
from gritrag.evaluate.statistics import Spread
from gritrag.model.attention import decoder_stack
from gritrag.model.grit import GritModel

KIND = "bound"


def bounds(model: GritModel, states: int, tokens: int) -> dict[str, float]:
    """Measure what bounds the first token of `tokens` that are read behind `states` tokens that are placed.

    Returns:
        ``memory_bytes_per_second``: of reading a buffer larger than the caches, with all threads.
        ``weight_bytes``, ``state_bytes``: that a forward reads. Packed weights are read in 16 bits.
        ``products_seconds``: of the products with the weights, for all tokens, and those of the head for the last.
    """
    pairs = _products(model)

    def work() -> None:
        with torch.inference_mode():
            for weights, product, is_head in pairs:
                product(weights[0].new_ones(1 if is_head else tokens, weights[0].shape[1]))

    bytes_per_number = 2 if model.step is not None and model.step.packed else model.dtype.itemsize
    return {
        "memory_bytes_per_second": memory_bandwidth(model.device),
        "weight_bytes": bytes_per_number * sum(weight.numel() for weights, _, _ in pairs for weight in weights),
        "state_bytes": states * model.state_elements_per_token * model.dtype.itemsize,
        "products_seconds": fastest(work, model.device),
    }


Product = tuple[Sequence[torch.Tensor], Callable[[torch.Tensor], object], bool]
"""Weights `[O, I]` over one input, what multiplies with them, and whether they are the head."""


def _products(model: GritModel) -> list[Product]:
    """Of one forward."""
    head = model.lm.get_output_embeddings().weight
    if model.step is not None and model.step.packed:
        return [(packed.weights, packed, packed.weights[0] is head) for packed in model.step.packed]
    weights = [module.weight for module in decoder_stack(model.lm).modules() if type(module) is nn.Linear]
    return [([weight], lambda x, w=weight: nn.functional.linear(x, w), weight is head) for weight in (*weights, head)]  # type: ignore[misc]


def told(row: Mapping[str, Any], first_token: Sequence[float], tokens: int) -> str:
    """The bounds, and how many times as long the first token takes; `tokens` are read."""
    read = row["weight_bytes"] + row["state_bytes"]
    seconds = read / row["memory_bytes_per_second"]
    times = Spread.of(first_token, 1 / seconds).show(".1f")
    return (
        f"Reading weights ({row['weight_bytes'] / 1e6:,.0f} MB) and placed states ({row['state_bytes'] / 1e6:,.0f} MB) "
        f"once takes {1e3 * seconds:.1f} ms at {row['memory_bytes_per_second'] / 1e9:.1f} GB/s, which reading a large "
        f"buffer reaches here: from hits, the first token takes {times} times as long. The products with the weights "
        f"alone take {1e3 * row['products_seconds']:.1f} ms for the {tokens} tokens that are read."
    )
