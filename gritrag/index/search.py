"""A search: a question's words and vector against catalog and vectors -> rows and scores, best first.

`Q` queries, `D` length of a vector, `N` candidates.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gritrag.arguments import real, whole
from gritrag.config import DENSE_WEIGHT, SEARCH_MODE
from gritrag.index.filters import Compiled
from gritrag.index.storage.vectors import Found
from gritrag.records import Document, Hit

__all__ = [
    "MODES",
    "Nearest",
    "Rows",
    "Search",
    "check_query",
    "convex_combination",
    "maximal_marginal_relevance",
]

MODES = ("dense", "sparse", "hybrid")
MOST = 2**31  # no index has so many documents, and SQLite counts to 2^63


class Rows(Protocol):
    """A catalog as a search sees it: of one index, or of several together."""

    def snapshot(self) -> AbstractContextManager[None]:
        """Everything that is read meanwhile is of one commit."""

    def rows(self, where: Compiled) -> np.ndarray:
        """int64 rows of the documents that satisfy a compiled filter, ascending."""

    def match(self, query: str, k: int, where: Compiled | None = None) -> Found:
        """The `k` best rows and BM25 scores for any word of a question."""

    def vectors(self, rows: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of `rows` (ascending) that exist, and their vectors float32 `[N, D]`."""

    def document(self, row: int) -> Document | None:
        """The document in that row, if it is still there."""


class Nearest(Protocol):
    """Vectors as a search sees them."""

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None = None) -> list[Found]:
        """For each query up to `k` pairs (row, inner product), best first, among the `allowed` rows."""


@dataclass(frozen=True)
class Search:
    """How to search; `Index.search` documents the fields.

    Raises:
        ValueError: `k` or `fetch_k` below what makes sense, an unknown mode, `mmr` or `dense_weight` outside [0, 1].
    """

    k: int
    mode: str = SEARCH_MODE
    mmr: float | None = None
    fetch_k: int | None = None
    dense_weight: float = DENSE_WEIGHT

    def __post_init__(self) -> None:
        for name in ("k", *(() if self.fetch_k is None else ("fetch_k",))):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        for name in ("dense_weight", *(() if self.mmr is None else ("mmr",))):
            object.__setattr__(self, name, real(name, getattr(self, name)))
        if self.k < 1:
            raise ValueError(f"k must be a whole number of at least 1, not {self.k!r}")
        if self.mode not in MODES:
            raise ValueError(f"unknown search mode {self.mode!r}; known modes: {', '.join(MODES)}")
        if self.mmr is not None and not 0 <= self.mmr <= 1:
            raise ValueError(f"mmr must lie in [0, 1] (1: relevance only, 0: diversity only), not {self.mmr!r}")
        if not 0 <= self.dense_weight <= 1:
            raise ValueError(f"dense_weight must lie in [0, 1] (1: vectors alone), not {self.dense_weight!r}")
        if self.fetch_k is not None and self.fetch_k < self.k:
            raise ValueError(f"fetch_k is {self.fetch_k}, below k = {self.k}: fetch at least as many as you want back")

    @property
    def needs_vector(self) -> bool:
        """Whether the question has to be embedded."""
        return self.mode != "sparse" or self.mmr is not None

    @property
    def depth(self) -> int:
        """Candidates taken from each ranking before they are fused or diversified."""
        if self.mmr is None and self.mode != "hybrid":
            return min(self.k, MOST)
        return min(self.fetch_k or max(4 * self.k, 50), MOST)

    def run(
        self,
        catalog: Rows,
        vectors: Nearest,
        queries: Sequence[str],
        queries_QD: np.ndarray | None,
        where: Compiled | None,
    ) -> list[list[Hit]]:
        """For each query up to `k` of the documents that satisfy `where`, all as they are at one commit."""
        with catalog.snapshot():
            ranked = self._rank(catalog, vectors, queries, queries_QD, where)
            return [_hits(catalog, pairs[: self.k], dict(dense)) for pairs, dense in ranked]

    def _rank(
        self,
        catalog: Rows,
        vectors: Nearest,
        queries: Sequence[str],
        queries_QD: np.ndarray | None,
        where: Compiled | None,
    ) -> list[tuple[Found, Found]]:
        """Rows with their scores, best first, and those that vectors found, with similarities."""
        allowed = None if where is None else catalog.rows(where)
        by_kind: list[list[Found]] = []
        dense: list[Found] = [[] for _ in queries]
        if self.mode != "sparse":
            assert queries_QD is not None
            dense = vectors.search(queries_QD, self.depth, allowed)
            by_kind.append(dense)
        if self.mode != "dense":
            by_kind.append([catalog.match(query, self.depth, where) for query in queries])
        found = [self._fuse(*each) if self.mode == "hybrid" else each[0] for each in zip(*by_kind, strict=True)]
        if self.mmr is not None:
            assert queries_QD is not None
            found = [self._diversify(catalog, pairs, query_D) for pairs, query_D in zip(found, queries_QD, strict=True)]
        return list(zip(found, dense, strict=True))

    def _fuse(self, dense: Found, sparse: Found) -> Found:
        """Both rankings in one. Where the words are found in fewer documents than were asked for, the others hold none
        of them, and BM25 gives these 0: else the last of two matches would count no more than they do."""
        if sparse and len(sparse) < self.depth:
            matched = {row for row, _ in sparse}
            sparse = [*sparse, *((row, 0.0) for row, _ in dense if row not in matched)]
        return convex_combination(dense, sparse, self.dense_weight)

    def _diversify(self, catalog: Rows, found: Found, query_D: np.ndarray) -> Found:
        assert self.mmr is not None
        stored, vectors_ND = catalog.vectors(np.array(sorted(row for row, _ in found), np.int64), len(query_D))
        # Back in the order of the ranking, so that ties go to what the search found first.
        place = {row: position for position, row in enumerate(stored.tolist())}
        rows = [row for row, _ in found if row in place]
        chosen = maximal_marginal_relevance(query_D, vectors_ND[[place[row] for row in rows]], self.k, self.mmr)
        return [(rows[position], score) for position, score in chosen]


