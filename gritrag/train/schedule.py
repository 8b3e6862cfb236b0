"""The schedule of a run: how much of it is over, the stage that this is in, and the learning rate there."""

import math

from gritrag.train.config import TrainConfig
from gritrag.train.ranks import Ranks
from gritrag.train.snapshot import Progress

__all__ = ["Schedule"]


class Schedule:
    """Goes by steps, seconds or tokens, whichever is furthest; by the same for all processes."""

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        shares = [stage.share for stage in config.stages] or [1.0]
        self._ends = [sum(shares[: number + 1]) / sum(shares) for number in range(len(shares))]

    def fraction(self, progress: Progress) -> float:
        """How much of the run is over; 1 or more where it is done."""
        config = self._config
        by_time = progress.seconds / config.seconds if config.seconds else 0.0
        by_tokens = progress.tokens / config.tokens if config.tokens else 0.0
        return max([progress.step / config.steps, by_tokens, *self._ranks.lists(by_time)])

    def stage(self, progress: Progress) -> int:
        """The stage that a step belongs to that begins now."""
        fraction = self.fraction(progress)
        return sum(fraction >= end - 1e-9 for end in self._ends[:-1])

    def lr_factor(self, config: TrainConfig, progress: Progress) -> float:
        """Warm-up by steps, times the way down to `min_lr_ratio`, over the stage, whose recipe is `config`."""
        warm = min(1.0, (progress.step - progress.stage_start + 1) / (config.warmup_steps + 1))
        start = self._ends[progress.stage - 1] if progress.stage else 0.0
        fraction = min(1.0, (self.fraction(progress) - start) / (self._ends[progress.stage] - start))
        shape = {"constant": 1.0, "linear": 1 - fraction, "cosine": (1 + math.cos(math.pi * fraction)) / 2}
        return warm * (config.min_lr_ratio + (1 - config.min_lr_ratio) * shape[config.schedule])
