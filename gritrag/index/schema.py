"""The schema: tables of `catalog.sqlite`, and the one way to connect to it."""

import sqlite3
from pathlib import Path

__all__ = ["connect"]

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
    path TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    xxh3 TEXT NOT NULL,
    codec TEXT NOT NULL,
    tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('generation', 0);
CREATE VIRTUAL TABLE words USING fts5 (
    title, text, content='contents', content_rowid='row', tokenize='porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER contents_insert AFTER INSERT ON contents BEGIN
    INSERT INTO words (rowid, title, text) VALUES (new.row, new.title, new.text);
END;
CREATE TRIGGER documents_delete AFTER DELETE ON documents BEGIN
    INSERT INTO words (words, rowid, title, text) SELECT 'delete', row, title, text FROM contents WHERE row = old.row;
    DELETE FROM contents WHERE row = old.row;
    DELETE FROM fields WHERE row = old.row;
END;
"""


def connect(path: Path, mode: str) -> sqlite3.Connection:
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
        connection = _open(path, f"mode={mode}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA busy_timeout = 60000")
        connection.execute("PRAGMA cache_size = -65536")
        if mode == "rwc":
            connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
        connection.execute("SELECT value FROM meta").fetchone()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"cannot open {path}: {error}. Is the index complete, and may you write there?") from error
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
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


def _open(path: Path, query: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}", uri=True, isolation_level=None, check_same_thread=False
    )
