"""Stored vectors: what candidates are compared by, row after row in one file that is mapped and not read.

Of 10 million vectors a search touches a few hundred, so a file of 20 GB costs no memory and no time to open. Each
vector has a checksum of its own, compared whenever it is used. `N` documents, `D` length of a vector.

File: the vectors as little-endian float32 `[N, D]`, then their rows as int64 `[N]`, then xxh3-64 of each vector, with
its row for a seed, as uint64 `[N]`. The checksum of the rows and of these checksums is noted in the catalog.
"""

import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import xxhash

from gritrag.index.errors import DamagedIndex
from gritrag.index.storage.durable import open_file, write_pieces

__all__ = ["StoredVectors", "places_of"]

GROW = 1.5


def places_of(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of `wanted` stands among ascending rows, or would stand. As long as nothing was deleted no row is
    missing, and nothing has to be sought."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        places: np.ndarray = (wanted - rows[0]).clip(0, len(rows))
        return places
    return np.searchsorted(rows, wanted)


class StoredVectors:
    """Vectors by ascending row: those of a file, and those added since, which are held in memory."""

    def __init__(self, dim: int, capacity: int = 0) -> None:
        """None yet; `capacity` vectors can be added without moving those before."""
        self._path: Path | None = None
        self._rows_of_file = np.zeros(0, np.int64)
        self._vectors_of_file = np.zeros((0, dim), np.float32)
        self._digests = np.zeros(0, np.uint64)
        self._rows = np.zeros(capacity, np.int64)
        self._vectors = np.empty((capacity, dim), np.float32)
        self._added = 0

    @classmethod
    def load(cls, path: Path, count: int, dim: int, xxh3: str) -> "StoredVectors":
        """Map a file of `count` vectors; read its rows and checksums.

        Raises:
            OSError, ValueError: it is not what was written.
        """
        stored = cls(dim)
        stored._path = path
        if count == 0:
            raise ValueError("it holds no vectors")
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != count * (4 * dim + 16):
                raise ValueError(f"it has {size} bytes, {count * (4 * dim + 16)} were written")
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            tail = os.pread(file.fileno(), 16 * count, 4 * dim * count)
        if (found := xxhash.xxh3_128_hexdigest(tail)) != xxh3:
            raise ValueError(f"the checksum of its checksums is {found}, {xxh3} was written")
        stored._vectors_of_file = np.frombuffer(buffer, "<f4", count * dim).reshape(count, dim)
        stored._rows_of_file = np.frombuffer(tail, "<i8", count)
        stored._digests = np.frombuffer(tail, "<u8", count, 8 * count)
        return stored

    @property
    def rows(self) -> np.ndarray:
        """int64 `[N]`, ascending."""
        return np.concatenate([self._rows_of_file, self._rows[: self._added]])

    def __len__(self) -> int:
        return len(self._rows_of_file) + self._added

    def add(self, rows: np.ndarray, vectors_ND: np.ndarray) -> None:
        """Vectors under rows that are greater than all before."""
        needed = self._added + len(rows)
        if needed > len(self._rows):
            capacity = int(GROW * needed)
            self._rows = np.concatenate([self._rows[: self._added], np.zeros(capacity - self._added, np.int64)])
            grown = np.empty((capacity, vectors_ND.shape[1]), np.float32)
            grown[: self._added] = self._vectors[: self._added]
            self._vectors = grown
        self._rows[self._added : needed], self._vectors[self._added : needed] = rows, vectors_ND
        self._added = needed

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors float32 `[N, D]` of rows that are here, in their order.

        Raises:
            DamagedIndex: one of the file is not what was written.
        """
        places = places_of(self._rows_of_file, rows)
        in_file = places < len(self._rows_of_file)
        in_file[in_file] = self._rows_of_file[places[in_file]] == rows[in_file]
        vectors_ND = np.empty((len(rows), self._vectors.shape[1]), np.float32)
        if in_file.any():
            vectors_ND[in_file] = self._of_file(places[in_file], rows[in_file])
        if not in_file.all():
            vectors_ND[~in_file] = self._vectors[np.searchsorted(self._rows[: self._added], rows[~in_file])]
        return vectors_ND

    def _of_file(self, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
        vectors_ND = self._vectors_of_file[places]
        expected = self._digests[places].tolist()
        for vector, row, digest in zip(vectors_ND, rows.tolist(), expected, strict=True):
            if xxhash.xxh3_64_intdigest(vector, row) != digest:
                assert self._path is not None
                remedy = "remove the folder vectors, which is made anew from the catalog"
                raise DamagedIndex(self._path, f"the vector of row {row} is not what was written", remedy)
        return vectors_ND

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows and vectors, so many at a time."""
        for start in range(0, len(self._rows_of_file), size):
            places = np.arange(start, min(start + size, len(self._rows_of_file)))
            yield self._rows_of_file[places], self._of_file(places, self._rows_of_file[places])
        for start in range(0, self._added, size):
            end = min(start + size, self._added)
            yield self._rows[start:end], self._vectors[start:end]

    def write(self, path: Path, rows: np.ndarray) -> dict[str, object]:
        """Write those of `rows` (ascending) to a new file, durably; return what `load` wants to know of it."""
        kept_rows: list[np.ndarray] = []
        digests: list[np.ndarray] = []
        tail = b""

        def pieces() -> Iterable[memoryview]:
            for some, vectors_ND in self.batches(4096):
                kept = np.isin(some, rows, assume_unique=True)
                some, vectors_ND = some[kept], np.ascontiguousarray(vectors_ND[kept], "<f4")
                kept_rows.append(some)
                sums = (
                    xxhash.xxh3_64_intdigest(vector, row) for vector, row in zip(vectors_ND, some.tolist(), strict=True)
                )
                digests.append(np.fromiter(sums, np.uint64, len(some)))
                yield vectors_ND.data.cast("B")
            nonlocal tail
            tail = np.concatenate(kept_rows).astype("<i8").tobytes() + np.concatenate(digests).astype("<u8").tobytes()
            yield memoryview(tail)

        write_pieces(path, pieces())
        return {"name": path.name, "count": len(tail) // 16, "xxh3": xxhash.xxh3_128_hexdigest(tail)}

    def problem(self) -> str | None:
        """Compare every vector of the file with its checksum: what is wrong, None if nothing is."""
        try:
            for _ in self.batches(4096):
                pass
        except DamagedIndex as damage:
            return damage.problem
        return None
