"""Exact inner-product search over all vectors: FAISS where it is installed, torch where it is not, with one contract.

The vectors in the catalog are the truth. What is held here, and the file `vectors/gen-*.faiss`, follow it: a missing,
torn or damaged file costs a rebuild, a stale one the difference. `N` documents, `Q` queries, `D` length of a vector.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash

from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.durable import make_folder, read_file, remove_files, replace_files, sync

faiss: Any
try:
    import faiss
except ImportError:  # an extra: without it search is as exact, and slower
    faiss = None
else:
    # its threads do not survive a fork, and the child would wait for them for ever
    os.register_at_fork(after_in_child=lambda: faiss.omp_set_num_threads(1))

__all__ = ["VectorIndex"]

Found = list[tuple[int, float]]
BATCH = 16_384


class _Flat(Protocol):
    """Vectors by row, searched by brute force."""

    @property
    def rows(self) -> np.ndarray:
        """int64 `[N]`, in any order."""

    def add(self, rows: np.ndarray, vectors_ND: np.ndarray) -> None:
        """Add vectors under new rows."""

    def remove(self, rows: np.ndarray) -> None:
        """Drop these rows."""

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 and rows int64 `[Q, k]` among the `allowed` rows, best first; row -1 where there is none."""


class FaissFlat:
    """IndexFlatIP under row numbers. A filter becomes an id selector, so what it excludes is never scored."""

    def __init__(self, dim: int, dump: bytes | None = None) -> None:
        self._index: Any = faiss.IndexIDMap(faiss.IndexFlatIP(dim))
        if dump is not None:
            self._index = faiss.deserialize_index(np.frombuffer(dump, np.uint8))

    @property
    def rows(self) -> np.ndarray:
        return faiss.vector_to_array(self._index.id_map)

    def add(self, rows: np.ndarray, vectors_ND: np.ndarray) -> None:
        self._index.add_with_ids(vectors_ND, rows)

    def remove(self, rows: np.ndarray) -> None:
        self._index.remove_ids(rows)

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        selection = None if allowed is None else faiss.SearchParameters(sel=faiss.IDSelectorBatch(allowed))
        return self._index.search(queries_QD, k, params=selection)

    def dump(self) -> memoryview:
        """The bytes of a FAISS file."""
        return memoryview(faiss.serialize_index(self._index))


class TorchFlat:
    """One matrix and a product. Nothing to store: the catalog is read instead."""

    def __init__(self, dim: int) -> None:
        self.rows = np.zeros(0, np.int64)
        self._vectors_ND = torch.zeros(0, dim)

    def add(self, rows: np.ndarray, vectors_ND: np.ndarray) -> None:
        self.rows = np.concatenate([self.rows, rows])
        self._vectors_ND = torch.cat([self._vectors_ND, torch.tensor(vectors_ND)])

    def remove(self, rows: np.ndarray) -> None:
        kept = ~np.isin(self.rows, rows)
        self.rows, self._vectors_ND = self.rows[kept], self._vectors_ND[torch.from_numpy(kept)]

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        rows, vectors_ND = self.rows, self._vectors_ND
        if allowed is not None:
            chosen = np.isin(rows, allowed)
            rows, vectors_ND = rows[chosen], vectors_ND[torch.from_numpy(chosen)]
        best = (torch.from_numpy(queries_QD) @ vectors_ND.T).topk(min(k, len(rows)), dim=1)
        return best.values.numpy(), rows[best.indices.numpy()]


