"""A connection: the one way in which an index talks to its SQLite file.

It writes checksums with every commit, takes snapshots and names errors. It knows pages, never tables; those are the
catalog's.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from gritrag.index.errors import DamagedIndex, ReplacedIndex, named_errors
from gritrag.index.storage.audit import AT_ONCE_BYTES, Audit
from gritrag.index.storage.checksums import (
    ChecksumWriter,
    check_catalog,
    check_shape,
    first_checksums,
    hold,
    let_go,
)
from gritrag.index.storage.durable import sync
from gritrag.index.storage.schema import anchor, connect

__all__ = ["Connection"]

LOG_BYTES = 1 << 26  # beyond this, and a quarter of the file, a commit folds the log in


class Connection:
    """All threads share it, one at a time; writes happen inside `transaction`."""

    def __init__(
        self, path: Path, mode: str, at_once: bool = False, may_write: Callable[[], bool] | None = None
    ) -> None:
        """Open the SQLite file at `path`; `mode` is that of `schema.connect`. `may_write` tells whether the right to
        write is still there: what is at `path` may be another file by now.

        Pages are compared with their checksums now. Those of a large file that is only read are compared in the
        background, unless they are wanted `at_once`: a writer would make damage good by folding it into new pages.

        Raises:
            DamagedIndex: the file or its log is not what was last committed.
            ValueError: it cannot be opened.
        """
        self.path = path
        self.lock = threading.RLock()
        self._pid = os.getpid()
        self._may_write = may_write
        self._checksums: ChecksumWriter | None = None
        self._in_block = False
        with ExitStack() as closing:
            if mode == "rwc":
                connect(path, mode).close()
                first_checksums(path)
            self._file = hold(path)
            closing.callback(let_go, self._file)
            self._has_links = os.fstat(self._file).st_nlink > 0  # which some file systems do not count
            in_background = mode == "r" and not at_once and os.fstat(self._file).st_size > AT_ONCE_BYTES
            checksums = (check_shape if in_background else check_catalog)(path, self._file)
            self._audit = Audit(path, self._file) if in_background else None
            if self._audit is not None:
                closing.callback(self._audit.stop)
            if mode != "r":
                self._anchor = anchor(path)
                closing.callback(self._anchor.close)
            try:
                self._connection = connect(path, "r" if mode == "r" else "rw")
            except ValueError:
                if self._audit is not None:  # what SQLite cannot make sense of may be damaged
                    self._audit.wait()
                    self._audit.require_whole()
                raise
            closing.callback(self._connection.close)
            if mode != "r":
                self._checksums = ChecksumWriter(path, checksums)
            self._close = weakref.finalize(self, _close, closing.pop_all(), self._pid)
        if self._checksums is not None and self._checksums.log_bytes:  # of a writer that died
            self.fold()

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return not self._close.alive

    @property
    def is_replaced(self) -> bool:
        """Whether the file has been deleted while it was open, perhaps for another of its name, or its writer has lost
        the right to write. The system keeps it for those who have it open, so SQLite would go on with it and never say
        so, while checksums would go to what is at its path now."""
        with self.lock:
            if not self._close.alive:
                return False
            is_deleted = self._has_links and os.fstat(self._file).st_nlink == 0
            return is_deleted or (self._may_write is not None and not self._may_write())

    def close(self) -> None:
        """Fold the log in, if writable, and let go of the file. A second call does nothing."""
        with self.lock:
            try:
                if self._close.alive and os.getpid() == self._pid and not self.is_replaced and self.fold():
                    self._anchor.close()  # nothing is left to fold, so SQLite may tidy up behind itself
            finally:
                self._close()

    def nbytes(self) -> int:
        """Bytes of the file and of its log."""
        total = self.path.stat().st_size
        with suppress(FileNotFoundError):  # the last to close it removes its log
            total += self.path.with_name(f"{self.path.name}-wal").stat().st_size
        return total

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement."""
        self._require_own_process()
        if self._audit is not None:
            self._audit.require_whole()
        with self.lock, named_errors(self.path):
            self._require_own_file()
            return self._connection.rows(sql, parameters)

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """One statement for each of `rows`."""
        with self.lock:
            self._connection.executemany(sql, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block is on disk when it ends, or none of it."""
        assert self._checksums is not None
        self._require_own_process()
        with self.lock, named_errors(self.path):
            self._require_own_file()
            if self._in_transaction():
                raise ValueError("a snapshot of this index is open in this thread: write after it has ended")
            self._checksums.catch_up()
            with self._block("BEGIN IMMEDIATE"):
                yield
                with self._checksums.expecting():
                    self._connection.execute("COMMIT")
            self._checksums.committed()
            if self._checksums.log_bytes > max(LOG_BYTES, self._checksums.file_bytes // 4):
                self.fold()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read in the block is of one commit. Other threads wait for its end."""
        self._require_own_process()
        with self.lock, named_errors(self.path):
            if self._in_transaction():
                yield
                return
            with self._block("BEGIN"):
                yield

    @contextmanager
    def _block(self, begin: str) -> Iterator[None]:
        """A transaction of SQLite's; what is not committed when the block ends, or fails, is rolled back."""
        # an interrupt (Ctrl-C) that comes while SQLite works is raised as soon as it is done, so it begins inside `try`
        self._in_block = True
        try:
            self._connection.execute(begin)
            yield
        finally:
            self._in_block = False  # first: where an interrupt keeps the next lines from running, later calls roll back
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    @property
    def in_snapshot(self) -> bool:
        """Whether this thread is inside of `snapshot`, where it cannot write."""
        with self.lock:
            return self._close.alive and self._in_transaction()

    def fold(self) -> bool:
        """Move what the log holds into the file and empty the log; False if a reader's snapshot is in the way."""
        if self._checksums is None:
            return False
        with self.lock:
            return self._checksums.fold(lambda: self.execute("PRAGMA wal_checkpoint (TRUNCATE)")[0])

    def shrink(self) -> None:
        """Give the space of deleted rows back to the file system."""
        assert self._checksums is not None
        with self.lock:
            self._checksums.catch_up()
            with self._checksums.expecting():
                self.execute("VACUUM")
            self._checksums.committed()
            self.fold()

    def copy(self, path: Path) -> None:
        """Make a catalog at `path` that holds what this one does at one commit, and no garbage."""
        self.execute("VACUUM INTO ?", (os.fspath(path),))
        connect(path, "rw").close()  # which makes it one that keeps a log
        sync(path)
        first_checksums(path)

    def problem(self) -> str | None:
        """What is wrong with the pages of the file and with its log; None if nothing is."""
        try:
            lines = [line for (line,) in self.execute("PRAGMA integrity_check") if line != "ok"]
            check_catalog(self.path, self._file)
        except DamagedIndex as damage:
            return str(damage)
        return "; ".join(lines) or None

    def _in_transaction(self) -> bool:
        if self._connection.in_transaction and not self._in_block:  # of a block that an interrupt kept from ending
            self._connection.execute("ROLLBACK")
        return self._connection.in_transaction

    def _require_own_file(self) -> None:
        if self.is_replaced:
            raise ReplacedIndex(self.path.parent)

    def _require_own_process(self) -> None:
        if os.getpid() != self._pid:
            raise ValueError(
                f"the index at {self.path.parent} was opened by process {self._pid} and this is its child "
                f"{os.getpid()}: SQLite does not survive a fork, open the index anew with Index.open in each process"
            )


def _close(closing: ExitStack, pid: int) -> None:
    """Also for an index that was dropped without `close`; in a forked child it is the parent's, and left alone."""
    if os.getpid() == pid:
        closing.close()
    else:
        _of_parents.append(closing)


_of_parents: list[ExitStack] = []
