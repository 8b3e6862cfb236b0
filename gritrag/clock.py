"""Clock: how long each part of an answer took."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from gritrag.records import Timings


class Clock:
    """Seconds since the call, in parts."""

    def __init__(self) -> None:
        self.parts = {"retrieve": 0.0, "load": 0.0, "place": 0.0}
        self._start = self._last = perf_counter()

    def lap(self, part: str) -> None:
        """What was done since the last lap is this part."""
        now = perf_counter()
        self.parts[part], self._last = now - self._last, now

    def first_token(self) -> None:
        """A token is there; only the first counts."""
        self.parts.setdefault("first_token", perf_counter() - self._start)

    def timings(self) -> Timings:
        """When all is done."""
        return Timings(**self.parts, total=perf_counter() - self._start)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What the caller does with what it was given is not our time."""
        since = perf_counter()
        yield
        passed = perf_counter() - since
        self._start, self._last = self._start + passed, self._last + passed
