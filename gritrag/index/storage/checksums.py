"""Checksums: what the catalog's file has to be, page by page, and how far its log has to reach.

SQLite believes every page that it reads: a flipped bit in a table, an index over it or the words of the full-text index
changes answers in silence. So a small file beside the catalog, written anew with every commit, holds xxh3-64 of every
page and the place in the log where the last acknowledged commit ends. All of it is compared when an index is opened; of
a large catalog that is only read, the pages are compared in the background (see `audit`).
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import xxhash

from gritrag.index.errors import DamagedIndex
from gritrag.index.storage.durable import PLAIN, read_file, replace_files, sync
from gritrag.index.storage.log import Log, LogEnd, read_log

__all__ = [
    "ChecksumWriter",
    "Checksums",
    "Stopped",
    "check_catalog",
    "check_shape",
    "first_checksums",
    "hold",
    "let_go",
]

NAME = "catalog.checksums"
DIGEST_BYTES = 16
HEADER_LIMIT = 4096
BATCH_BYTES = 1 << 24
ATTEMPTS = 3
PAUSE_SECONDS = 0.002
LOCK_BYTE = 1 << 30
"""SQLite locks bytes from here on. It neither reads nor writes the page that holds them, so nothing is known of it."""

Folding = Literal["no", "begun", "done"]


class Checksums(NamedTuple):
    """What the catalog is at a commit.

    Args:
        page_size: bytes of a page.
        pages: xxh3-64 of every page, uint64. While folding has begun they are those of when it will be done.
        log: where the log has to reach; None where the file alone holds everything.
        folding: whether SQLite may be copying the log into the file (``"begun"``), or has done so while a reader kept
            the log from being emptied (``"done"``). Then the file may stand without its log.
    """

    page_size: int
    pages: np.ndarray
    log: LogEnd | None = None
    folding: Folding = "no"

    def save(self, root: Path) -> None:
        """Write `catalog.checksums` durably."""
        header = {"pages": len(self.pages), "page_size": self.page_size, "log": self.log, "folding": self.folding}
        data = json.dumps(header).encode() + b"\n" + self.pages.astype("<u8").tobytes()
        replace_files([(root / NAME, data + xxhash.xxh3_128_digest(data))])
        sync(root)

    @classmethod
    def load(cls, root: Path, catalog_bytes: int) -> Self:
        """Those of the index at `root`. `catalog_bytes` bounds what is read: no page has less than 512 bytes."""
        path = root / NAME
        try:
            # twice as long, because a log may hold as many pages again, and then some for a small catalog
            data = read_file(path, HEADER_LIMIT + 8 * (catalog_bytes // 256 + (1 << 20)))
        except OSError as error:
            raise DamagedIndex(path, error.strerror or str(error)) from error
        data, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if xxhash.xxh3_128_digest(data) != digest:
            raise DamagedIndex(path, "its checksum is not that of its content")
        header, _, pages = data.partition(b"\n")
        content = json.loads(header)
        salts, frames, sums = content["log"] or ((0, 0), 0, (0, 0))
        end = LogEnd(tuple(salts), frames, tuple(sums)) if content["log"] else None
        return cls(content["page_size"], np.frombuffer(pages, "<u8"), end, content["folding"])

    def same_as(self, other: "Checksums") -> bool:
        """Whether nothing was committed or folded in between."""
        return (self.log, self.folding) == (other.log, other.folding) and np.array_equal(self.pages, other.pages)

    def after(self, log: Log) -> np.ndarray:
        """The pages as they are once `log` has been folded in."""
        pages = np.zeros(log.size, np.uint64)
        pages[: len(self.pages)] = self.pages[: log.size]
        for page, digest in log.pages.items():
            if page <= log.size:
                pages[page - 1] = digest
        return pages


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Whoever wanted to know the result of a check no longer does."""


