"""Signals: how a run is told to stop from outside."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignal:
    """Is set by SIGTERM and SIGINT while it listens, so that a step in progress can end and be saved."""

    is_set = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the place of the handlers of both signals; they are put back at the end."""

        def stop(number: int, frame: object) -> None:
            self.is_set = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
