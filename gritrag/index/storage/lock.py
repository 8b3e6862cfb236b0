"""The writer's lock: at most one process (and one Index object) writes an index at a time."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from gritrag.index.storage.durable import read_file, write_new

__all__ = ["WriterLock"]


class WriterLock:
    """Holds the file `lock`; `lock.pid` tells others who does. The system frees it when the holder dies.

    `inherited` says that the one before did die: its `lock.pid` was still there.
    """

    def __init__(self, root: Path) -> None:
        """Take the lock of the index at `root`, or raise a ValueError that says who has it or why it cannot be had."""
        # The number is kept beside the lock because some versions of filelock empty the file they try to lock.
        self._pid = root / "lock.pid"
        self._owner = os.getpid()
        self._lock = FileLock(root / "lock", timeout=0, thread_local=False)
        self._file = root / "lock"
        try:
            self._lock.acquire()
            self._held = self._file.stat()
            self.inherited = os.path.lexists(self._pid)
            write_new(self._pid, f"{self._owner}\n".encode())
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

    @property
    def is_ours(self) -> bool:
        """False in a forked child: the lock is its parent's."""
        return os.getpid() == self._owner

    @property
    def is_there(self) -> bool:
        """Whether it still keeps others out: not where the file has been removed, or its folder moved. What has that
        name now may be another writer's, or belong to another index."""
        try:
            return os.path.samestat(self._file.stat(), self._held)
        except OSError:
            return False

    def release(self) -> None:
        """Let the next writer in; nothing where the lock is another process's."""
        if not self.is_ours:
            return
        try:
            if self.is_there:
                self._pid.unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _holder(self) -> str:
        try:
            return str(int(read_file(self._pid, 32)))
        except (OSError, ValueError):
            return "unknown"
