"""How large the steps of a run are, and how long it may take (ETA)."""

from collections.abc import Sequence

from gritrag.train.config import TrainConfig
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.snapshot import Progress


def mean_sizes(steps: Sequence[RetrievalStep]) -> tuple[float, float]:
    """Documents of a step, and tokens of its documents and queries."""
    sizes = [(len(s.documents), sum(len(p.ids) for p in [*s.documents, *s.queries])) for s in steps] or [(1, 0)]
    documents, tokens = (sum(column) / len(sizes) for column in zip(*sizes, strict=True))
    return documents, tokens


def seconds_left(config: TrainConfig, progress: Progress, seconds_per_step: float, tokens_per_step: float) -> float:
    """Until whichever end of the run comes first.

    Args:
        seconds_per_step: of the steps that were done, or a guess.
        tokens_per_step: as they are expected where no step was done; else those that were tell.
    """
    seconds = seconds_per_step * (config.steps - progress.step)
    if config.tokens:
        tokens = progress.tokens / progress.step if progress.step else max(1.0, tokens_per_step)
        seconds = min(seconds, seconds_per_step * (config.tokens - progress.tokens) / tokens)
    if config.seconds:
        seconds = min(seconds, config.seconds - progress.seconds)
    return max(0.0, seconds)
