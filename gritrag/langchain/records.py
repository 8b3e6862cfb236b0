"""A record manager: what LangChain's indexing API has written into an index, and when.

The records lie in a SQLite file beside the index, so that a later run deletes what has gone from its sources, and reads
nothing twice.
"""

import math
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langchain_core.indexing import RecordManager
from langchain_core.runnables import run_in_executor

from gritrag.index.index import Index
from gritrag.langchain.indexes import opened

__all__ = ["GritRecordManager"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    group_id TEXT,
    updated_at REAL NOT NULL,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_time ON records (namespace, updated_at);
CREATE INDEX IF NOT EXISTS records_group ON records (namespace, group_id, updated_at);
"""
BATCH = 500
"""Keys per statement: SQLite takes a limited number of parameters."""


class GritRecordManager(RecordManager):
    """Records of one index, in ``<index>.records.sqlite`` next to its directory. Safe to use from several threads.

    A record counts only while its document is in the index: after a crash between the two, or when an index was built
    anew, the indexing API writes the document again instead of trusting a record that nothing stands behind.

    Args:
        index: the one that documents are written into, or its path.
        namespace: keeps the records of several sources of one index apart.

    Raises:
        ValueError: the file cannot be opened or is no SQLite file; or, of every method, it has been closed.
    """

    def __init__(self, index: Index | str | Path, namespace: str = "default") -> None:
        super().__init__(namespace)
        self._index: Index = opened(index)
        root = self._index.path
        self.path: Path = root.with_name(f"{root.name}.records.sqlite")
        self._lock = threading.RLock()
        self._is_closed = False
        try:
            self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA busy_timeout = 60000")
            self.create_schema()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"cannot keep records in {self.path}: {error}. May you write there?") from error

    def close(self) -> None:
        """Let go of the file. A second call does nothing."""
        with self._lock:
            self._is_closed = True
            self._connection.close()

    def create_schema(self) -> None:
        """Done by the constructor; a second time does nothing."""
        with self._opened() as connection:
            connection.executescript(SCHEMA)

    def get_time(self) -> float:
        """Seconds since the epoch, and always after the latest record: clocks are set back, an index is not."""
        ((latest,),) = self._execute("SELECT max(updated_at) FROM records WHERE namespace = ?", [self.namespace])
        return max(time.time(), math.nextafter(latest or 0.0, math.inf))

    def update(
        self, keys: Sequence[str], *, group_ids: Sequence[str | None] | None = None, time_at_least: float | None = None
    ) -> None:
        """Record that documents of these keys were written now.

        Raises:
            ValueError: as many groups are needed as keys; or `time_at_least` is yet to come.
        """
        groups = list(group_ids) if group_ids is not None else [None] * len(keys)
        if len(groups) != len(keys):
            raise ValueError(f"{len(keys)} keys came with {len(groups)} group_ids; give one for each, or none")
        now = self.get_time()
        if time_at_least is not None and time_at_least > now:
            raise ValueError(f"time_at_least is {time_at_least}, which is {time_at_least - now:.3f} s ahead of now")
        rows = [(self.namespace, key, group, now) for key, group in zip(keys, groups, strict=True)]
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", rows)

    def exists(self, keys: Sequence[str]) -> list[bool]:
        """For each key, whether there is a record of it and a document of that id in the index."""
        found: set[str] = set()
        for batch in _batches(keys):
            sql = f"SELECT key FROM records WHERE namespace = ? AND key IN ({_marks(batch)})"
            found.update(key for (key,) in self._execute(sql, [self.namespace, *batch]))
        return [key in found and key in self._index for key in keys]

    def list_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """Keys of records, oldest first: written before or after a time (itself left out), of some groups only."""
        conditions = ["namespace = ?"]
        values: list[Any] = [self.namespace]
        for operator, moment in (("<", before), (">", after)):
            if moment is not None:
                conditions.append(f"updated_at {operator} ?")
                values.append(moment)
        sql = "SELECT key, updated_at FROM records WHERE " + " AND ".join(conditions)
        if group_ids is None:
            found = self._execute(sql, values)
        else:
            batches = _batches(list(dict.fromkeys(group_ids)))
            found = [
                row
                for batch in batches
                for row in self._execute(f"{sql} AND group_id IN ({_marks(batch)})", [*values, *batch])
            ]
        return [key for key, _ in sorted(found, key=lambda row: (row[1], row[0]))][:limit]

    def delete_keys(self, keys: Sequence[str]) -> None:
        """Forget records; the documents are the index's business."""
        with self._transaction() as connection:
            rows = ((self.namespace, key) for key in keys)
            connection.executemany("DELETE FROM records WHERE namespace = ? AND key = ?", rows)

    async def acreate_schema(self) -> None:
        """As `create_schema`."""
        await run_in_executor(None, self.create_schema)

    async def aget_time(self) -> float:
        """As `get_time`."""
        return await run_in_executor(None, self.get_time)

    async def aupdate(
        self, keys: Sequence[str], *, group_ids: Sequence[str | None] | None = None, time_at_least: float | None = None
    ) -> None:
        """As `update`."""
        await run_in_executor(None, self.update, keys, group_ids=group_ids, time_at_least=time_at_least)

    async def aexists(self, keys: Sequence[str]) -> list[bool]:
        """As `exists`."""
        return await run_in_executor(None, self.exists, keys)

    async def alist_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """As `list_keys`."""
        return await run_in_executor(None, self.list_keys, before=before, after=after, group_ids=group_ids, limit=limit)

    async def adelete_keys(self, keys: Sequence[str]) -> None:
        """As `delete_keys`."""
        await run_in_executor(None, self.delete_keys, keys)

    def _execute(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._opened() as connection:
            return connection.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block, or none of it."""
        with self._opened() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The file, for one thread at a time."""
        with self._lock:
            if self._is_closed:
                raise ValueError(f"the records in {self.path} are closed: make a new GritRecordManager of the index")
            yield self._connection


def _batches(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _marks(items: Sequence[str]) -> str:
    return ", ".join("?" * len(items))
