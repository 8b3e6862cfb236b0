"""Gradients through outputs that many losses share, one chunk in memory at a time (GradCache, Gao et al. 2021).

A function is run over chunks and its outputs are handed out as leaves. Losses of any kind, and any number of them, are
taken on the leaves and back-propagated at once, so their own memory is free before the next is computed. In the end
`backward` carries the gathered gradients through the function, once.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

Chunk = TypeVar("Chunk")


class GradCache(Generic[Chunk]):
    """Runs `function` over `chunks`. `leaves[c][o]` is output `o` of chunk `c`, detached; it gathers its gradient.

    Args:
        function: from a chunk to a tuple of tensors; deterministic.
        chunks: its inputs.
        recompute: run every chunk without gradients first and a second time in `backward`, so that the
            activations of one chunk only are ever held. Gradients are the same either way.
    """

    def __init__(
        self,
        function: Callable[[Chunk], tuple[torch.Tensor, ...]],
        chunks: Sequence[Chunk],
        recompute: bool = False,
    ) -> None:
        self._function, self._chunks, self._recompute = function, chunks, recompute
        self._outputs: list[tuple[torch.Tensor, ...]] = []
        self.leaves: list[tuple[torch.Tensor, ...]] = []
        for chunk in chunks:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not recompute):
                outputs = function(chunk)
            self.leaves.append(tuple(output.detach().requires_grad_(torch.is_grad_enabled()) for output in outputs))
            self._outputs.append(() if recompute else outputs)

    def backward(self) -> None:
        """Back-propagate what the leaves have gathered into the parameters; may be called once."""
        for number, (chunk, leaves) in enumerate(zip(self._chunks, self.leaves, strict=True)):
            gathered = [leaf.grad for leaf in leaves]
            if all(gradient is None for gradient in gathered):
                continue
            outputs = self._function(chunk) if self._recompute else self._outputs[number]
            pairs = [(o, g) for o, g in zip(outputs, gathered, strict=True) if g is not None]
            torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
            self._outputs[number] = ()
