"""Vectors in Qdrant: a collection that follows the catalog, where one server serves many processes.

The catalog stays the truth. A point's id is the row of its document, and rows are never used twice, so what differs is
seen by ids alone. The writer brings the collection in step before it searches, after each delete and when it closes; a
reader searches what is not there yet by itself, and leaves out what the catalog no longer has. A filter is answered by
the catalog, and reaches Qdrant as the ids that it allows: it means the same with every engine.

Where the server is away, a search by vectors is a ConnectionError, search by words goes on, and so do `add` and
`delete`: the next writer brings the collection in step. `N` documents, `Q` queries, `D` length of a vector.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.engines import TorchFlat
from gritrag.index.storage.vectors import Found, VectorIndex

__all__ = ["QdrantVectors", "connect"]

BATCH = 1024
PAGE = 10_000
TIMEOUT = 10


@cache
def connect(location: str) -> QdrantClient:
    """One client for each place: a URL, or a folder for Qdrant's local mode, which one process at a time may use."""
    if location.startswith(("http://", "https://")):
        return QdrantClient(url=location, timeout=TIMEOUT, check_compatibility=False)
    return QdrantClient(path=location)


class QdrantVectors(VectorIndex):
    """As `VectorIndex`, over one collection of its own."""

    def __init__(self, root: Path, catalog: Catalog, dim: int, location: str, collection: str, writable: bool) -> None:
        super().__init__(root, catalog, dim)
        self._location, self._collection, self._writable = location, collection, writable
        self._held: np.ndarray | None = None
        self._fresh = TorchFlat(dim)

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None = None) -> list[Found]:
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        with self._lock:
            rows = self._in_step()
            k = min(k, len(rows) if allowed is None else len(allowed))
            if k == 0 or not len(queries_QD):
                return [[] for _ in queries_QD]
            assert self._held is not None
            gone = np.setdiff1d(self._held, rows)
            found = self._asked(queries_QD, k, allowed, gone)
            if len(self._fresh.rows):
                for own, scores, fresh in zip(found, *self._fresh.search(queries_QD, k, allowed), strict=True):
                    own += zip(fresh.tolist(), scores.tolist(), strict=True)
        return [sorted(own, key=lambda pair: (-pair[1], pair[0]))[:k] for own in found]

    def _asked(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None, gone: np.ndarray) -> list[Found]:
        condition = None
        if allowed is not None:
            condition = models.Filter(must=[models.HasIdCondition(has_id=allowed.tolist())])
        elif len(gone):
            condition = models.Filter(must_not=[models.HasIdCondition(has_id=gone.tolist())])
        requests = [models.QueryRequest(query=query.tolist(), limit=k, filter=condition) for query in queries_QD]
        with self._reaching() as client:
            if not client.collection_exists(self._collection):
                return [[] for _ in queries_QD]
            responses = client.query_batch_points(self._collection, requests)
        return [[(int(point.id), float(point.score)) for point in response.points] for response in responses]

    def save(self, rebuild: bool = False, on_read: Callable[[int], object] | None = None) -> None:
        """Bring the collection in step; a warning where the server is away."""
        with self._lock, self._telling(on_read):
            try:
                if rebuild:
                    with self._reaching() as client:
                        client.delete_collection(self._collection)
                    self._held, self._generation = None, -1
                    self._note_generation(None)
                self._in_step()
                self._note_generation(self._generation)  # not before a search: it holds a snapshot
            except ConnectionError as error:
                warnings.warn(
                    f"{error}. The index is whole; its next writer brings Qdrant in step. Until then the server still "
                    "holds the vectors of what was deleted.",
                    stacklevel=3,
                )

    def forget(self) -> None:
        """Delete points of documents that are gone."""
        self.save()

    def strays(self) -> list[str]:
        return []

    def problem(self) -> str | None:
        try:
            with self._reaching() as client:
                count = client.count(self._collection).count if client.collection_exists(self._collection) else 0
        except ConnectionError as error:
            return str(error)
        note, documents = self._note(), self._catalog.document_totals()[0]
        if note is not None and note["generation"] == self._catalog.generation and count != documents:
            return f"Qdrant at {self._location} holds {count} vectors of {documents} documents"
        return None

    def nbytes(self) -> int:
        return 4 * self._dim * (0 if self._held is None else len(self._held))

    def figures(self) -> dict[str, Any]:
        return {"engine": "qdrant", "location": self._location, "collection": self._collection}

    def _in_step(self) -> np.ndarray:
        """All rows of the catalog; what the collection lacks is put there by a writer, and held here by a reader."""
        generation, rows = self._catalog.generation, self._catalog.rows()
        if self._held is None:
            note = self._note()
            in_step = note is not None and note["generation"] == generation
            self._held = rows if in_step else self._ids()
        if generation != self._generation:
            if self._writable:
                self._push(rows)
            else:
                self._held = self._ids()
                self._fresh = TorchFlat(self._dim)
                missing = np.setdiff1d(rows, self._held)
                if len(missing):
                    self._fresh.add(*self._catalog.vectors(missing, self._dim))
            self._generation = generation
        return rows

    def _push(self, rows: np.ndarray) -> None:
        assert self._held is not None
        gone, missing = np.setdiff1d(self._held, rows), np.setdiff1d(rows, self._held)
        with self._reaching() as client:
            if not client.collection_exists(self._collection):
                shape = models.VectorParams(size=self._dim, distance=models.Distance.DOT)
                client.create_collection(self._collection, vectors_config=shape)
            for start in range(0, len(gone), BATCH):
                chunk = gone[start : start + BATCH].tolist()
                client.delete(self._collection, models.PointIdsList(points=chunk), wait=True)
            for start in range(0, len(missing), BATCH):
                found, vectors_ND = self._catalog.vectors(missing[start : start + BATCH], self._dim)
                batch = models.Batch(ids=found.tolist(), vectors=vectors_ND.tolist())
                client.upsert(self._collection, batch, wait=True)
                if self._on_read is not None:
                    self._on_read(4 * self._dim * len(found))
        self._held = rows

    def _ids(self) -> np.ndarray:
        """int64, ascending."""
        ids: list[int] = []
        offset: Any = None
        with self._reaching() as client:
            if not client.collection_exists(self._collection):
                return np.zeros(0, np.int64)
            while True:
                points, offset = client.scroll(self._collection, limit=PAGE, offset=offset, with_payload=False)
                ids += [int(point.id) for point in points]
                if offset is None:
                    return np.array(sorted(ids), np.int64)

    def _note_generation(self, generation: int | None) -> None:
        if self._writable:
            with self._catalog.transaction():
                self._catalog.set_meta("vectors", json.dumps({"engine": "qdrant", "generation": generation}))

    @contextmanager
    def _reaching(self) -> Iterator[QdrantClient]:
        """The client; a ConnectionError where the server cannot be asked."""
        try:
            yield connect(self._location)
        except (ResponseHandlingException, UnexpectedResponse, OSError) as error:
            raise ConnectionError(
                f"Qdrant at {self._location} cannot be reached ({error}): start it, or search with mode='sparse'"
            ) from error
