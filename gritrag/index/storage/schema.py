"""The schema: tables of `catalog.sqlite`, and the one way to connect to it."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gritrag.index.filters import float_of_bits
from gritrag.index.words import FORM, searchable

__all__ = ["WORDS", "Sqlite", "anchor", "connect"]

PAGE_SIZE = 4096
BUSY_MS = 5000  # only a reader's snapshot can keep the one writer waiting, and only when it folds or empties the log

# `documents` is kept narrow: filters run over it, and a table with texts and vectors in it is ten times slower to scan.
SCHEMA = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tokens INTEGER NOT NULL,
    state_key TEXT NOT NULL,
    xxh3 TEXT NOT NULL
);
CREATE INDEX documents_state ON documents (state_key);
CREATE TABLE contents (
    row INTEGER PRIMARY KEY,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    token_ids BLOB NOT NULL,
    vector BLOB NOT NULL
);
CREATE TABLE fields (row INTEGER NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL, value);
CREATE INDEX fields_value ON fields (name, type, value, row);
CREATE INDEX fields_row ON fields (row);
CREATE TABLE states (
    key TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL,
    xxh3 TEXT NOT NULL,
    codec TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    uses REAL NOT NULL,
    used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('generation', 0), ('requests', 0);
"""

# The tokenizer keeps marks (M*) in a word: without its vowels a word of Hindi or Thai would be single consonants.
WORDS = (
    "DROP TABLE IF EXISTS words",
    "DROP TRIGGER IF EXISTS contents_insert",
    "DROP TRIGGER IF EXISTS documents_delete",
    "DROP VIEW IF EXISTS searchable",
    """CREATE VIEW searchable AS SELECT row,
        searchable(CAST(title AS BLOB)) AS title, searchable(CAST(text AS BLOB)) AS text FROM contents""",
    """CREATE VIRTUAL TABLE words USING fts5 (
        title, text, content='searchable', content_rowid='row',
        tokenize="porter unicode61 remove_diacritics 2 categories 'L* M* N* Co'"
    )""",
    """CREATE TRIGGER contents_insert AFTER INSERT ON contents BEGIN
        INSERT INTO words (rowid, title, text) SELECT row, title, text FROM searchable WHERE row = new.row;
    END""",
    """CREATE TRIGGER documents_delete AFTER DELETE ON documents BEGIN
        INSERT INTO words (words, rowid, title, text)
            SELECT 'delete', row, title, text FROM searchable WHERE row = old.row;
        DELETE FROM contents WHERE row = old.row;
        DELETE FROM fields WHERE row = old.row;
    END""",
    f"INSERT OR REPLACE INTO meta VALUES ('words', '{FORM}')",
)
"""What makes the full-text index, empty, with what keeps it in step; in place of one that has terms of another form."""


class Sqlite(sqlite3.Connection):
    """A connection that knows functions of ours."""

    _raised: BaseException | None = None

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement. What a function of ours raises, such as an interrupt (Ctrl-C) that comes
        meanwhile, is raised as it is: SQLite knows only that there was something, which sounds like damage."""
        try:
            return self.execute(sql, parameters).fetchall()
        except sqlite3.OperationalError:
            raised, self._raised = self._raised, None
            if raised is not None:
                raise raised from None
            raise

    def add_function(self, name: str, function: Callable[[Any], Any]) -> None:
        """One of one argument that always gives the same for the same."""

        def told(argument: Any) -> Any:
            try:
                return function(argument)
            except BaseException as error:
                self._raised = error
                raise

        self.create_function(name, 1, told, deterministic=True)


def connect(path: Path, mode: str) -> Sqlite:
    """A connection in autocommit mode, usable from any thread (by one at a time).

    Args:
        path: the SQLite file.
        mode: ``"r"``, ``"rw"``, or ``"rwc"`` to create the file and its tables.

    Raises:
        ValueError: the file is missing, is no catalog, or cannot be read where it lies.
    """
    try:
        if mode == "r":
            return _connect_to_read(path)
        with ExitStack() as on_failure:
            connection = _open(path, f"mode={mode}")
            on_failure.callback(connection.close)
            _prepare(connection, path, mode)
            on_failure.pop_all()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"cannot open {path}: {error}. Is the index complete, and may you write there?") from error
    return connection


def _prepare(connection: Sqlite, path: Path, mode: str) -> None:
    """Settings for a writer, and the tables of a new catalog."""
    if mode == "rwc":
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    journal = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if journal != "wal":  # SQLite takes no for an answer: a full disk, or a file system without shared memory
        raise ValueError(f"cannot open {path}: SQLite can keep no log beside it (journal mode {journal!r})")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # the log is folded in where checksums are written
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    connection.execute("PRAGMA cache_size = -65536")
    connection.execute("PRAGMA trusted_schema = ON")  # else no view calls `searchable`; what else there is does no harm
    if mode == "rwc":
        connection.executescript(f"BEGIN; {SCHEMA} {'; '.join(WORDS)}; COMMIT;")
    connection.execute("SELECT value FROM meta").fetchone()


def anchor(path: Path) -> Sqlite:
    """A read-only connection to keep open beside the writer's, and to close after it.

    SQLite folds its log into the file when the last connection closes, be it because an index was forgotten or because
    of an error, and no checksums are written then. A connection that only reads cannot, and is the last.
    """
    try:
        connection = _open(path, "mode=ro")
        connection.execute("SELECT value FROM meta").fetchone()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"cannot open {path}: {error}. Is the index complete, and may you write there?") from error
    return connection


def _connect_to_read(path: Path) -> Sqlite:
    """Read-only. In a folder where SQLite may not put its shared-memory file, the catalog is read as immutable."""
    connection = _open(path, "mode=ro")
    try:
        connection.execute("SELECT value FROM meta").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            # Immutable means "ignore the log", and this log holds commits that were acknowledged.
            raise ValueError(
                f"{path} was left by a writer that did not close it, in a folder that cannot be written: open the "
                "index once with mode='rw' where it can be written, then read it here"
            ) from None
        connection = _open(path, "mode=ro&immutable=1")
        connection.execute("SELECT value FROM meta").fetchone()
    return connection


def _open(path: Path, query: str) -> Sqlite:
    uri = f"{path.absolute().as_uri()}?{query}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=Sqlite)
    functions: dict[str, Callable[[Any], Any]] = {
        "searchable": lambda data: searchable(data.decode(errors="replace")),  # damaged text may be no UTF-8
        "float_of_bits": float_of_bits,
    }
    for name, function in functions.items():
        connection.add_function(name, function)
    return connection