def _hits(catalog: Rows, found: Found, similarities: Mapping[int, float]) -> list[Hit]:
    there = ((catalog.document(row), score, similarities.get(row)) for row, score in found)
    kept = [(document, score, similarity) for document, score, similarity in there if document is not None]
    return [Hit(document, score, rank, similarity) for rank, (document, score, similarity) in enumerate(kept, start=1)]


def check_query(query: object) -> None:
    """Refuse a question that nothing can be searched for."""
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"a query must be a string with some text in it, not {query!r}")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the query {query!r} holds a lone surrogate, which is no Unicode text") from None


def convex_combination(dense: Found, sparse: Found, dense_weight: float) -> Found:
    """Score of a row: the weighted mean of its two scores, each scaled so that the highest of a ranking is 1 and the
    lowest 0, however little lies between them. A row that a ranking lacks has 0 there; where all scores of a ranking
    are alike, each row has 1. Ties go to what stands first in `dense`, then in `sparse`.

    Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023, section 4.
    """
    combined: dict[int, float] = dict.fromkeys((row for row, _ in (*dense, *sparse)), 0.0)
    for ranking, weight in ((dense, dense_weight), (sparse, 1 - dense_weight)):
        lowest, highest = (pick((score for _, score in ranking), default=0.0) for pick in (min, max))
        for row, score in ranking:
            scaled = (score - lowest) / (highest - lowest) if highest > lowest else 1.0
            combined[row] += weight * scaled
    return sorted(combined.items(), key=lambda pair: -pair[1])


def maximal_marginal_relevance(
    query_D: np.ndarray, vectors_ND: np.ndarray, k: int, relevance_weight: float
) -> list[tuple[int, float]]:
    """Up to `k` positions in `vectors_ND` and their scores, each the best of those left over when it was taken:
    ``weight * similarity to the query - (1 - weight) * greatest similarity to one taken before``.

    Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking ...", SIGIR 1998.
    """
    relevance_N = relevance_weight * (vectors_ND @ query_D)
    redundancy_N = np.full(len(vectors_ND), -np.inf, np.float32)
    free_N = np.ones(len(vectors_ND), bool)
    chosen: list[tuple[int, float]] = []
    for _ in range(min(k, len(vectors_ND))):
        penalty_N = (1 - relevance_weight) * redundancy_N if chosen else 0
        scores_N = np.where(free_N, relevance_N - penalty_N, -np.inf)
        best = int(scores_N.argmax())
        chosen.append((best, float(scores_N[best])))
        free_N[best] = False
        redundancy_N = np.maximum(redundancy_N, vectors_ND @ vectors_ND[best])
    return chosen
