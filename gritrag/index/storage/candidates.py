"""Candidates: an approximate index of FAISS names some, and the stored vectors rank them exactly.

So scores are those of an exact search, and what can be missed is a document that was no candidate. How much is searched
is chosen when the index is made, by trying: the least that finds 97 of 100 of the ten nearest. A search that the
approximation cannot answer is answered exactly: few documents that a filter allows, many that are asked for, or fewer
candidates than asked for.

Sources: HNSW, Malkov and Yashunin 2018 (arXiv 1603.09320); IVF-PQ, Jegou et al. 2011 (IEEE TPAMI 33, 1).
`N` documents, `Q` queries, `C` candidates, `D` length of a vector.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gritrag.index.storage.engines import Scored, faiss, on_gpu
from gritrag.index.storage.stored_vectors import StoredVectors, places_of

__all__ = ["Candidates"]

RECALL = 0.97
"""Of the ten nearest, that the effort of a search is chosen for; what was reached is among `figures`."""

TRIED = 256
"""Means of two random documents, which stand for questions when the effort is chosen. A question lies farther from its
documents than these from each other: with documents as questions a search of 50,000 passages of real text seemed to
find 99.6%, and found 89% of what real questions ask for; such means say 87%."""

TRIED_K = 10
EFFORTS = (8, 16, 32, 64, 128, 256, 512, 1024)
CANDIDATES = (64, 128, 256)
EXACT_ROWS = {"ivf-pq": 2500, "hnsw": 5000}
"""A filter that allows no more is answered by comparing all that it allows. For 2,000 rows of 200,000 that takes 2.4 ms
(p50) and 2.6 (p95), lists take 1.6 and 3.1 and may miss one of a thousand. A graph takes ten times as long for 1% of
200,000 as without a filter, and finds 95% of them."""

EXACT_K = 500
WIDER = 4
"""Times the effort, when a search with a filter is repeated to see whether it finds others."""

MOST_VISITED = 4096
"""In a graph, before all that a filter allows is compared instead."""

TRAIN_POINTS = 40
"""For each list. FAISS asks for 39 at least, and its own default is 256."""

ROUNDS = 10
"""Of k-means."""

SUBVECTOR = 8
"""Numbers that one byte stands for, at most."""

HNSW_LINKS = 32
HNSW_BUILD_EFFORT = 200
"""Candidates for the links of a new vector. With 80, a search of 200,000 found 94.2% at the effort of 512, with 200 it
finds 97.7%; making the graph takes twice as long."""

BATCH = 16_384


class Candidates:
    """Made by `train`, or from a dump of FAISS and the stored vectors."""

    def __init__(self, name: str, index: Any, stored: StoredVectors, figures: Mapping[str, Any]) -> None:
        self.name = name
        self.stored = stored
        self.figures = dict(figures)
        self._index = index
        self.removed = np.zeros(0, np.int64)
        self._rows = stored.rows
        self._gpu: Any = None

    @classmethod
    def train(cls, name: str, stored: StoredVectors, dim: int) -> "Candidates":
        """An index of these vectors; how much a search has to look at is measured here."""
        made = cls(name, (_ivf_pq if name == "ivf-pq" else _hnsw)(stored, dim), stored, {})
        for rows, vectors_ND in stored.batches(BATCH):
            made._index.add_with_ids(np.ascontiguousarray(vectors_ND), rows)
        made._measure()
        return made

    @classmethod
    def load(cls, name: str, dump: bytes, stored: StoredVectors, figures: Mapping[str, Any]) -> "Candidates":
        """What `dump` gave."""
        return cls(name, faiss.deserialize_index(np.frombuffer(dump, np.uint8)), stored, figures)

    def dump(self) -> memoryview:
        """The bytes of a FAISS file."""
        return memoryview(faiss.serialize_index(self._index))

    @property
    def rows(self) -> np.ndarray:
        return self._rows

    @property
    def outgrown(self) -> bool:
        """Whether so much has come or gone since it was trained that it should be made anew."""
        trained = self.figures["trained"]
        return len(self._rows) > 2 * trained or 2 * len(self._rows) < trained or self._holds_removed

    @property
    def _holds_removed(self) -> bool:
        """A graph keeps what was removed, and only leaves it out of its answers."""
        return self.name == "hnsw" and len(self.removed) > 0

    def add(self, rows: np.ndarray, vectors_ND: np.ndarray) -> None:
        self.stored.add(rows, vectors_ND)
        self._index.add_with_ids(np.ascontiguousarray(vectors_ND), rows)
        self._rows = np.concatenate([self._rows, rows])
        self._gpu = None

    def remove(self, rows: np.ndarray) -> None:
        self._rows = np.setdiff1d(self._rows, rows, assume_unique=True)
        self.removed = np.concatenate([self.removed, rows])
        if self.name != "hnsw":
            self._index.remove_ids(rows)
        self._gpu = None

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None) -> Scored:
        rows = self._rows if allowed is None else _common(self._rows, allowed)
        k = min(k, len(rows))
        if k == 0 or k > EXACT_K or (allowed is not None and len(rows) <= EXACT_ROWS[self.name]):
            return self._exact(queries_QD, k, rows)
        if allowed is None:
            found = self._ranked(queries_QD, self._candidates(queries_QD, k, self.figures["effort"], None), k)
        else:
            found = self._filtered(queries_QD, k, rows)
        scores_Qk, rows_Qk = found
        short = rows_Qk[:, -1] < 0
        if short.any():
            scores_Qk[short], rows_Qk[short] = self._exact(queries_QD[short], k, rows)
        return scores_Qk, rows_Qk

    def _filtered(self, queries_QD: np.ndarray, k: int, rows: np.ndarray) -> Scored:
        """The fewer a filter allows, the further the nearest of them are, and more so where it leaves out just what is
        near: the effort grows until that changes next to nothing."""
        effort = math.ceil(self.figures["effort"] / math.sqrt(len(rows) / len(self._rows)) / 2)
        found = self._ranked(queries_QD, self._candidates(queries_QD, k, effort, rows), k)
        while effort < self._most:
            effort = min(WIDER * effort, self._most)
            wider = self._ranked(queries_QD, self._candidates(queries_QD, k, effort, rows), k)
            found, before = wider, found
            if _recall(before[1], found[1]) >= RECALL:
                return found
        return found if self.name == "ivf-pq" else self._exact(queries_QD, k, rows)

    @property
    def _most(self) -> int:
        return self.figures["lists"] if self.name == "ivf-pq" else MOST_VISITED

    def _candidates(self, queries_QD: np.ndarray, k: int, effort: int, allowed: np.ndarray | None) -> np.ndarray:
        """Rows int64 `[Q, C]`."""
        count = max(4 * k, self.figures["candidates"])
        selector = None
        if allowed is not None:
            selector = _selector(allowed)
        elif self._holds_removed:
            selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(self.removed))
        if self.name == "ivf-pq":
            params = faiss.SearchParametersIVF(nprobe=min(effort, self._most), sel=selector)
            if selector is None and (gpu := self._on_gpu(count)) is not None:
                return gpu.search(queries_QD, count, params=params)[1]
        else:
            params = faiss.SearchParametersHNSW(efSearch=max(effort, count), sel=selector)
        return self._index.search(queries_QD, count, params=params)[1]

    def _on_gpu(self, count: int) -> Any:
        if self._gpu is None:
            self._gpu = on_gpu(self._index, count)
        return self._gpu

    def _ranked(self, queries_QD: np.ndarray, candidates_QC: np.ndarray, k: int) -> Scored:
        scores_Qk = np.full((len(queries_QD), k), -np.inf, np.float32)
        rows_Qk = np.full((len(queries_QD), k), -1, np.int64)
        for query_D, named, scores, rows in zip(queries_QD, candidates_QC, scores_Qk, rows_Qk, strict=True):
            kept = named[named >= 0]
            products = self.stored.take(kept) @ query_D
            best = np.argsort(-products, kind="stable")[:k]
            scores[: len(best)], rows[: len(best)] = products[best], kept[best]
        return scores_Qk, rows_Qk

    def _exact(self, queries_QD: np.ndarray, k: int, rows: np.ndarray) -> Scored:
        """All of `rows` (ascending), some at a time."""
        best_scores = np.full((len(queries_QD), 0), -np.inf, np.float32)
        best_rows = np.zeros((len(queries_QD), 0), np.int64)
        for start in range(0, len(rows) if k else 0, BATCH):
            some = rows[start : start + BATCH]
            scores = np.concatenate([best_scores, queries_QD @ self.stored.take(some).T], axis=1)
            all_rows = np.concatenate([best_rows, np.broadcast_to(some, (len(queries_QD), len(some)))], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            best_scores, best_rows = np.take_along_axis(scores, best, 1), np.take_along_axis(all_rows, best, 1)
        return best_scores, best_rows

    def _measure(self) -> None:
        """Choose candidates and effort, and note the recall."""
        drawn = np.random.default_rng(1).choice(self._rows, (2, TRIED))
        sums_QD = self.stored.take(drawn[0]) + self.stored.take(drawn[1])
        queries_QD = sums_QD / np.maximum(np.linalg.norm(sums_QD, axis=1, keepdims=True), 1e-6)
        k = min(TRIED_K, len(self._rows))
        expected = self._exact(queries_QD, k, self._rows)[1]
        lists = self._index.nlist if self.name == "ivf-pq" else 1
        self.figures = {"trained": len(self._rows), "lists": lists}
        efforts = [effort for effort in EFFORTS if self.name != "ivf-pq" or effort <= lists] or [lists]
        for effort in efforts:
            for candidates in CANDIDATES:
                self.figures |= {"effort": effort, "candidates": candidates}
                named = self._candidates(queries_QD, k, effort, None)
                found = self._ranked(queries_QD, named, k)[1]
                self.figures["recall@10"] = round(_recall(found, expected), 4)
                if self.figures["recall@10"] >= RECALL:
                    return


def _ivf_pq(stored: StoredVectors, dim: int) -> Any:
    """Lists for cells around centroids, and codes of a byte for every few numbers, trained on a sample."""
    count = len(stored)
    lists = max(1, 2 ** round(math.log2(2 * math.sqrt(count))))
    lists = min(lists, max(1, count // TRAIN_POINTS))
    code = next(size for size in range(min(SUBVECTOR, dim), 0, -1) if dim % size == 0)
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, lists, dim // code, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.cp.spherical = True
    index.pq.cp.min_points_per_centroid = 1
    index.cp.niter = index.pq.cp.niter = ROUNDS
    index.pq.cp.max_points_per_centroid = TRAIN_POINTS
    index.train(_drawn(stored, max(TRAIN_POINTS * lists, 256 * TRAIN_POINTS)))
    return index


def _hnsw(stored: StoredVectors, dim: int) -> Any:
    """A graph over vectors of a byte for each number: the stored ones rank what it finds."""
    graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = HNSW_BUILD_EFFORT
    graph.train(_drawn(stored, BATCH))
    return faiss.IndexIDMap(graph)


def _drawn(stored: StoredVectors, count: int) -> np.ndarray:
    """Some of the vectors, always the same of the same."""
    return stored.take(np.sort(np.random.default_rng(0).permutation(stored.rows)[:count]))


def _common(rows: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """What is in both; both are ascending."""
    places = np.minimum(places_of(rows, allowed), max(0, len(rows) - 1))
    return allowed[rows[places] == allowed] if len(rows) else rows


def _selector(allowed: np.ndarray) -> Any:
    """Of ascending rows: one bit for each row there ever was, as rows are never used twice."""
    bits = np.zeros(int(allowed[-1]) + 1, bool)
    bits[allowed] = True
    return faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))


def _recall(found_Qk: np.ndarray, expected_Qk: np.ndarray) -> float:
    """Part of the expected rows that was found."""
    pairs = zip(found_Qk.tolist(), expected_Qk.tolist(), strict=True)
    return sum(len(set(found) & set(expected)) for found, expected in pairs) / max(1, expected_Qk.size)
