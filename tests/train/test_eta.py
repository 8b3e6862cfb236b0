"""How long a run may take, in numbers that no machine has a say in."""

from collections.abc import Callable

import pytest

from gritrag.train.config import TrainConfig
from gritrag.train.eta import mean_sizes, seconds_left
from gritrag.train.snapshot import Progress

Recipe = Callable[..., TrainConfig]
NONE, SOME = Progress(), Progress(step=10, seconds=20.0, tokens=500)


@pytest.mark.parametrize(
    ("ends", "progress", "expected"),
    [
        ({"steps": 100}, NONE, 200.0),
        ({"steps": 100}, SOME, 180.0),
        ({"steps": 100, "tokens": 1000}, NONE, 50.0),  # 40 a step, as told
        ({"steps": 100, "tokens": 1000}, SOME, 20.0),  # 50 a step, as they were
        ({"steps": 100, "tokens": 10**6}, NONE, 200.0),
        ({"steps": 100, "seconds": 30}, SOME, 10.0),
        ({"steps": 100, "tokens": 1000, "seconds": 1000}, SOME, 20.0),
        ({"steps": 10}, SOME, 0.0),
        ({"steps": 100, "seconds": 5}, SOME, 0.0),
        ({"steps": 100, "tokens": 400}, SOME, 0.0),
    ],
)
def test_the_end_that_comes_first_counts(
    recipe: Recipe, ends: dict[str, float], progress: Progress, expected: float
) -> None:
    assert seconds_left(recipe(**ends), progress, seconds_per_step=2.0, tokens_per_step=40.0) == expected


def test_steps_without_documents_have_no_size() -> None:
    assert mean_sizes([]) == (1, 0)
