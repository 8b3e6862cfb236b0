"""Shards: several indexes of one model, searched together as if they were one.

Each shard is an index of its own, with its own writer, so many can be written at once. What is found is ranked once:
results of all shards are merged before scores of vectors and words are combined. BM25 counts words within a shard, so
scores by words are comparable where documents were spread over the shards by chance.

`N` documents, `Q` queries, `D` length of a vector.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import xxhash

from gritrag.index.check import Checkup
from gritrag.index.documents import document_list
from gritrag.index.filters import Compiled
from gritrag.index.index import Index
from gritrag.index.protocol import Reader
from gritrag.index.reader import given_reader
from gritrag.index.search import Nearest, Rows
from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.states import Checks, DocumentState
from gritrag.index.storage.vectors import Found, VectorIndex
from gritrag.records import Document

__all__ = ["Shards", "open_many"]

T = TypeVar("T")


def open_many(
    paths: Iterable[str | Path],
    *,
    model: Reader | str | Path | None = None,
    checks: Checks = "once",
    dtype: str = "auto",
    device: str = "auto",
) -> "Shards":
    """Open several indexes, to be read together as one.

    Args:
        paths: the directories; in this order documents are listed.
        model, checks, dtype, device: see `Index.open`. A model is loaded once for all shards.

    Raises:
        FingerprintMismatch: they were built with different models.
        ValueError: no path, one instead of a list, an id that two shards hold, or what `Index.open` raises.
    """
    if isinstance(paths, str | Path):
        raise ValueError(f"open_many takes a list of paths, not one: open_many([{str(paths)!r}]), or Index.open")
    reader = None if model is None else given_reader(model, dtype, device)
    with ExitStack() as on_failure:
        indexes = []
        for path in paths:
            indexes.append(Index.open(path, model=reader, checks=checks, dtype=dtype, device=device))
            on_failure.callback(indexes[-1].close)
        shards = Shards(indexes)
        on_failure.pop_all()
    return shards


class Shards(Index):
    """Made by `open_many`. Reads as an `Index` does; each shard is written by itself, through `Index.open`.

    Ids are unique over the shards when they are opened. If a writer breaks that later, the first shard counts.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        if not indexes:
            raise ValueError("there are no shards: give the path of at least one index")
        self.indexes = tuple(indexes)
        self.path = Path(os.path.commonpath([os.path.abspath(index.path) for index in indexes]))
        first = indexes[0]
        for index in indexes[1:]:
            first._parts.manifest.check_model(index._parts.manifest.fingerprint, first.path)
        counts = Counter(id for index in indexes for id in index)
        if repeated := [id for id, count in counts.items() if count > 1]:
            raise ValueError(
                f"{len(repeated)} ids are in more than one shard (first: {repeated[0]!r}): delete them from all but one"
            )
        self._catalogs = _Catalogs([index._parts.catalog for index in indexes])
        self._vectors = _Vectors([index._parts.vectors for index in indexes])

    @property
    def model(self) -> Reader:
        """The model of all shards, loaded now if it has not been; errors are those of `Index.model`."""
        return self.indexes[0].model

    @property
    def writable(self) -> bool:
        """Never: each shard is written by itself."""
        return False

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self.indexes[0].closed

    def close(self) -> None:
        """Let go of all shards."""
        for index in self.indexes:
            index.close()

    def __len__(self) -> int:
        return sum(map(len, self.indexes))

    def __contains__(self, id: object) -> bool:
        return any(id in index for index in self.indexes)

    def __getitem__(self, id: str) -> Document:
        """The document of that id; a KeyError where there is none."""
        holder = self._holder(id)
        if holder is None:
            raise KeyError(id)
        return holder[id]

    def get(self, ids: Iterable[str]) -> list[Document]:
        """The documents of these ids, in their order; errors are those of `Index.get`."""
        listed = [ids] if isinstance(ids, str) else list(ids)
        missing = [id for id in listed if id not in self]
        if missing or isinstance(ids, str):
            return self.indexes[0].get(ids if isinstance(ids, str) else missing)  # which says what is wrong with them
        return [self[id] for id in listed]

    def ids(self, where: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of the documents that satisfy a filter, shard by shard."""
        return [id for index in self.indexes for id in index.ids(where)]

    def field(self, name: str) -> dict[str, Any]:
        """As `Index.field`, of all shards."""
        return {id: value for index in reversed(self.indexes) for id, value in index.field(name).items()}

    @property
    def tokens(self) -> int:
        """Tokens of all documents, as they were read."""
        return sum(index.tokens for index in self.indexes)

    def note(self, name: str) -> str | None:
        """What is kept under a name with the first shard that has it; None where none has."""
        return next((note for index in self.indexes if (note := index.note(name)) is not None), None)

    def set_note(self, name: str, value: str) -> NoReturn:
        """Refused: each shard is written by itself."""
        self._refuse()

    @property
    def digest(self) -> str:
        """32 hex digits over all documents, to tell whether what was made of them still holds."""
        return xxhash.xxh3_128_hexdigest("".join(index.digest for index in self.indexes).encode())

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several calls that see one commit of each shard."""
        with self._catalogs.snapshot():
            yield

    def load_states(self, documents: Iterable[Document]) -> list[DocumentState | None]:
        """As `Index.load_states`, from the shards that hold the documents."""
        return self._of_holders(documents, lambda index, held: index.load_states(held))

    def load_vectors(self, documents: Iterable[Document]) -> list[np.ndarray | None]:
        """As `Index.load_vectors`, from the shards that hold the documents."""
        return self._of_holders(documents, lambda index, held: index.load_vectors(held))

    def store_state(self, document: Document, state: DocumentState) -> None:
        """Nothing: shards are read."""

    def stats(self) -> dict[str, Any]:
        """Documents, tokens, states and bytes in all, and the statistics of each shard by its path."""
        each = {str(index.path): index.stats() for index in self.indexes}
        totals = {name: sum(stats[name] for stats in each.values()) for name in ("documents", "tokens", "states")}
        kinds = ("catalog", "vectors", "states")
        sizes = {kind: sum(stats["bytes"][kind] for stats in each.values()) for kind in kinds}
        return {**totals, "bytes": sizes, "shards": each}

    def verify(self, repair: bool = False, *, show_progress_bar: bool = False) -> Checkup:
        """The problems of all shards, each with the path of its shard. To repair one, open it by itself."""
        if repair:
            self._refuse()
        checked = [(index.path, index.verify(show_progress_bar=show_progress_bar)) for index in self.indexes]
        problems = [f"{path}: {problem}" for path, checkup in checked for problem in checkup.problems]
        return Checkup(problems, [])

    def add(self, *documents: Any, **options: Any) -> NoReturn:
        """Refused: each shard is written by itself."""
        self._refuse()

    def delete(self, *which: Any, **options: Any) -> NoReturn:
        """Refused: each shard is written by itself."""
        self._refuse()

    def compact(self, **options: Any) -> NoReturn:
        """Refused: each shard is written by itself."""
        self._refuse()

    def export(self, path: str | Path, **options: Any) -> NoReturn:
        """Refused: each shard is copied by itself."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError("shards are read together and written one by one: Index.open(path of the shard, mode='rw')")

    @property
    def _searched(self) -> tuple[Rows, Nearest, int]:
        return self._catalogs, self._vectors, self.indexes[0]._parts.manifest.dim

    def _holder(self, id: str) -> Index | None:
        return next((index for index in self.indexes if id in index), None)

    def _of_holders(
        self, documents: Iterable[Document], ask: Callable[[Index, list[Document]], list[T | None]]
    ) -> list[T | None]:
        """What each shard says of the documents that it holds, in the order of the documents."""
        listed = document_list(documents)
        answers: list[T | None] = [None] * len(listed)
        holders = [self._holder(document.id) for document in listed]
        for index in self.indexes:
            numbers = [number for number, holder in enumerate(holders) if holder is index]
            for number, answer in zip(numbers, ask(index, [listed[n] for n in numbers]), strict=True):
                answers[number] = answer
        return answers


class _Catalogs:
    """The catalogs of all shards as one: row `r` of shard `s` of `S` is `r * S + s`."""

    def __init__(self, catalogs: Sequence[Catalog]) -> None:
        self._all = catalogs

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with ExitStack() as snapshots:
            for catalog in self._all:
                snapshots.enter_context(catalog.snapshot())
            yield

    def rows(self, where: Compiled) -> np.ndarray:
        of_shards = [catalog.rows(where) * len(self._all) + shard for shard, catalog in enumerate(self._all)]
        return np.sort(np.concatenate(of_shards))

    def match(self, query: str, k: int, where: Compiled | None = None) -> Found:
        count = len(self._all)
        found = [
            (row * count + shard, score)
            for shard, catalog in enumerate(self._all)
            for row, score in catalog.match(query, k, where)
        ]
        return _best(found, k)

    def vectors(self, rows: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
        count = len(self._all)
        parts = [
            (kept * count + shard, vectors_ND)
            for shard, catalog in enumerate(self._all)
            for kept, vectors_ND in [catalog.vectors(rows[rows % count == shard] // count, dim)]
        ]
        return np.concatenate([kept for kept, _ in parts]), np.concatenate([vectors for _, vectors in parts])

    def document(self, row: int) -> Document | None:
        return self._all[row % len(self._all)].document(row // len(self._all))


class _Vectors:
    """The vectors of all shards as one, under the rows of `_Catalogs`."""

    def __init__(self, vectors: Sequence[VectorIndex]) -> None:
        self._all = vectors

    def search(self, queries_QD: np.ndarray, k: int, allowed: np.ndarray | None = None) -> list[Found]:
        count = len(self._all)
        merged: list[Found] = [[] for _ in queries_QD]
        for shard, vectors in enumerate(self._all):
            own = None if allowed is None else allowed[allowed % count == shard] // count
            for query, found in enumerate(vectors.search(queries_QD, k, own)):
                merged[query] += [(row * count + shard, score) for row, score in found]
        return [_best(found, k) for found in merged]


def _best(found: Found, k: int) -> Found:
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]
