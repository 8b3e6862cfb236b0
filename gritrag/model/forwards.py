"""Forwards: by which forward a model reads and decodes, our own step or that of transformers."""

import logging

import torch
from transformers import PreTrainedModel

from gritrag.model.kernels import WithoutCudnn
from gritrag.model.module_forward import Forward, ModuleForward
from gritrag.model.step import Step
from gritrag.model.turning import TurningForward, choose_in_turn, turning_point

logger = logging.getLogger(__name__)


class Forwards:
    """The forwards of one model, shared by what reads and what decodes.

    Args:
        lm: a causal LM.
        step: our own forward; None where only that of transformers will do.
    """

    def __init__(self, lm: PreTrainedModel, step: Step | None) -> None:
        self._lm, self._step = lm, step
        turn = turning_point(lm)
        if turn is not None:
            choose_in_turn(lm)
        self._modules = ModuleForward(lm) if turn is None else TurningForward(lm, turn)
        self._has_warned = False

    @property
    def step(self) -> Step | None:
        """Our own forward; None where only that of transformers will do."""
        if self._step is None or self._step.is_current:
            return self._step
        if not self._has_warned:
            logger.warning("weights have changed since the model was loaded: slow forward, that of transformers")
            self._has_warned = True
        return None

    @property
    def best(self) -> Forward:
        """The fastest there is."""
        forward: Forward = self.step or self._modules
        return WithoutCudnn(forward, self._lm.device) if self._lm.device.type == "cuda" else forward

    @property
    def precision(self) -> str:
        """In which precision weights are, and how products of few rows read them."""
        name = str(self._lm.dtype).removeprefix("torch.")
        if self.step is None or not self.step.packed:
            return name
        return f"{name}, packed" if self._lm.dtype == torch.bfloat16 else f"{name}, of half precision: packed"

    def expect_changes(self) -> None:
        """Weights are about to be trained: say nothing when our own forward is left because they have changed."""
        self._has_warned = True

    def drop_step(self) -> None:
        """Use the forward of transformers from now on: weights are about to change their place."""
        self._step = None
