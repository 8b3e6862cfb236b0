"""The catalog: one SQLite file that is the truth about an index; every other file is named or derived from it.

A document's row number is never used twice and its row never changes, so anything that remembers row numbers (the
vectors file, a search in another thread) can be stale but never wrong. `N` documents, `D` length of a vector.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from gritrag.index.filters import Compiled, metadata_fields
from gritrag.index.schema import connect
from gritrag.records import Document

__all__ = ["Catalog", "Entry", "StateRow"]

DELETE = "DELETE FROM documents WHERE"
COLUMNS = "id, title, text, metadata, token_ids, vector, state_key"
BOTH = "documents JOIN contents USING (row)"


class StateRow(NamedTuple):
    """What the catalog knows about one state file; `path` is relative to the index."""

    key: str
    path: str
    bytes: int
    xxh3: str
    codec: str
    tokens: int


class Entry(NamedTuple):
    """One document as the catalog holds it. `token_ids` int32 `[T]`, `vector` float32 `[D]`."""

    document: Document
    token_ids: np.ndarray
    vector: np.ndarray
    state_key: str

    def values(self) -> tuple[Any, ...]:
        """In the order of `COLUMNS`."""
        document = self.document
        return (
            document.id,
            document.title,
            document.text,
            metadata_json(document),
            np.ascontiguousarray(self.token_ids, np.int32).tobytes(),
            np.ascontiguousarray(self.vector, np.float32).tobytes(),
            self.state_key,
        )


class Catalog:
    """One SQLite connection that all threads share, one at a time; writes happen inside `transaction`."""

    def __init__(self, path: Path, mode: str) -> None:
        """Open the catalog at `path`; `mode` is that of `schema.connect`."""
        self.lock = threading.RLock()
        self._connection = connect(path, mode)

    def close(self) -> None:
        with self.lock:
            self._connection.close()

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement."""
        with self.lock:
            return self._connection.execute(sql, parameters).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block is on disk when it ends, or none of it."""
        with self.lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:  # the block or the commit (a full disk) has failed
                    self._connection.execute("ROLLBACK")

    def shrink(self) -> None:
        """Give the space of deleted rows back to the file system."""
        self.execute("VACUUM")
        self.execute("PRAGMA wal_checkpoint (TRUNCATE)")

    # Documents

    def put(self, entries: Iterable[Entry]) -> set[str]:
        """Insert documents; return the state keys of those of the same ids that they replace. Inside a transaction."""
        replaced: set[str] = set()
        for entry in entries:
            values = entry.values()
            replaced.update(key for (key,) in self.execute(f"{DELETE} id = ? RETURNING state_key", values[:1]))
            id, *content, state_key = values
            row = self.execute(
                "INSERT INTO documents (id, tokens, state_key, xxh3) VALUES (?, ?, ?, ?) RETURNING row",
                (id, len(entry.token_ids), state_key, checksum(values)),
            )[0][0]
            self.execute("INSERT INTO contents VALUES (?, ?, ?, ?, ?, ?)", (row, *content))
            fields = metadata_fields(entry.document.metadata)
            self._connection.executemany("INSERT INTO fields VALUES (?, ?, ?, ?)", ((row, *field) for field in fields))
        self._advance()
        return replaced

    def remove(self, rows: Iterable[int]) -> set[str]:
        """Delete documents; return their state keys. Inside a transaction."""
        removed = {key for row in rows for (key,) in self.execute(f"{DELETE} row = ? RETURNING state_key", (int(row),))}
        self._advance()
        return removed

    def _advance(self) -> None:
        self.execute("UPDATE meta SET value = value + 1 WHERE name = 'generation'")

    @property
    def generation(self) -> int:
        """Grows with every change to the set of documents, whichever process made it."""
        return int(self.execute("SELECT value FROM meta WHERE name = 'generation'")[0][0])

    def document_totals(self) -> tuple[int, int]:
        """Number of documents and of their tokens."""
        count, tokens = self.execute("SELECT count(*), total(tokens) FROM documents")[0]
        return count, int(tokens)

    def row_of(self, id: str) -> int | None:
        """The row of the document with that id."""
        found = self.execute("SELECT row FROM documents WHERE id = ?", (id,))
        return found[0][0] if found else None

    def ids(self) -> list[str]:
        """Every id, oldest document first."""
        return [id for (id,) in self.execute("SELECT id FROM documents ORDER BY row")]

    def document(self, row: int) -> Document | None:
        """The document in that row; None where it has been deleted or replaced since."""
        found = self.execute(f"SELECT id, title, text, metadata FROM {BOTH} WHERE row = ?", (row,))
        return _document(*found[0]) if found else None

    def entry(self, id: str) -> Entry | None:
        """Everything about the document with that id."""
        return self._entry("id", id)

    def entry_read_as(self, state_key: str) -> Entry | None:
        """A document whose reading has that key: its vector serves every other text with the same tokens."""
        return self._entry("state_key", state_key)

    def _entry(self, column: str, value: str) -> Entry | None:
        found = self.execute(f"SELECT {COLUMNS} FROM {BOTH} WHERE {column} = ? LIMIT 1", (value,))
        if not found:
            return None
        *text, token_ids, vector, state_key = found[0]
        return Entry(_document(*text), np.frombuffer(token_ids, np.int32), np.frombuffer(vector, np.float32), state_key)

    def damaged_ids(self) -> list[str]:
        """Documents whose row no longer has the checksum it was written with."""
        # As blobs, because damaged text may not even be UTF-8.
        columns = ", ".join(f"CAST({column} AS BLOB)" for column in COLUMNS.split(", "))
        with self.lock:
            rows = self._connection.execute(f"SELECT xxh3, {columns} FROM documents LEFT JOIN contents USING (row)")
            damaged = [values[0] for stored, *values in rows if None in values or stored != checksum(values)]
        return [id.decode(errors="replace") for id in damaged]

    def words_problem(self) -> str | None:
        """What is wrong with the full-text index, None if nothing is. For SQLite the check is a write."""
        try:
            self.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")
        except sqlite3.DatabaseError as error:
            return f"full-text index: {error}"
        return None

    def rebuild_words(self) -> None:
        """Make the full-text index anew from the documents."""
        self.execute("INSERT INTO words (words) VALUES ('rebuild')")

    # Rows

    def rows(self, where: Compiled = ("1", [])) -> np.ndarray:
        """int64 rows of the documents that satisfy a compiled filter, ascending."""
        sql, parameters = where
        found = self.execute(f"SELECT row FROM documents WHERE {sql} ORDER BY row", parameters)
        return np.fromiter((row for (row,) in found), np.int64, len(found))

    def vectors(self, rows: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of `rows` (ascending) that still exist, and their vectors float32 `[N, D]`."""
        if len(rows) and rows[-1] - rows[0] < 4 * len(rows):  # dense enough: one scan beats a query for each row
            sql = "SELECT row, vector FROM contents WHERE row BETWEEN ? AND ? ORDER BY row"
            wanted = set(rows.tolist())
            found = [pair for pair in self.execute(sql, (int(rows[0]), int(rows[-1]))) if pair[0] in wanted]
        else:
            sql = "SELECT row, vector FROM contents WHERE row = ?"
            found = [pair for row in rows.tolist() for pair in self.execute(sql, (row,))]
        kept = np.fromiter((row for row, _ in found), np.int64, len(found))
        return kept, np.frombuffer(b"".join(blob for _, blob in found), np.float32).reshape(len(found), dim)

    def match(self, expression: str, k: int, where: Compiled | None = None) -> list[tuple[int, float]]:
        """The `k` best rows and BM25 scores (higher is better) for an FTS5 expression, filtered first."""
        sql, parameters = where or ("1", [])
        found = self.execute(
            "SELECT documents.row, -bm25(words) AS score FROM words JOIN documents ON documents.row = words.rowid "
            f"WHERE words MATCH ? AND {sql} ORDER BY score DESC, documents.row LIMIT ?",
            (expression, *parameters, k),
        )
        return [(row, score) for row, score in found]

    # States

    def put_states(self, rows: Iterable[StateRow]) -> None:
        """Inside a transaction, after the files are durable."""
        self._connection.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?, ?)", rows)

    def states(self) -> list[StateRow]:
        """Every state file that should exist."""
        return [StateRow(*row) for row in self.execute("SELECT * FROM states ORDER BY key")]

    def state(self, key: str) -> StateRow | None:
        """The file of that key, if one was stored."""
        found = self.execute("SELECT * FROM states WHERE key = ?", (key,))
        return StateRow(*found[0]) if found else None

    def state_totals(self) -> tuple[int, int, int]:
        """Number of state files, their bytes and their tokens."""
        count, size, tokens = self.execute("SELECT count(*), total(bytes), total(tokens) FROM states")[0]
        return count, int(size), int(tokens)

    def forget_states(self, keys: Iterable[str]) -> None:
        """Drop state rows; their files become garbage. Inside a transaction."""
        self._connection.executemany("DELETE FROM states WHERE key = ?", ((key,) for key in keys))

    def forget_unread_states(self, keys: Iterable[str]) -> list[StateRow]:
        """Drop and return those of the state rows `keys` that no document reads any more. Inside a transaction."""
        sql = "DELETE FROM states WHERE key = ?1 AND ?1 NOT IN (SELECT state_key FROM documents) RETURNING *"
        return [StateRow(*row) for key in keys for row in self.execute(sql, (key,))]

    # Meta

    def meta(self, name: str) -> str | None:
        """A named string that belongs to the index."""
        found = self.execute("SELECT value FROM meta WHERE name = ?", (name,))
        return str(found[0][0]) if found else None

    def set_meta(self, name: str, value: str) -> None:
        """Inside a transaction."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def metadata_json(document: Document) -> str:
    """Metadata as it is stored. Raises TypeError or ValueError where it is not JSON (NaN is not)."""
    return json.dumps(dict(document.metadata), ensure_ascii=False, allow_nan=False)


def checksum(values: Sequence[Any]) -> str:
    """xxh3-64 over a row: neither SQLite nor FAISS notices a flipped bit inside a value."""
    digest = xxhash.xxh3_64()
    for value in values:
        data = value.encode() if isinstance(value, str) else value
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _document(id: str, title: str, text: str, metadata: str) -> Document:
    return Document(text, id=id, title=title, metadata=json.loads(metadata))
