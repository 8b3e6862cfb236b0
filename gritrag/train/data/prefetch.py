"""Steps made ahead of their time by other processes, so that a fast device does not wait for texts to be tokenised."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset

from gritrag.train.data.mixture import Mixture
from gritrag.train.data.steps import ChatStep, RetrievalStep

PREFETCHED = 4
"""Steps that each process has ready."""


class Prefetch:
    """The steps of a mixture in order, the same as it makes itself.

    Args:
        mixture: it makes step n of n alone, so any process can.
        workers: processes; with 0, a step is made when it is asked for.
        end: no step of this number or above is asked for.

    Raises:
        ValueError: this system cannot fork processes.
    """

    def __init__(self, mixture: Mixture, workers: int, end: int) -> None:
        if workers and "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError(f"data.workers={workers}: this system does not fork processes; use data.workers=0")
        self._mixture, self._workers, self._end = mixture, workers, end
        self._next = -1
        self._made: Iterator[RetrievalStep | ChatStep] = iter(())

    def step(self, number: int) -> RetrievalStep | ChatStep:
        """Step `number`, from 0; soonest where they are asked for one after the other."""
        if not self._workers:
            return self._mixture.step(number)
        if number != self._next:
            self._made = iter(self._loader(range(number, self._end)))
        self._next = number + 1
        return next(self._made)

    def _loader(self, numbers: range) -> "DataLoader[Any]":
        return DataLoader(
            cast("Dataset[Any]", _Steps(self._mixture)),
            batch_size=None,
            sampler=cast("Sequence[int]", numbers),
            num_workers=self._workers,
            prefetch_factor=PREFETCHED,
            collate_fn=cast("Callable[[list[Any]], Any]", _as_it_is),
            multiprocessing_context="fork",  # what a mixture holds is not sent, and the device is not touched
        )


class _Steps:
    """What a `DataLoader` takes for a data set."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture

    def __getitem__(self, number: int) -> RetrievalStep | ChatStep:
        return self._mixture.step(number)


def _as_it_is(step: RetrievalStep | ChatStep) -> RetrievalStep | ChatStep:
    return step
