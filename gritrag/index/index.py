"""An index: documents, their vectors and their states in one directory, searched and loaded through one model.

`Index` joins the parts and holds no logic of its own: `catalog` is the truth, `vectors` and `states` are files beside
it, `build` fills them, `search` asks them, `check` mistrusts them.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from gritrag.index.build import AddReport, Shelf, build, check_tokens, check_vector
from gritrag.index.catalog import Catalog, Entry
from gritrag.index.check import Checkup, check_index, orphans
from gritrag.index.codecs import get_codec
from gritrag.index.documents import Estimate, check_documents, estimate, id_list
from gritrag.index.filters import compile_filter
from gritrag.index.lock import WriterLock
from gritrag.index.manifest import CATALOG, Manifest, check_replaceable, parse_bytes, wipe
from gritrag.index.protocol import Reader
from gritrag.index.search import Search, check_query
from gritrag.index.states import DocumentState, StateStore, relative_path
from gritrag.index.vectors import Found, VectorIndex
from gritrag.records import Document, Hit

__all__ = ["Index"]

CONFLICTS = ("replace", "skip", "error")


class Index:
    """Made by `Index.create` or `Index.open`; a context manager. Safe to use from several threads."""

    def __init__(self, root: Path, manifest: Manifest, model: Reader | None, catalog: Catalog, lock: WriterLock | None):
        self.path = root
        self.writable = lock is not None
        self._model = model
        self._manifest = manifest
        self._lock = lock
        self._writing = threading.Lock()
        self._catalog = catalog
        self._files = StateStore(root)
        self._vectors = VectorIndex(root, catalog, manifest.dim)
        self._shelf = Shelf(catalog, self._files, manifest.codec, manifest.state_quota)

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        model: Reader,
        states: str = "bf16",
        state_quota: str | int | None = None,
        overwrite: bool = False,
    ) -> Self:
        """Make an empty index in a new or empty directory.

        Args:
            path: the directory.
            model: reads the documents and the questions.
            states: codec of the document states (``"bf16"``, ``"float32"``), or ``"none"`` for vectors only.
            state_quota: most bytes of states, as ``"20GB"`` or a number. Beyond it documents get no state.
            overwrite: replace the index that is there. Anything else is never replaced.

        Raises:
            ValueError: the directory holds something, cannot be written or is being written; unknown codec or size.
        """
        root, quota = Path(path), parse_bytes(state_quota)
        if not hasattr(model, "fingerprint"):
            raise ValueError(f"model must be a loaded GritModel, not {model!r}; see GritModel.from_pretrained")
        manifest = Manifest(model.fingerprint, model.dim, states, quota)
        if states != "none":
            get_codec(states)
        check_replaceable(root, overwrite)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the directory {root}: {error.strerror}") from error
        with ExitStack() as on_failure:
            lock = WriterLock(root)
            on_failure.callback(lock.release)
            check_replaceable(root, overwrite)
            wipe(root)
            (root / "states").mkdir()
            catalog = Catalog(root / CATALOG, "rwc")
            on_failure.callback(catalog.close)
            manifest.save(root)
            on_failure.pop_all()
        return cls(root, manifest, model, catalog, lock)

    @classmethod
    def open(cls, path: str | Path, *, model: Reader | None, mode: Literal["r", "rw"] = "rw") -> Self:
        """Open an index with the model that it was built with.

        Args:
            path: the directory.
            model: None is enough to look at a read-only index (`get`, `stats`, `verify`, `search_by_vector`).
            mode: ``"r"`` takes no lock and changes nothing; ``"rw"`` is for one at a time.

        Raises:
            FingerprintMismatch: another model, adapter, tokenizer, template, pooling or reading; names the field.
            ValueError: no index there, damaged or of another format; someone is writing it; it cannot be written.
        """
        if mode not in ("r", "rw"):
            raise ValueError(f"mode must be 'r' or 'rw', not {mode!r}")
        root = Path(path)
        manifest = Manifest.load(root)
        if model is not None:
            manifest.fingerprint.check(model.fingerprint, f"the index at {root}")
        elif mode == "rw":
            raise ValueError("an index is written with its model: give model=, or open it with mode='r'")
        with ExitStack() as on_failure:
            lock = WriterLock(root) if mode == "rw" else None
            if lock is not None:
                on_failure.callback(lock.release)
            catalog = Catalog(root / CATALOG, mode)
            on_failure.pop_all()
        return cls(root, manifest, model, catalog, lock)

    def close(self) -> None:
        """Bring the vectors file up to date (if writable) and let go of everything. A second call does nothing."""
        lock, self._lock = self._lock, None
        try:
            if lock is not None:
                self._vectors.save()
        finally:
            self.writable = False
            self._catalog.close()
            if lock is not None:
                lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Documents

    @property
    def model(self) -> Reader:
        """The model that reads for this index."""
        if self._model is None:
            raise ValueError(f"{self.path} was opened without a model, which this needs: open it with model=")
        return self._model

    def add(
        self,
        documents: Iterable[str | Document],
        *,
        on_conflict: Literal["replace", "skip", "error"] = "replace",
        show_progress_bar: bool = False,
    ) -> AddReport:
        """Read documents and store text, vector and state. Unchanged ones are skipped, so an interrupted call resumes.

        Args:
            documents: strings and Documents. All are checked before the first is stored.
            on_conflict: what to do with an id that already names another content.
            show_progress_bar: count documents on stderr.

        Raises:
            ValueError: see `documents.check_documents`; nothing has been stored then.
        """
        if on_conflict not in CONFLICTS:
            raise ValueError(f"on_conflict must be one of {', '.join(CONFLICTS)}, not {on_conflict!r}")
        self._require_writable()
        checked, repeated = check_documents(self.model, documents)
        with self._writing:
            report = build(self.model, self._shelf, checked, on_conflict, show_progress_bar)
        return report._replace(skipped=report.skipped + repeated)

    def delete(self, ids: Iterable[str] | None = None, where: Mapping[str, Any] | None = None) -> int:
        """Delete documents by id, by filter, or those that satisfy both; return how many. Unknown ids are no error.

        ``where={}`` deletes everything; giving neither is a ValueError.
        """
        if ids is None and where is None:
            raise ValueError("say what to delete: ids=[...] or where={...} (where={} deletes every document)")
        self._require_writable()
        wanted = None if ids is None else set(id_list(ids))
        with self._writing:
            rows = self._catalog.rows(compile_filter(where)).tolist()
            if wanted is not None:
                rows = sorted({self._catalog.row_of(id) for id in wanted} & set(rows))
            with self._catalog.transaction():
                garbage = self._catalog.forget_unread_states(self._catalog.remove(rows))
            self._files.remove(relative_path(row.key) for row in garbage)
        return len(rows)

    def get(self, ids: Iterable[str]) -> list[Document]:
        """The documents of these ids, in their order. Unknown ids are a ValueError that names them."""
        return [entry.document for entry in self._entries(ids)]

    def __len__(self) -> int:
        return self._catalog.document_totals()[0]

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._catalog.row_of(id) is not None

    def __iter__(self) -> Iterator[str]:
        """Ids, in the order in which the documents were stored."""
        return iter(self._catalog.ids())

    # Search

    def search(
        self,
        query: str,
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        mode: str = "dense",
        instruction: str | None = None,
        mmr: float | None = None,
        fetch_k: int | None = None,
    ) -> list[Hit]:
        """The `k` best documents for a question, all if there are fewer, best first.

        Args:
            query: the question.
            k: at least 1.
            where: a MongoDB-like filter over metadata, applied before the search; see `filters`.
            mode: ``"dense"`` scores are inner products of vectors, ``"sparse"`` BM25 over title and text, ``"hybrid"``
                reciprocal rank fusion of both.
            instruction: task of the question, for the embedding.
            mmr: weight in [0, 1] of relevance against novelty (maximal marginal relevance); None leaves it out.
            fetch_k: candidates taken from each ranking for ``"hybrid"`` and `mmr`; by default max(4 k, 50).
        """
        options: dict[str, Any] = {"where": where, "mode": mode, "instruction": instruction, "mmr": mmr}
        return self.search_many([query], k, **options, fetch_k=fetch_k)[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        mode: str = "dense",
        instruction: str | None = None,
        mmr: float | None = None,
        fetch_k: int | None = None,
        vectors: np.ndarray | None = None,
    ) -> list[list[Hit]]:
        """`search` for several questions that are embedded in one batch; arguments as there.

        Args:
            vectors: `[Q, dim]`, if the questions have been embedded already.
        """
        search = Search(k, mode, mmr, fetch_k)
        compiled = None if where is None else compile_filter(where)
        for query in queries:
            check_query(query)
        if not queries:
            return []
        if vectors is None and search.needs_vector:
            vectors = self.model.encode_query(list(queries), instruction)
        return [self._hits(found) for found in search.run(self._catalog, self._vectors, queries, vectors, compiled)]

    def search_by_vector(
        self, vector: Sequence[float] | np.ndarray, k: int = 5, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The `k` documents with the greatest inner product with `vector` `[dim]`."""
        search = Search(k)
        query_QD = check_vector("the query", np.asarray(vector), self._manifest.dim)[None]
        compiled = None if where is None else compile_filter(where)
        return self._hits(search.run(self._catalog, self._vectors, [""], query_QD, compiled)[0])

    def _hits(self, found: Found) -> list[Hit]:
        pairs = [(document, score) for row, score in found if (document := self._catalog.document(row)) is not None]
        return [Hit(document, score, rank) for rank, (document, score) in enumerate(pairs, start=1)]

    # States

    def load_states(self, ids: Iterable[str]) -> list[DocumentState | None]:
        """The stored states of these documents, in their order; None where there is none that can be trusted.

        Tensors are mapped from the files: cheap to load, paged in when used, and never to be written to.
        """
        return [self._state(entry) for entry in self._entries(ids)]

    def states_of(self, documents: Iterable[Document]) -> list[DocumentState | None]:
        """As `load_states`, for documents as they were found: one that is no longer here, or not so, has no state."""
        entries = [(document, self._catalog.entry(document.id)) for document in documents]
        return [
            self._state(entry) if entry is not None and entry.document.content == document.content else None
            for document, entry in entries
        ]

    def _state(self, entry: Entry) -> DocumentState | None:
        row = self._catalog.state(entry.state_key)
        return None if row is None else self._files.load(row, entry.token_ids)

    def store_state(self, id: str, state: DocumentState) -> None:
        """Keep a state that was computed elsewhere; does nothing if the index is read-only, without states, or full.

        That it was this index's model that computed it is the caller's promise.

        Raises:
            ValueError: unknown id, or the state was not computed from the tokens of this document, or read otherwise.
        """
        (entry,) = self._entries([id])
        check_tokens(id, state, entry.token_ids)
        reading = self._manifest.fingerprint.parts.get("reading", state.reading)
        if state.reading != reading:
            raise ValueError(
                f"the state of {id!r} was read {state.reading}, documents of this index are read {reading}"
            )
        if self.writable:
            with self._writing:
                self._shelf.put(entry.state_key, state)

    def _entries(self, ids: Iterable[str]) -> list[Entry]:
        wanted = id_list(ids)
        found = {id: self._catalog.entry(id) for id in wanted}
        missing = [id for id, entry in found.items() if entry is None]
        if missing:
            shown = ", ".join(repr(id) for id in missing[:5])
            raise ValueError(f"{len(missing)} of {len(wanted)} ids are not in the index: {shown}")
        return [entry for id in wanted if (entry := found[id]) is not None]

    # Care

    @staticmethod
    def estimate(model: Reader, documents: Iterable[str | Document], states: str = "bf16") -> Estimate:
        """What an index of `documents` would cost; see `documents.estimate`. Reads a few to measure the time."""
        return estimate(model, documents, states)

    def stats(self) -> dict[str, Any]:
        """Counts, bytes by kind, bytes of state per token, and what the index was built with."""
        documents, tokens = self._catalog.document_totals()
        states, state_bytes, state_tokens = self._catalog.state_totals()
        files = (self.path / CATALOG, self.path / f"{CATALOG}-wal")
        catalog_bytes = sum(file.stat().st_size for file in files if file.exists())
        return {
            "documents": documents,
            "tokens": tokens,
            "states": states,
            "bytes": {"catalog": catalog_bytes, "vectors": self._vectors.nbytes(), "states": state_bytes},
            "state_bytes_per_token": state_bytes / state_tokens if states else 0.0,
            "codec": self._manifest.codec,
            "state_quota": self._manifest.state_quota,
            "dim": self._manifest.dim,
            "fingerprint": dict(self._manifest.fingerprint.parts),
        }

    def verify(self, repair: bool = False) -> Checkup:
        """Read everything and compare it with what was written: `problems` in words, and those that were `repaired`.

        `repair` drops damaged and orphaned state files (they will be read again) and rebuilds what is derived.
        """
        if not repair:
            return check_index(self._catalog, self._files, self._vectors, self.writable, repair=False)
        self._require_writable()
        with self._writing:
            return check_index(self._catalog, self._files, self._vectors, writable=True, repair=True)

    def compact(self) -> None:
        """Give space back: drop orphaned files, shrink the catalog, write the vectors file anew."""
        self._require_writable()
        with self._writing:
            self._files.remove(orphans(self._catalog, self._files))
            self._catalog.shrink()
            self._vectors.save(rebuild=True)

    def _require_writable(self) -> None:
        if not self.writable:
            raise ValueError(f"{self.path} is open for reading only (or closed): open it with mode='rw'")