class VectorIndex:
    """The dense half of an index: follows the catalog before every search, whichever process wrote to it."""

    def __init__(self, root: Path, catalog: Catalog, dim: int) -> None:
        """`root` is the directory of the index."""
        self._folder = root / "vectors"
        self._catalog = catalog
        self._dim = dim
        self._lock = catalog.lock  # one for both: a search holds the catalog's snapshot and then asks for this
        self._flat: _Flat | None = None
        self._generation = -1
        self._file_lost = False

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None = None) -> list[Found]:
        """For each query up to `k` pairs (row, inner product), best first, among the `allowed` rows (None: all)."""
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        with self._lock:
            flat = self._follow()
            k = min(k, len(flat.rows) if allowed is None else len(allowed))
            if k == 0:
                return [[] for _ in queries_QD]
            batches = [flat.search(batch, k, allowed) for batch in _batches(queries_QD, 256)]
        return [
            sorted(((int(row), float(score)) for score, row in zip(*pair, strict=True) if row >= 0), key=_best_first)
            for scores, rows in batches
            for pair in zip(scores, rows, strict=True)
        ]

    def save(self, rebuild: bool = False) -> None:
        """Make the FAISS file equal to the catalog: for the writer only. Without FAISS there is no file."""
        if faiss is None:
            return
        with self._lock:
            if rebuild:
                self._flat, self._generation = FaissFlat(self._dim), -1
            elif not self._file_lost and (self._note() or {}).get("generation") == self._catalog.generation:
                return
            flat = self._follow()
            assert isinstance(flat, FaissFlat)
            self._write(flat.dump())

    def _write(self, data: memoryview) -> None:
        """File first, then the note in the catalog that makes it the one to trust, then older files go."""
        name = f"gen-{self._generation:08d}.faiss"
        make_folder(self._folder)
        replace_files([(self._folder / name, data)])
        sync(self._folder)
        sync(self._folder.parent)
        note = {
            "name": name,
            "bytes": len(data),
            "xxh3": xxhash.xxh3_128_hexdigest(data),
            "generation": self._generation,
        }
        with self._catalog.transaction():
            self._catalog.set_meta("vectors", json.dumps(note))
        self._file_lost = False
        self._remove_all_but(name)

    def forget(self) -> None:
        """Have no FAISS file until the next `save`: it holds vectors of documents that are gone."""
        self._remove_all_but(None)

    def strays(self) -> list[str]:
        """Relative paths of what is in the folder and is not the file that the catalog names."""
        note = self._note()
        return [f"vectors/{name}" for name in self._names() if note is None or name != note["name"]]

    def _remove_all_but(self, kept: str | None) -> None:
        remove_files(self._folder.parent, (f"vectors/{name}" for name in self._names() if name != kept))

    def _names(self) -> list[str]:
        return sorted(os.listdir(self._folder)) if self._folder.is_dir() and not self._folder.is_symlink() else []

    def problem(self) -> str | None:
        """What is wrong with the FAISS file; None where it is whole, or where there is none to be whole."""
        note = self._note()
        if note is None:
            return None
        try:
            self._read(note)
        except (OSError, ValueError) as error:
            return f"vectors/{note['name']}: {error}"
        return None

    def nbytes(self) -> int:
        """Bytes of the FAISS file as last written."""
        note = self._note()
        return int(note["bytes"]) if note else 0

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

    def _follow(self) -> _Flat:
        """Bring what is held to the catalog's state. Rows never change, so the difference of row numbers is enough."""
        # The generation is read before the rows: a change in between is then seen again, never missed.
        generation = self._catalog.generation
        if self._flat is None:
            self._flat = TorchFlat(self._dim) if faiss is None else self._from_file()
        if generation != self._generation:
            held, rows = self._flat.rows, self._catalog.rows()
            gone = np.setdiff1d(held, rows)
            if len(gone):
                self._flat.remove(gone)
            for fresh in _batches(np.setdiff1d(rows, held), BATCH):
                self._flat.add(*self._catalog.vectors(fresh, self._dim))
            self._generation = generation
        return self._flat

    def _from_file(self) -> FaissFlat:
        """The vectors of the FAISS file, stale or not; none where the file cannot be trusted."""
        note = self._note()
        if note is None:
            return FaissFlat(self._dim)
        try:
            return FaissFlat(self._dim, self._read(note))
        except (OSError, ValueError):
            self._file_lost = True
            return FaissFlat(self._dim)


def _batches(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array), size):
        yield array[start : start + size]


def _best_first(found: tuple[int, float]) -> tuple[float, int]:
    """Equal scores in the order of rows, so that every run gives the same order."""
    row, score = found
    return -score, row
