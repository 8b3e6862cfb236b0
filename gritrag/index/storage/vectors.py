"""The dense half of an index: vectors that follow the catalog, searched by the engine that suits their number.

The vectors in the catalog are the truth. What is held here, and the files `vectors/gen-*`, follow it: a missing, torn
or damaged file costs a rebuild, a stale one the difference. `N` documents, `Q` queries, `D` length of a vector.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from gritrag.index.errors import DamagedIndex
from gritrag.index.storage.candidates import Candidates
from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.durable import make_folder, read_file, remove_files, replace_files, sync
from gritrag.index.storage.engines import Engine, FaissFlat, TorchFlat, chosen, faiss
from gritrag.index.storage.stored_vectors import StoredVectors

__all__ = ["Found", "VectorIndex"]

Found = list[tuple[int, float]]
BATCH = 16_384
QUERIES = 256


class VectorIndex:
    """Follows the catalog before every search, whichever process wrote to it."""

    def __init__(self, root: Path, catalog: Catalog, dim: int, engine: str = "auto") -> None:
        """`root` is the directory of the index, `engine` one of `engines.ENGINES`."""
        self._folder = root / "vectors"
        self._catalog = catalog
        self._dim = dim
        self._wanted = engine
        self._lock = catalog.lock  # one for both: a search holds the catalog's snapshot and then asks for this
        self._engine: Engine | None = None
        self._generation = -1
        self._file_lost = False
        self._on_read: Callable[[int], object] | None = None

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None = None) -> list[Found]:
        """For each query up to `k` pairs (row, inner product), best first, among the `allowed` rows (None: all)."""
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        with self._lock:
            engine = self._follow()
            k = min(k, len(engine.rows) if allowed is None else len(allowed))
            if k == 0:
                return [[] for _ in queries_QD]
            try:
                batches = [engine.search(batch, k, allowed) for batch in _batches(queries_QD, QUERIES)]
            except DamagedIndex:  # a stored vector: nothing but the catalog is believed now
                self._engine, self._generation, self._file_lost = None, -1, True
                engine = self._follow()
                batches = [engine.search(batch, k, allowed) for batch in _batches(queries_QD, QUERIES)]
        return [
            sorted(((int(row), float(score)) for score, row in zip(*pair, strict=True) if row >= 0), key=_best_first)
            for scores, rows in batches
            for pair in zip(scores, rows, strict=True)
        ]

    def figures(self) -> dict[str, Any]:
        """The engine that the files are of, and what was measured when it was made; empty where there is no file."""
        note = self._note()
        return {} if note is None else {"engine": note.get("engine", "flat"), **note.get("figures", {})}

    def save(self, rebuild: bool = False, on_read: Callable[[int], object] | None = None) -> None:
        """Make the files equal to the catalog: for the writer only. Without FAISS there are none.

        `on_read` is told of bytes of vectors that the catalog has given, `nbytes_to_read` in all.
        """
        if faiss is None:
            return
        with self._lock, self._telling(on_read):
            if rebuild:
                self._engine, self._generation = None, -1
                self._remove_all_but(())
            elif not self._file_lost and (self._note() or {}).get("generation") == self._catalog.generation:
                return
            suits = chosen(self._wanted, self._catalog.document_totals()[0])
            if self._engine is None and suits != (self._note() or {}).get("engine", "flat"):
                self._engine = self._made(suits, None)  # else all vectors would be read into the old one first
            engine = self._follow()
            if engine.name != suits or (isinstance(engine, Candidates) and engine.outgrown):
                engine = self._engine = self._made(suits, engine)
            self._write(engine)

    def _write(self, engine: Engine) -> None:
        """Files first, then the note in the catalog that makes them those to trust, then older files go."""
        assert isinstance(engine, FaissFlat | Candidates)
        name = f"gen-{self._generation:08d}"
        make_folder(self._folder)
        data = engine.dump()
        replace_files([(self._folder / f"{name}.faiss", data)])
        note: dict[str, Any] = {
            "name": f"{name}.faiss",
            "bytes": len(data),
            "xxh3": xxhash.xxh3_128_hexdigest(data),
            "generation": self._generation,
        }
        if isinstance(engine, Candidates):
            stored = engine.stored.write(self._folder / f"{name}.vectors", np.sort(engine.rows))
            note |= {"engine": engine.name, "figures": engine.figures, "stored": stored}
        sync(self._folder)
        sync(self._folder.parent)
        with self._catalog.transaction():
            self._catalog.set_meta("vectors", json.dumps(note))
        self._file_lost = False
        self._remove_all_but(_files(note))
        if isinstance(engine, Candidates):  # what was added is in the file now, and need not stay in memory
            self._engine = self._loaded(note)

    def forget(self) -> None:
        """Have no files until the next `save`: they hold vectors of documents that are gone."""
        self._remove_all_but(())

    def strays(self) -> list[str]:
        """Relative paths of what is in the folder and is not a file that the catalog names."""
        known = _files(self._note())
        return [f"vectors/{name}" for name in self._names() if name not in known]

    def _remove_all_but(self, kept: tuple[str, ...]) -> None:
        remove_files(self._folder.parent, (f"vectors/{name}" for name in self._names() if name not in kept))

    def _names(self) -> list[str]:
        return sorted(os.listdir(self._folder)) if self._folder.is_dir() and not self._folder.is_symlink() else []

    def problem(self) -> str | None:
        """What is wrong with the files; None where they are whole, or where there are none to be whole."""
        note = self._note()
        if note is None:
            return None
        try:
            engine = self._loaded(note)
            problem = engine.stored.problem() if isinstance(engine, Candidates) else None
        except (OSError, ValueError) as error:
            problem = str(error)
        return None if problem is None else f"vectors/{note['name']}: {problem}"

    def nbytes_to_read(self) -> int:
        """Bytes of all vectors in the catalog, which files are made of."""
        return 4 * self._dim * self._catalog.document_totals()[0]

    def nbytes(self) -> int:
        """Bytes of the files as last written."""
        note = self._note() or {"bytes": 0}
        stored = note.get("stored", {"count": 0})
        return int(note["bytes"]) + stored["count"] * (4 * self._dim + 16)

    def _note(self) -> dict[str, Any] | None:
        note = self._catalog.meta("vectors")
        return None if note is None else json.loads(note)

    def _read(self, note: dict[str, Any]) -> bytes:
        """The FAISS file, if it is exactly what was written."""
        data = read_file(self._folder / note["name"], note["bytes"])
        if len(data) != note["bytes"]:
            raise ValueError(f"it has {len(data)} bytes, {note['bytes']} were written")
        found = xxhash.xxh3_128_hexdigest(data)
        if found != note["xxh3"]:
            raise ValueError(f"its checksum is {found}, {note['xxh3']} was written")
        return data

    def _follow(self) -> Engine:
        """Bring what is held to the catalog's state. Rows never change, so the difference of row numbers is enough."""
        # The generation is read before the rows: a change in between is then seen again, never missed.
        generation = self._catalog.generation
        engine = self._engine or self._first()
        if generation != self._generation:
            self._engine = None  # half changed, as an interrupt may leave it, it would be wrong
            held, rows = engine.rows, self._catalog.rows()
            gone = np.setdiff1d(held, rows)
            if len(gone):
                engine.remove(gone)
            self._read_into(engine, np.setdiff1d(rows, held))
        self._engine, self._generation = engine, generation
        return engine

    def _first(self) -> Engine:
        """What the files hold, stale or not. Where they cannot be trusted: nothing, to be filled, or for very many
        documents all of them at once."""
        note = None if faiss is None else self._note()
        if note is not None and not self._file_lost:
            try:
                engine = self._loaded(note)
                self._generation = note["generation"]
                return engine
            except (OSError, ValueError):
                self._file_lost = True
        name = chosen(self._wanted, self._catalog.document_totals()[0])
        if name != "flat":
            return self._made(name, None)
        return TorchFlat(self._dim) if faiss is None else FaissFlat(self._dim)

    def _loaded(self, note: dict[str, Any]) -> Engine:
        data = self._read(note)
        if note.get("engine", "flat") == "flat":
            return FaissFlat(self._dim, data)
        stored = note["stored"]
        vectors = StoredVectors.load(self._folder / stored["name"], stored["count"], self._dim, stored["xxh3"])
        return Candidates.load(note["engine"], data, vectors, note["figures"])

    def _made(self, name: str, held: Engine | None) -> Engine:
        """An engine of that name with all vectors of the catalog; those of another are let go."""
        if name == "flat" or self._catalog.document_totals()[0] == 0:
            flat = FaissFlat(self._dim)
            self._read_into(flat, self._catalog.rows())
            return flat
        self._engine = None
        stored = held.stored if isinstance(held, Candidates) and not len(held.removed) else self._stored()
        return Candidates.train(name, stored, self._dim)

    def _stored(self) -> StoredVectors:
        rows = self._catalog.rows()
        stored = StoredVectors(self._dim, capacity=len(rows))
        self._read_into(stored, rows)
        return stored

    def _read_into(self, held: Engine | StoredVectors, rows: np.ndarray) -> None:
        """Vectors of the catalog."""
        for fresh in _batches(rows, BATCH):
            held.add(*self._catalog.vectors(fresh, self._dim))
            if self._on_read is not None:
                self._on_read(4 * self._dim * len(fresh))

    @contextmanager
    def _telling(self, on_read: Callable[[int], object] | None) -> Iterator[None]:
        self._on_read = on_read
        try:
            yield
        finally:
            self._on_read = None


def _files(note: dict[str, Any] | None) -> tuple[str, ...]:
    """Names of the files that a note trusts."""
    if note is None:
        return ()
    return (note["name"], *([note["stored"]["name"]] if "stored" in note else []))


def _batches(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array), size):
        yield array[start : start + size]


def _best_first(found: tuple[int, float]) -> tuple[float, int]:
    """Equal scores in the order of rows, so that every run gives the same order."""
    row, score = found
    return -score, row
