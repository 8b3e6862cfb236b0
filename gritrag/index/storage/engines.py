"""Engines: what finds the vectors with the greatest inner products, exactly or nearly so, with one contract.

Up to some 50,000 documents all vectors are compared. Beyond that a graph (HNSW) or lists of short codes (IVF-PQ) name
candidates, and these are compared exactly, by the vectors as they were stored; see `candidates`. Where FAISS is not
installed, all vectors are compared in torch. `N` documents, `Q` queries, `D` length of a vector.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch

faiss: Any
try:
    import faiss
except ImportError:  # an extra: without it search is as exact, and slower
    faiss = None
else:
    # its threads do not survive a fork, and the child would wait for them for ever
    os.register_at_fork(after_in_child=lambda: faiss.omp_set_num_threads(1))

__all__ = [
    "ENGINES",
    "HNSW_DOCUMENTS",
    "IVF_DOCUMENTS",
    "Engine",
    "FaissFlat",
    "TorchFlat",
    "chosen",
    "faiss",
    "on_gpu",
]

ENGINES = ("auto", "flat", "hnsw", "ivf-pq")
HNSW_DOCUMENTS = 50_000
"""From so many on, ``"auto"`` is a graph."""

IVF_DOCUMENTS = 150_000
"""From so many on, ``"auto"`` is lists of codes, which take a fraction of a graph's memory. Of 100,000 both find as
much in the same time; of 200,000 a graph needs 64 times the effort, and many times as long to be made."""

Scored = tuple[np.ndarray, np.ndarray]
"""Scores float32 and rows int64 `[Q, k]`, best first; row -1 where there is none."""


def chosen(engine: str, documents: int) -> str:
    """The engine for so many documents where `engine` is ``"auto"``, else `engine`."""
    if faiss is None:
        return "flat"
    if engine != "auto":
        return engine
    return "flat" if documents < HNSW_DOCUMENTS else "hnsw" if documents < IVF_DOCUMENTS else "ivf-pq"


class Engine(Protocol):
    """Vectors by row, searched."""

    @property
    def name(self) -> str:
        """One of `ENGINES`, or another."""

    @property
    def rows(self) -> np.ndarray:
        """int64 `[N]`, in any order."""

    @property
    def figures(self) -> Mapping[str, Any]:
        """What was measured when it was made, such as its recall."""

    def add(self, rows: np.ndarray, vectors_ND: np.ndarray) -> None:
        """Add vectors under new rows, which are greater than all before."""

    def remove(self, rows: np.ndarray) -> None:
        """Drop these rows."""

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None) -> Scored:
        """The best among the `allowed` rows (ascending; None: all)."""


class TorchFlat:
    """One matrix and a product. Nothing to store: the catalog is read instead."""

    name = "flat"
    figures: Mapping[str, Any] = {}

    def __init__(self, dim: int) -> None:
        self.rows = np.zeros(0, np.int64)
        self._vectors_ND = torch.zeros(0, dim)

    def add(self, rows: np.ndarray, vectors_ND: np.ndarray) -> None:
        self.rows = np.concatenate([self.rows, rows])
        self._vectors_ND = torch.cat([self._vectors_ND, torch.tensor(vectors_ND)])

    def remove(self, rows: np.ndarray) -> None:
        kept = ~np.isin(self.rows, rows)
        self.rows, self._vectors_ND = self.rows[kept], self._vectors_ND[torch.from_numpy(kept)]

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None) -> Scored:
        rows, vectors_ND = self.rows, self._vectors_ND
        if allowed is not None:
            chosen = np.isin(rows, allowed)
            rows, vectors_ND = rows[chosen], vectors_ND[torch.from_numpy(chosen)]
        best = (torch.from_numpy(queries_QD) @ vectors_ND.T).topk(min(k, len(rows)), dim=1)
        return best.values.numpy(), rows[best.indices.numpy()]


class FaissFlat:
    """IndexFlatIP under row numbers. A filter becomes an id selector, so what it excludes is never scored."""

    name = "flat"
    figures: Mapping[str, Any] = {}

    def __init__(self, dim: int, dump: bytes | None = None) -> None:
        self._index: Any = faiss.IndexIDMap(faiss.IndexFlatIP(dim))
        if dump is not None:
            self._index = faiss.deserialize_index(np.frombuffer(dump, np.uint8))
        self._on_gpu: Any = None

    @property
    def rows(self) -> np.ndarray:
        return faiss.vector_to_array(self._index.id_map)

    def add(self, rows: np.ndarray, vectors_ND: np.ndarray) -> None:
        self._index.add_with_ids(vectors_ND, rows)
        self._on_gpu = None

    def remove(self, rows: np.ndarray) -> None:
        self._index.remove_ids(rows)
        self._on_gpu = None

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None) -> Scored:
        if allowed is not None:  # no search of FAISS on a GPU takes a selector
            return self._index.search(queries_QD, k, params=faiss.SearchParameters(sel=faiss.IDSelectorBatch(allowed)))
        if self._on_gpu is None:
            self._on_gpu = on_gpu(self._index, k)
        return (self._on_gpu or self._index).search(queries_QD, k)

    def dump(self) -> memoryview:
        """The bytes of a FAISS file."""
        return memoryview(faiss.serialize_index(self._index))


MOST_ON_GPU = 2048
"""Of the nearest that FAISS finds on a GPU."""


def on_gpu(index: Any, k: int) -> Any:
    """A copy of an index of FAISS on the GPUs that `faiss-gpu` finds; None where there is none, or `k` is too many."""
    count: Callable[[], int] = getattr(faiss, "get_num_gpus", lambda: 0)
    return faiss.index_cpu_to_all_gpus(index) if k <= MOST_ON_GPU and count() else None