def check_catalog(
    catalog: Path, descriptor: int, attempts: int = ATTEMPTS, stopping: threading.Event | None = None
) -> Checksums:
    """Compare the catalog's file (open as `descriptor`) and its log with the checksums, and return these.

    A writer may be at work meanwhile: where something does not fit and the checksums have changed since, all is read
    again, up to so many times.

    Raises:
        DamagedIndex: they differ; the message names the file, and how many pages of it.
        Stopped: `stopping` was set.
    """
    checksums = Checksums.load(catalog.parent, os.fstat(descriptor).st_size)
    for attempt in range(attempts):
        try:
            _check(catalog, descriptor, checksums, stopping)
            break
        except DamagedIndex:
            time.sleep(0.01 * min(attempt, ATTEMPTS))
            again = Checksums.load(catalog.parent, os.fstat(descriptor).st_size)
            if attempt == attempts - 1 or (again.same_as(checksums) and checksums.folding == "no"):
                raise
            checksums = again
    return checksums


def check_shape(catalog: Path, descriptor: int) -> Checksums:
    """As `check_catalog`, but of the file's pages only the first, which says what kind of file it is, and how many
    there are; what takes no time however large the catalog."""
    for attempt in range(ATTEMPTS):
        checksums = Checksums.load(catalog.parent, os.fstat(descriptor).st_size)
        try:
            _check_log(catalog, checksums, set())
            size = os.fstat(descriptor).st_size
            if checksums.log is None and checksums.folding == "no":
                first = xxhash.xxh3_64_intdigest(os.pread(descriptor, checksums.page_size, 0))
                if size != len(checksums.pages) * checksums.page_size or first != checksums.pages[0]:
                    raise DamagedIndex(catalog, f"it has {size} bytes, or another first page than was written")
            break
        except DamagedIndex:
            time.sleep(0.01 * attempt)
            if attempt == ATTEMPTS - 1:
                raise
    return checksums


