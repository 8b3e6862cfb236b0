"""An error of an index, by name: what is damaged, and what the system beneath could not do."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ClosedIndex", "DamagedIndex", "ReplacedIndex", "named_errors"]

REMEDY = "restore the index from a copy (`gritrag copy` makes one), or build it anew"
FAILING_DISK = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}


class DamagedIndex(ValueError):  # noqa: N818 - it says what it found, as KeyError's kin do
    """A file of an index is not what was written. Nothing that it says has been used."""

    def __init__(self, path: Path, problem: str, remedy: str = REMEDY) -> None:
        super().__init__(f"{path} is damaged: {problem}; {remedy}")
        self.path = path
        self.problem = problem


class ReplacedIndex(ValueError):  # noqa: N818
    """An index was deleted, moved by others or made anew while it was open: what is read from it is old, what would be
    written is lost, or harms the index that is there now."""

    def __init__(self, root: Path) -> None:
        super().__init__(
            f"the index at {root} has been deleted, moved or made anew since it was opened, or its lock was removed: "
            "open it again"
        )


class ClosedIndex(ValueError):  # noqa: N818
    """An index was used after its `close`."""

    def __init__(self, root: Path) -> None:
        super().__init__(f"the index at {root} is closed: open it again with Index.open")


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as those of Python: a full disk, or one that fails, is an OSError, and damage is damage.

    Raises:
        DamagedIndex: SQLite met a page that makes no sense.
        TimeoutError: others held the catalog for too long.
        OSError: the disk is full (ENOSPC), fails (EIO) or may not be written.
        ClosedIndex: the index has been closed.
        ValueError: an id or a filter is no Unicode text.
    """
    try:
        yield
    except sqlite3.ProgrammingError as error:
        if "closed database" not in str(error):
            raise
        raise ClosedIndex(path.parent) from None
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{error.object!r} holds a lone surrogate ({error.object[error.start]!r}), which is no Unicode text: no "
            "id, name or value of an index has one"
        ) from None
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # text that is no UTF-8 has no code
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, f"the disk is full ({error})", str(path)) from error
        if code in FAILING_DISK:
            raise OSError(errno.EIO, str(error), str(path)) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise TimeoutError(f"{path} was held by other processes for too long: try again") from error
        if code == sqlite3.SQLITE_TOOBIG:
            raise ValueError(f"a document is larger than SQLite holds, 1 GB ({error}): split it") from error
        raise DamagedIndex(path, str(error)) from error
