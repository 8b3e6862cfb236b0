"""The catalog: one SQLite file that is the truth about an index; every other file is named or derived from it.

A document's row number is never used twice and its row never changes, so anything that remembers row numbers (the
vectors file, a search in another thread) can be stale but never wrong. `N` documents, `D` length of a vector.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from gritrag.index.errors import DamagedIndex
from gritrag.index.filters import EVERY, Compiled, metadata_fields, rows_query
from gritrag.index.storage.connection import Connection
from gritrag.index.storage.entries import Entry, StateRow, checksum
from gritrag.index.storage.schema import WORDS
from gritrag.index.words import FORM, match_expression, plain_expression
from gritrag.records import Document

__all__ = ["Catalog"]

DELETE = "DELETE FROM documents WHERE"
COLUMNS = "id, title, text, metadata, token_ids, vector, state_key"
BOTH = "documents JOIN contents USING (row)"
AS_BLOBS = ", ".join(f"CAST({column} AS BLOB)" for column in COLUMNS.split(", "))  # damaged text may be no UTF-8

KEPT_ROWS = 2_000_000
"""Of filters that were asked for, all together: 16 MB."""


class Catalog(Connection):
    """The tables. What changes them has to happen inside `transaction`."""

    removed = False
    """Whether documents have been, since the log was last emptied of them."""

    notes_garbage = False
    """Whether keys of states that are dropped are noted until their files are gone; see `garbage`."""

    _digested = (-1, "")
    """The generation of which `digest` has last been asked, and the answer."""

    def __init__(
        self, path: Path, mode: str, at_once: bool = False, may_write: Callable[[], bool] | None = None
    ) -> None:
        super().__init__(path, mode, at_once, may_write)
        self._filtered: dict[str, tuple[int, np.ndarray]] = {}
        """Generation and rows of filters, that asked for last at the end."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with super().transaction():
            try:
                yield
            finally:
                self._filtered.clear()  # of a transaction that is undone, no generation tells

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
            self.execute_many("INSERT INTO fields VALUES (?, ?, ?, ?)", ((row, *field) for field in fields))
        self._advance(bool(replaced))
        return replaced

    def remove(self, rows: Iterable[int]) -> set[str]:
        """Delete documents; return their state keys. Inside a transaction."""
        removed = {key for row in rows for (key,) in self.execute(f"{DELETE} row = ? RETURNING state_key", (int(row),))}
        self._advance(bool(removed))
        return removed

    def _advance(self, removed: bool) -> None:
        """A new generation. Where documents were removed, neither words nor vectors file may keep anything of them."""
        if removed:
            # FTS5 else only notes what is gone. Its own secure-delete is less work, but then asks for SQLite 3.42.
            self.execute("INSERT INTO words (words) VALUES ('optimize')")
            self.execute("DELETE FROM meta WHERE name = 'vectors'")
            self.removed = True
        self.execute("UPDATE meta SET value = value + 1 WHERE name = 'generation'")

    @property
    def generation(self) -> int:
        """Grows with every change to the set of documents, whichever process made it."""
        return int(self.execute("SELECT value FROM meta WHERE name = 'generation'")[0][0])

    def digest(self) -> str:
        """32 hex digits over the contents of all documents, in the order of their rows; new with each generation."""
        with self.snapshot():
            if self._digested[0] != (generation := self.generation):
                rows = self.execute("SELECT xxh3 FROM documents ORDER BY row")
                self._digested = generation, xxhash.xxh3_128_hexdigest("".join(xxh3 for (xxh3,) in rows).encode())
            return self._digested[1]

    def document_totals(self) -> tuple[int, int]:
        """Number of documents and of their tokens."""
        count, tokens = self.execute("SELECT count(*), total(tokens) FROM documents")[0]
        return count, int(tokens)

    def state_keys(self) -> frozenset[str]:
        """Of all readings."""
        return frozenset(key for (key,) in self.execute("SELECT DISTINCT state_key FROM documents"))

    def row_of(self, id: str) -> int | None:
        """The row of the document with that id."""
        found = self.execute("SELECT row FROM documents WHERE id = ?", (id,))
        return found[0][0] if found else None

    def ids(self, where: Compiled = EVERY) -> list[str]:
        """Ids of the documents that satisfy a compiled filter, oldest document first."""
        found = self.execute(f"SELECT id FROM documents WHERE {where.sql} ORDER BY row", where.parameters)
        return [id for (id,) in found]

    def field(self, name: str) -> list[tuple[str, Any]]:
        """Ids of the documents that have a metadata field, and its value there: a string, a number or None."""
        sql = "SELECT documents.id, fields.value FROM fields JOIN documents ON documents.row = fields.row"
        return self.execute(f"{sql} WHERE fields.name = ? ORDER BY fields.row", (name,))

    def document(self, row: int) -> Document | None:
        """The document in that row; None where it has been deleted or replaced since."""
        return next((entry.document for _, entry in self._stored("row = ?", row)), None)

    def entry(self, id: str) -> Entry | None:
        """Everything about the document with that id."""
        return next((entry for _, entry in self._stored("id = ?", id)), None)

    def entry_of(self, document: Document) -> Entry | None:
        """As `entry`, for a document as it was found; None where it is no longer here, or not so."""
        entry = self.entry(document.id)
        return entry if entry is not None and entry.document.content == document.content else None

    def entries(self, ids: Sequence[str]) -> list[Entry]:
        """As `entry`, for all of `ids` at one commit. A ValueError names those that are not there."""
        with self.snapshot():
            found = {id: self.entry(id) for id in ids}
        missing = [id for id, entry in found.items() if entry is None]
        if missing:
            shown = ", ".join(repr(id) for id in missing[:5])
            raise ValueError(f"{len(missing)} of {len(ids)} ids are not in the index: {shown}")
        return [entry for id in ids if (entry := found[id]) is not None]

    def entry_read_as(self, state_key: str) -> Entry | None:
        """A document whose reading has that key: its vector serves every other text with the same tokens."""
        return next((entry for _, entry in self._stored("state_key = ? LIMIT 1", state_key)), None)

    def _stored(self, condition: str, *parameters: Any) -> Iterator[tuple[int, Entry]]:
        """Rows and their documents, each compared with the checksum that it was written with."""
        sql = f"SELECT row, xxh3, {AS_BLOBS} FROM {BOTH} WHERE {condition}"
        for row, stored, *values in self.execute(sql, parameters):
            if stored != checksum(values):
                remedy = "delete it and add it again"
                raise DamagedIndex(
                    self.path, f"document {values[0].decode(errors='replace')!r} is not as written", remedy
                )
            id, title, text, metadata, token_ids, vector, state_key = values
            document = Document(text.decode(), id.decode(), title.decode(), json.loads(metadata))
            arrays = np.frombuffer(token_ids, np.int32), np.frombuffer(vector, np.float32)
            yield row, Entry(document, *arrays, state_key.decode())

    def damaged_ids(self, on_read: Callable[[int], object]) -> list[str]:
        """Documents whose row no longer has the checksum it was written with. `on_read` is told of bytes that were
        read."""
        # one at a time, as all contents may not fit into memory
        damaged = []
        for (row,) in self.execute("SELECT row FROM documents ORDER BY row"):
            sql = f"SELECT xxh3, {AS_BLOBS} FROM documents LEFT JOIN contents USING (row) WHERE row = ?"
            for stored, *values in self.execute(sql, (row,)):
                if None in values or stored != checksum(values):
                    damaged.append(values[0].decode(errors="replace"))
                on_read(sum(len(value) for value in values if value is not None))
        return damaged

    def words_problem(self) -> str | None:
        """What is wrong with the full-text index, None if nothing is. For SQLite the check is a write."""
        try:
            self.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")
        except DamagedIndex:
            return "the full-text index does not fit the documents"
        return None

    def rebuild_words(self) -> None:
        """Make the full-text index anew from the documents. Inside a transaction."""
        self.execute("INSERT INTO words (words) VALUES ('rebuild')")

    @property
    def words_are_current(self) -> bool:
        """Whether the terms of the full-text index are of the form that is made here."""
        return self.meta("words") == FORM

    def renew_words(self) -> None:
        """Make a full-text index of today's form from the documents. Inside a transaction."""
        for statement in WORDS:
            self.execute(statement)
        self.rebuild_words()

    # Rows

    def rows(self, where: Compiled = EVERY) -> np.ndarray:
        """int64 rows of the documents that satisfy a compiled filter, ascending.

        Those of the last filters are kept until a document changes: most applications ask with the same few filters.
        """
        if where == EVERY:
            return self._rows(where)
        key = xxhash.xxh3_128_hexdigest(repr(where).encode(errors="surrogatepass"))
        with self.snapshot():
            generation = self.generation
            known_for, rows = self._filtered.pop(key, (-1, None))
            if rows is None or known_for != generation:
                rows = self._rows(where)
                rows.flags.writeable = False
            self._filtered[key] = generation, rows
            while len(self._filtered) > 1 and sum(len(kept) + 1000 for _, kept in self._filtered.values()) > KEPT_ROWS:
                del self._filtered[next(iter(self._filtered))]
        return rows

    def _rows(self, where: Compiled) -> np.ndarray:
        found = self.execute(rows_query(where), where.parameters)
        return np.fromiter(chain.from_iterable(found), np.int64, len(found))

    def vectors(self, rows: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of `rows` (ascending) that still exist, and their vectors float32 `[N, D]`."""
        if len(rows) and rows[-1] - rows[0] < 4 * len(rows):  # dense enough: one scan beats a query for each row
            wanted = set(rows.tolist())
            scan = self._stored("row BETWEEN ? AND ? ORDER BY row", int(rows[0]), int(rows[-1]))
            found = [(row, entry.vector) for row, entry in scan if row in wanted]
        else:
            found = [(row, entry.vector) for each in rows.tolist() for row, entry in self._stored("row = ?", each)]
        kept = np.fromiter((row for row, _ in found), np.int64, len(found))
        return kept, np.concatenate([np.zeros(0, np.float32), *(vector for _, vector in found)]).reshape(-1, dim)

    def match(self, query: str, k: int, where: Compiled | None = None) -> list[tuple[int, float]]:
        """The `k` best rows and BM25 scores (higher is better) for any word of a question, filtered first."""
        sql, parameters, *_ = where or EVERY
        expression = plain_expression(query) if self.meta("words") is None else match_expression(query)
        found = self.execute(
            "SELECT documents.row, -bm25(words) AS score FROM words JOIN documents ON documents.row = words.rowid "
            f"WHERE words MATCH ? AND {sql} ORDER BY score DESC, documents.row LIMIT ?",
            (expression, *parameters, k),
        )
        return [(row, score) for row, score in found]

    # States

    def put_states(self, rows: Iterable[StateRow]) -> None:
        """Inside a transaction, after the files are durable."""
        self.execute_many("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def states(self) -> list[StateRow]:
        """Every state file that should exist."""
        return [StateRow(*row) for row in self.execute("SELECT * FROM states ORDER BY key")]

    def state(self, key: str) -> StateRow | None:
        """The file of that key, if one was stored."""
        found = self.execute("SELECT * FROM states WHERE key = ?", (key,))
        return StateRow(*found[0]) if found else None

    def state_totals(self) -> dict[str, tuple[int, int, int]]:
        """By codec: number of state files, their bytes and their tokens."""
        sql = "SELECT codec, count(*), sum(bytes), sum(tokens) FROM states GROUP BY codec ORDER BY codec"
        return {codec: tuple(totals) for codec, *totals in self.execute(sql)}

    def put_uses(self, uses: Iterable[tuple[float, int, str]], requests: int) -> None:
        """How useful state files are: `(uses, used, key)`. Inside a transaction."""
        self.execute_many("UPDATE states SET uses = ?, used = ? WHERE key = ?", uses)
        self.set_meta("requests", str(requests))

    def forget_states(self, keys: Iterable[str]) -> None:
        """Drop state rows; their files become garbage. Inside a transaction."""
        dropped = list(keys)
        self.execute_many("DELETE FROM states WHERE key = ?", ((key,) for key in dropped))
        self._note_garbage(dropped)

    def forget_unread_states(self, keys: Iterable[str]) -> list[str]:
        """Drop those of the state rows `keys` that no document reads any more; return which. Inside a transaction."""
        sql = "DELETE FROM states WHERE key = ?1 AND ?1 NOT IN (SELECT state_key FROM documents) RETURNING key"
        found = [dropped for key in keys for (dropped,) in self.execute(sql, (key,))]
        self._note_garbage(found)
        return found

    def garbage(self) -> list[str]:
        """Keys of states that were dropped, and whose files may still be there; none where `notes_garbage` is False."""
        return list(json.loads(self.meta("garbage") or "[]"))

    def forget_garbage(self) -> None:
        """All of it has been removed. Inside a transaction."""
        self.execute("DELETE FROM meta WHERE name = 'garbage'")

    def _note_garbage(self, keys: list[str]) -> None:
        if self.notes_garbage and keys:
            self.set_meta("garbage", json.dumps([*self.garbage(), *keys]))

    # Meta

    def meta(self, name: str) -> str | None:
        """A named string that belongs to the index."""
        found = self.execute("SELECT value FROM meta WHERE name = ?", (name,))
        return str(found[0][0]) if found else None

    def set_meta(self, name: str, value: str) -> None:
        """Inside a transaction."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