def _check(catalog: Path, descriptor: int, checksums: Checksums, stopping: threading.Event | None) -> None:
    pages = hash_pages(descriptor, checksums.page_size, stopping)
    wrong = _differing(pages, checksums.pages, checksums.folding == "begun") - {LOCK_BYTE // checksums.page_size + 1}
    if wrong := wrong - _check_log(catalog, checksums, wrong):
        raise DamagedIndex(catalog, f"{len(wrong)} of {len(checksums.pages)} pages are not what was written")


def _check_log(catalog: Path, checksums: Checksums, wrong: set[int]) -> set[int]:
    """Compare the log's end with the checksums; return the pages that SQLite takes from the log. `wrong` are pages of
    the file that are not as written, which a log that is gone cannot explain."""
    if checksums.log is None:
        covered: set[int] = set()
    else:
        path = catalog.with_name(f"{catalog.name}-wal")
        log = read_log(path, frames=checksums.log.frames)
        if log is not None and log.end == checksums.log:
            # what SQLite reads from the log, it does not read from the file
            covered = set() if checksums.folding == "done" else set(log.pages)
        elif checksums.folding == "no" or wrong or (log is not None and log.end.salts == checksums.log.salts):
            raise DamagedIndex(path, "it ends before the last acknowledged commit")
        else:
            covered = set()
    return covered


def _differing(found: np.ndarray, expected: np.ndarray, shrinking: bool) -> set[int]:
    """Numbers, from 1, of pages that are missing, too many or other than expected."""
    common = min(len(found), len(expected))
    wrong = set((np.flatnonzero(found[:common] != expected[:common]) + 1).tolist())
    longest = len(expected) if shrinking else max(len(found), len(expected))
    return wrong | set(range(common + 1, longest + 1))


def hash_pages(descriptor: int, page_size: int, stopping: threading.Event | None = None) -> np.ndarray:
    """xxh3-64 of every page of an open file, uint64; a torn last page counts as one."""
    return np.fromiter(
        (
            xxhash.xxh3_64_intdigest(batch[start : start + page_size])
            for batch in _batches(descriptor, BATCH_BYTES // page_size * page_size, stopping)
            for start in range(0, len(batch), page_size)
        ),
        np.uint64,
    )


def _batches(descriptor: int, size: int, stopping: threading.Event | None) -> Iterator[memoryview]:
    offset = 0
    while batch := os.pread(descriptor, size, offset):
        offset += len(batch)
        yield memoryview(batch)
        if stopping is not None and stopping.wait(PAUSE_SECONDS):  # a search has the processor to itself meanwhile
            raise Stopped


class ChecksumWriter:
    """The writer's side: writes checksums with every commit, and folds the log into the file when it is time.

    SQLite never does that of itself (see `schema`), so pages of the file change only where the checksums say so.
    """

    def __init__(self, catalog: Path, checksums: Checksums) -> None:
        """For a catalog that SQLite has opened, and with that recovered. `checksums` are those from before."""
        self._root = catalog.parent
        self._log_path = catalog.with_name(f"{catalog.name}-wal")
        self._checksums = checksums
        self._log = read_log(self._log_path)
        self._knows_log = True
        self._is_behind = False

    @property
    def log_bytes(self) -> int:
        """Bytes of pages in the log that are not yet in the file."""
        return 0 if self._log is None else self._log.end.frames * self._checksums.page_size

    @property
    def file_bytes(self) -> int:
        """Bytes of the file without its log."""
        return len(self._checksums.pages) * self._checksums.page_size

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Around a commit. Where an interrupt keeps `committed` from being called after it, `catch_up` does that."""
        self._is_behind = True
        with self._unless_it_fails():
            yield

    def catch_up(self) -> None:
        """Acknowledge a commit behind which there was an interrupt: before the next one, or the log is folded."""
        if self._is_behind:
            self.committed()

    def committed(self) -> None:
        """Acknowledge the commits that the log holds by now."""
        with self._unless_it_fails():
            self._knows_log = False
            self._log = read_log(self._log_path, self._log)
            self._knows_log = True
            if self._log is not None:
                self._save(self._checksums._replace(log=self._log.end, folding="no"))
            self._is_behind = False

    @contextmanager
    def _unless_it_fails(self) -> Iterator[None]:
        """What a commit that failed has left in the log counts nothing; an interrupt tells nothing of it."""
        try:
            yield
        except Exception:
            self._is_behind = False
            raise

    def fold(self, checkpoint: Callable[[], Sequence[int]]) -> bool:
        """Copy the log into the file and empty it; False where a reader's snapshot is still in the way.

        `checkpoint` is SQLite's, in its mode TRUNCATE: it returns (busy, frames, frames copied). Where it dies
        half-way, the pages that it was to write are known already, and the log still has them.
        """
        self.catch_up()
        if not self._knows_log:  # reading it has failed; who opens the index next will read it
            return False
        if self._log is None:
            return not checkpoint()[0]
        self._save(self._checksums._replace(pages=self._checksums.after(self._log), log=self._log.end, folding="begun"))
        busy, frames, copied = checkpoint()
        if not busy:
            self._log = None
            self._save(self._checksums._replace(log=None, folding="no"))
        elif frames == copied:
            self._save(self._checksums._replace(folding="done"))
        return not busy

    def _save(self, checksums: Checksums) -> None:
        checksums.save(self._root)
        self._checksums = checksums


def first_checksums(catalog: Path) -> None:
    """Write the checksums of a catalog that has just been made, and has no log, as it is."""
    descriptor = hold(catalog)
    try:
        page_size = int.from_bytes(os.pread(descriptor, 2, 16), "big")  # a field of the file's header
        Checksums(page_size, hash_pages(descriptor, page_size)).save(catalog.parent)
    finally:
        let_go(descriptor)


# POSIX drops all locks that a process holds on a file as soon as it closes any descriptor of it, and SQLite's locks on
# the catalog are of that kind. So all who look at a file in one process share a descriptor; the last of them closes it.
_held: dict[tuple[int, int], tuple[int, int]] = {}
_holding = threading.Lock()


def hold(path: Path) -> int:
    """A descriptor to read a catalog by, until as many calls of `let_go`. A ValueError where there is no plain file."""
    with _holding:
        try:
            status = path.lstat()
            key = status.st_dev, status.st_ino
            descriptor, users = _held.get(key) or (os.open(path, PLAIN), 0)
        except OSError as error:
            raise ValueError(f"cannot open {path}: {error.strerror}. Is the index complete?") from error
        _held[key] = descriptor, users + 1
    return descriptor


def let_go(descriptor: int) -> None:
    """The caller needs it no more: its own connection to the catalog is closed."""
    with _holding:
        key, users = next((key, users) for key, (held, users) in _held.items() if held == descriptor)
        if users == 1:
            del _held[key]
            os.close(descriptor)
        else:
            _held[key] = descriptor, users - 1
