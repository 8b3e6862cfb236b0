"""Progress bars that another process cannot hold up.

tqdm guards its list of bars, hidden ones too, with a lock that forked processes share; one that is killed while it
makes a bar never gives that lock back, and every later bar of its parent and siblings waits for ever. Bars of ours are
guarded among the threads of one process only: two may write over each other's lines, and neither stops the other.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any, Self

from tqdm.auto import tqdm

__all__ = ["ProgressBar", "ReadingBar", "StagesBar"]

EVERY = 30.0
"""Seconds between two lines where no terminal can show a bar."""

SIZE = os.terminal_size((80, 24))
"""Of a terminal that does not know it."""


class ProgressBar(tqdm):
    """tqdm's bar, in a terminal or a notebook, with a lock of this process alone. Arguments are those of tqdm."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**_size_of(options.get("file") or sys.stderr), **options})


def _size_of(file: Any) -> dict[str, int]:
    """Columns and rows to take for a terminal that says it has none, as in some containers; tqdm would draw nothing."""
    try:
        columns, rows = os.get_terminal_size(file.fileno())
    except (AttributeError, OSError, ValueError):  # no terminal, no file, or closed
        return {}
    return ({} if columns else {"ncols": SIZE.columns}) | ({} if rows else {"nrows": SIZE.lines})


class ReadingBar:
    """How far the reading of files has come: documents, tokens a second, and the time that is left.

    One bar in a terminal; elsewhere, such as in a log, a line from time to time. Counts only what is acknowledged. What
    is left takes as long, byte by byte, as all that the model has read so far: files that are known already, and pass
    in no time, say nothing of it, and one large file after many small ones says little.

    Args:
        size: bytes of all files.
        files: so many.
        leaves: whether the bar stays when it is closed.
    """

    def __init__(self, size: int, files: int, leaves: bool = True) -> None:
        form = "{percentage:3.0f}%|{bar:20}| {desc} [{elapsed}{postfix} left]"
        self._bar = ProgressBar(total=max(1, size), bar_format=form, disable=None, leave=leaves, mininterval=0)
        self._size, self._files = max(1, size), files
        self._done = self._files_done = self.documents = self.tokens = 0
        self._busy = 0.0
        self._told = self._last = time.monotonic()
        self._read, self._reading = 0, 0.0  # bytes of what the model has read, and seconds from one acknowledgement on
        self._bar.set_postfix_str("?", refresh=False)
        self.say(str(self))

    def say(self, what: str) -> None:
        """What is being done before the first file is read."""
        self._bar.set_description_str(what)

    def advance(self, size: int, files: int, documents: int, tokens: int, seconds: float) -> None:
        """So many bytes and files are done; with documents, tokens that the model read, and seconds that it took."""
        self._done, self._files_done = min(self._size, self._done + size), self._files_done + files
        self.documents, self.tokens = self.documents + documents, self.tokens + tokens
        self._busy += seconds
        now = time.monotonic()
        if tokens:
            self._read, self._reading = self._read + size, self._reading + max(seconds, now - self._last)
        self._last = now
        left = self._reading * (self._size - self._done) / self._read if self._read else None
        self._bar.set_description_str(str(self), refresh=False)
        self._bar.set_postfix_str("?" if left is None else ProgressBar.format_interval(left), refresh=False)
        self._bar.update(self._done - self._bar.n)
        if self._bar.disable and now - self._told >= EVERY:
            self._told = now
            time_left = "" if left is None else f", {left / 60:.0f} min left"
            print(f"{self._done / self._size:.0%}: {self}{time_left}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        rate = f", {self.tokens / self._busy:,.0f} tokens/s" if self.tokens and self._busy else ""
        return f"{self._files_done:,}/{self._files:,} files, {self.documents:,} documents{rate}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


class StagesBar:
    """How far work on many bytes has come, and which of its stages it is in.

    Args:
        sizes: bytes of each stage by its name, in their order; what is estimated may be off.
        is_shown: whether there is a bar, on stderr, or nothing.
    """

    def __init__(self, sizes: Mapping[str, int], is_shown: bool) -> None:
        ends = list(accumulate(sizes.values(), initial=0))
        self._spans = dict(zip(sizes, pairwise(ends), strict=True))
        self._done = self._end = 0
        self._total = max(1, ends[-1])
        self._bar = ProgressBar(
            total=self._total, unit="B", unit_scale=True, disable=not is_shown, miniters=1, mininterval=0.1
        )

    def begin(self, stage: str) -> None:
        """All stages before this one are done."""
        start, self._end = self._spans[stage]
        self._reach(start)
        self._bar.set_description(stage)

    def advance(self, size: int) -> None:
        """So many more bytes of this stage are done."""
        self._reach(min(self._end, self._done + size))

    def _reach(self, done: int) -> None:
        self._bar.update(done - self._done)
        self._done = done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        if error is None:
            self._reach(self._total)
        self._bar.close()


def _own_lock() -> None:
    ProgressBar.set_lock(threading.RLock())


_own_lock()
os.register_at_fork(after_in_child=_own_lock)  # another thread may have held the parent's
