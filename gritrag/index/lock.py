"""The writer's lock: at most one process (and one Index object) writes an index at a time."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["WriterLock"]


class WriterLock:
    """Holds the file `lock`; `lock.pid` tells others who does. The system frees it when the holder dies."""

    def __init__(self, root: Path) -> None:
        """Take the lock of the index at `root`, or raise a ValueError that says who has it or why it cannot be had."""
        # The number is kept beside the lock because some versions of filelock empty the file they try to lock.
        self._pid = root / "lock.pid"
        self._lock = FileLock(root / "lock", timeout=0, thread_local=False)
        try:
            self._lock.acquire()
            self._pid.write_text(f"{os.getpid()}\n")
        except Timeout:
            raise ValueError(
                f"{root} is being written by process {self._holder()}: wait until it closes the index, "
                "or open it with mode='r'"
            ) from None
        except OSError as error:
            self._lock.release()
            raise ValueError(
                f"{root} cannot be written ({error.strerror}): open it with mode='r', or copy it elsewhere"
            ) from error

    def release(self) -> None:
        """Let the next writer in."""
        self._pid.unlink(missing_ok=True)
        self._lock.release()

    def _holder(self) -> str:
        try:
            return self._pid.read_text().strip() or "unknown"
        except OSError:
            return "unknown"
