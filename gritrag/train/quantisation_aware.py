"""Training that knows what it is shipped as: forward and backward with the weights that a ternary adapter leaves.

Gradients taken there go to the weights in full, which the optimizer changes (straight-through estimator: Bengio et al.
2013, section 3; for weights of few values: Li et al. 2016, ternary weight networks, arXiv 1605.04711, section 2.3).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from gritrag.model.ternary import rounded
from gritrag.model.weight_change import linear_layers


class QuantisationAware:
    """While it is entered, the linear layers of a model hold what a ternary adapter would leave of them.

    Args:
        lm: with the weights that the adapter will be added to; those it has later are what is rounded.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        self._layers = linear_layers(lm)
        self._base = {name: layer.weight.detach().clone() for name, layer in self._layers.items()}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Forward and backward belong inside, the optimizer's step outside."""
        whole = {name: layer.weight.data for name, layer in self._layers.items()}
        try:
            for name, layer in self._layers.items():
                base_OI = self._base[name]
                layer.weight.data = base_OI + rounded(whole[name].float() - base_OI.float()).to(base_OI)
            yield
        finally:
            for name, layer in self._layers.items():
                layer.weight.data = whole[name]
