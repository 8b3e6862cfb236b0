"""An index: documents, their vectors and their states in one directory, searched and loaded through one model.

`Index` joins the parts and holds no logic of its own: `catalog` is the truth, `vectors` and `states` are files beside
it, `build` fills them, `quota` says which states are kept, `search` asks them, `check` mistrusts them.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import numpy as np

from gritrag.arguments import whole
from gritrag.config import DEFAULT_MODEL, DENSE_WEIGHT, SEARCH_MODE
from gritrag.index.build import AddReport, build, check_vector, remove
from gritrag.index.check import Checkup, check_index, shrink, statistics
from gritrag.index.contents import Contents
from gritrag.index.documents import Estimate, check_documents, estimate, id_list
from gritrag.index.export import export
from gritrag.index.filters import compile_filter
from gritrag.index.parts import Parts
from gritrag.index.protocol import Reader
from gritrag.index.reader import given_reader
from gritrag.index.rerank import check_rerank, ranked, ranker
from gritrag.index.search import Nearest, Rows, Search, check_query
from gritrag.index.storage.manifest import Manifest
from gritrag.index.storage.states import Checks
from gritrag.records import Document, Hit, check_hits

__all__ = ["Index"]

CONFLICTS = ("replace", "skip", "error")


class Index(Contents):
    """Made by `Index.create` or `Index.open`; a context manager. Safe to use from several threads."""

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        model: Reader | str | Path = DEFAULT_MODEL,
        states: str = "bf16",
        state_quota: str | int | None = None,
        states_at: str | None = None,
        vectors_at: str | None = None,
        overwrite: bool = False,
    ) -> Self:
        """Make an empty index in a new or empty directory.

        Args:
            path: the directory.
            model: reads the documents and the questions; a loaded one or the name of one, which the index remembers.
            states: codec of the document states (``"bf16"``, ``"float32"``, ``"int8"``, ``"int4"`` or ``"transform"``);
                ``"none"`` for vectors only.
            state_quota: most bytes of states, as ``"20GB"`` or a number. Beyond it those that are asked for most stay.
            states_at: URL of object storage for the states, such as ``"s3://bucket/notes"``; in the directory where
                None. One index writes there; copies of it read there too. See `gritrag.index.storage.remote_states`.
            vectors_at: URL of a Qdrant server for the vectors, or a folder for its local mode; FAISS in the directory
                where None. See `gritrag.index.storage.qdrant`.
            overwrite: replace the index that is there. Anything else is never replaced.

        Raises:
            ValueError: the directory holds something, cannot be written or is being written; unknown model, codec or
                size.
        """
        reader = given_reader(model)
        return cls(Parts.create(Path(path), reader, states, state_quota, overwrite, states_at, vectors_at), reader)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: Reader | str | Path | None = None,
        mode: Literal["r", "rw"] = "r",
        checks: Checks = "once",
        dtype: str = "auto",
        device: str = "auto",
    ) -> Self:
        """Open an index, to be read unless writing is asked for.

        Args:
            path: the directory.
            model: the one that the index was built with, loaded or by a name; where None, the index loads it by the
                name that it remembers, as soon as something has to be read and not before.
            mode: ``"r"`` takes no lock and changes nothing; ``"rw"`` is for one at a time.
            checks: manifest and catalog are compared with their checksums now, the vectors file when it is loaded, rows
                whenever they are read; state files when they are first read (``"once"``) or whenever they are
                (``"always"``). Pages of a catalog of more than 64 MB that is only read are compared in the background
                with ``"once"``: damage is a `DamagedIndex` at the next call, and nothing is read from then on.
            dtype, device: of a model that is loaded by its name; see `GritModel.from_pretrained`.

        Raises:
            FingerprintMismatch: another model, adapter, tokenizer, template, pooling or reading; names the field.
            DamagedIndex: the manifest or the catalog is not what was written.
            ValueError: no index there, or of another format; someone is writing it; it cannot be written; no model of
                that name.
        """
        if isinstance(model, str | Path):
            Manifest.load(Path(path))  # whether there is an index is said before a model is loaded for it
        reader = None if model is None else given_reader(model, dtype, device)
        return cls(Parts.open(Path(path), reader, mode, checks), reader, dtype, device)

    def close(self) -> None:
        """Bring the vectors file up to date (if writable) and let go of everything. A second call does nothing."""
        self._parts.close()

    @property
    def closed(self) -> bool:
        """Whether `close` has been called; what is closed is opened anew, with `Index.open`."""
        return self._parts.catalog.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"an open index cannot be pickled: pass on its path, {self.path}, to Index.open it there")

    # Documents

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
        with self._parts.writing():
            checked, repeated = check_documents(self.model, documents)
            report = build(self.model, self._parts, checked, on_conflict, show_progress_bar)
        return report._replace(skipped=report.skipped + repeated)

    def delete(self, ids: Iterable[str] | None = None, where: Mapping[str, Any] | None = None) -> int:
        """Delete documents by id, by filter, or those that satisfy both; return how many. Unknown ids are no error.

        ``where={}`` deletes everything; giving neither is a ValueError.
        """
        if ids is None and where is None:
            raise ValueError("say what to delete: ids=[...] or where={...} (where={} deletes every document)")
        wanted = None if ids is None else set(id_list(ids))
        with self._parts.writing():
            return remove(self._parts, wanted, compile_filter(where))

    # Search

    def search(
        self,
        query: str,
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        mode: str = SEARCH_MODE,
        instruction: str | None = None,
        mmr: float | None = None,
        fetch_k: int | None = None,
        dense_weight: float = DENSE_WEIGHT,
        rerank: int | None = None,
    ) -> list[Hit]:
        """The `k` best documents for a question, all if there are fewer, best first.

        Args:
            query: the question.
            k: at least 1.
            where: a MongoDB-like filter over metadata, applied before the search; see `filters`.
            mode: of ``"dense"`` scores are inner products of vectors, of ``"sparse"`` BM25 over title and text, of
                ``"hybrid"`` means of both, each scaled to [0, 1]; see `gritrag.index.search.convex_combination`.
            instruction: task of the question, for the embedding.
            mmr: weight in [0, 1] of relevance against novelty (maximal marginal relevance); None leaves it out.
            fetch_k: candidates taken from each ranking for ``"hybrid"`` and `mmr`; by default max(4 k, 50).
            dense_weight: weight in [0, 1] of vectors against words in ``"hybrid"``; `mmr` chooses among what
                both found by vectors alone.
            rerank: so many of the best candidates, at least `k`, are ranked anew by their states; see `rerank`.

        Raises:
            ValueError: an empty question, an unknown mode, a number out of its range, an invalid filter, or `rerank`
                with `mmr` or with a model that does not rank.
            FingerprintMismatch: the index loads its model, and that is another one now.
        """
        options: dict[str, Any] = {"where": where, "mode": mode, "instruction": instruction, "mmr": mmr}
        options |= {"fetch_k": fetch_k, "dense_weight": dense_weight, "rerank": rerank}
        return self.search_many([query], k, **options)[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        mode: str = SEARCH_MODE,
        instruction: str | None = None,
        mmr: float | None = None,
        fetch_k: int | None = None,
        dense_weight: float = DENSE_WEIGHT,
        vectors: np.ndarray | None = None,
        rerank: int | None = None,
    ) -> list[list[Hit]]:
        """`search` for several questions that are embedded in one batch; arguments as there.

        Args:
            vectors: `[Q, dim]`, if the questions have been embedded already.

        Raises:
            ValueError: as `search`; one string instead of a list; or vectors of another shape, or that are not finite.
        """
        search = Search(k, mode, mmr, fetch_k, dense_weight)
        check_rerank(rerank, search.k, mmr)
        compiled = None if where is None else compile_filter(where)
        if isinstance(queries, str):
            raise ValueError("expected a list of queries, got one string; use search, or put it into a list")
        catalog, vector_index, dim = self._searched
        expected = (len(queries), dim)
        if vectors is not None and vectors.shape != expected:
            raise ValueError(
                f"vectors of {len(queries)} queries have shape {list(expected)}, not {list(vectors.shape)}"
            )
        if vectors is not None and not np.isfinite(vectors).all():
            raise ValueError("the vector of a query is not finite: nothing is near to NaN or infinity")
        for query in queries:
            check_query(query)
        if not queries:
            return []
        if vectors is None and search.needs_vector:
            vectors = self.model.encode_query(list(queries), instruction)
        if rerank is None:
            return search.run(catalog, vector_index, queries, vectors, compiled)
        found = replace(search, k=rerank).run(catalog, vector_index, queries, vectors, compiled)
        return [self.rerank(query, hits, k) for query, hits in zip(queries, found, strict=True)]

    def rerank(self, query: str, hits: Sequence[Hit], k: int | None = None) -> list[Hit]:
        """Rank hits anew: by their scores, and by how probable the question is behind the state of each document.

        Where the question needs several documents, those that explain words of it which the best one does not come
        near the front, with a score close to its own (`Hit.is_complement`).
        No document is read again but those whose state is missing; these are stored if the index is written here.

        Args:
            query: the question.
            hits: as a search of this index found them. Where all have one score, only the states count.
            k: so many of the best; all where None.

        Raises:
            ValueError: an empty question, a `k` below 1, or a model that does not rank.
        """
        listed = check_hits(hits)
        if k is not None and whole("k", k) < 1:
            raise ValueError(f"k must be a whole number of at least 1, not {k!r}")
        logs_NS = self.question_token_log_likelihoods(query, [hit.document for hit in listed])
        return ranked(listed, logs_NS, len(listed) if k is None else k)

    def question_log_likelihoods(self, query: str, documents: Sequence[Document]) -> np.ndarray:
        """How probable a question is behind each document: float32 `[N]`, mean log-probability of its tokens in nats.

        Documents that are not in the index, or have lost their state, are read. Errors are those of `rerank`.
        """
        return self.question_token_log_likelihoods(query, documents).mean(1)

    def question_token_log_likelihoods(self, query: str, documents: Sequence[Document]) -> np.ndarray:
        """How probable each token of a question is behind each document: float32 `[N, S]`, in nats.

        Documents and errors are those of `question_log_likelihoods`.
        """
        model = ranker(self.model)
        check_query(query)
        return model.question_token_log_likelihoods(query, self.states_of(documents)[0])

    def search_by_vector(
        self, vector: Sequence[float] | np.ndarray, k: int = 5, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The `k` documents with the greatest inner product with `vector` `[dim]`.

        Raises:
            ValueError: a vector of another length or that is not finite, a `k` below 1, or an invalid filter.
        """
        search = Search(k, "dense")
        catalog, vector_index, dim = self._searched
        query_QD = check_vector("the query", np.asarray(vector), dim)[None]
        compiled = None if where is None else compile_filter(where)
        return search.run(catalog, vector_index, [""], query_QD, compiled)[0]

    @property
    def _searched(self) -> tuple[Rows, Nearest, int]:
        """What a search goes through, and the length of a vector."""
        return self._parts.catalog, self._parts.vectors, self._parts.manifest.dim

    # Care

    @staticmethod
    def estimate(model: Reader, documents: Iterable[str | Document], states: str = "bf16") -> Estimate:
        """What an index of `documents` would cost; see `documents.estimate`. Reads a few to measure the time."""
        return estimate(model, documents, states)

    def stats(self) -> dict[str, Any]:
        """Counts, bytes by kind, bytes of state per token, and what the index was built with."""
        return statistics(self._parts.catalog, self._parts.vectors, self._parts.manifest)

    def verify(self, repair: bool = False, *, show_progress_bar: bool = False) -> Checkup:
        """Read everything and compare it with what was written: `problems` in words, and those that were `repaired`.

        `repair` drops damaged and orphaned state files (they will be read again) and rebuilds what is derived.
        `show_progress_bar` counts bytes on stderr.
        """
        parts = self._parts
        with parts.writing() if repair else nullcontext():
            return check_index(parts.catalog, parts.files, parts.vectors, self.writable, repair, show_progress_bar)

    def compact(self, *, show_progress_bar: bool = False) -> None:
        """Give space back: drop orphaned files, shrink the catalog, write the vectors file anew.

        `show_progress_bar` counts bytes on stderr.
        """
        parts = self._parts
        with parts.writing():
            shrink(parts.catalog, parts.files, parts.vectors, show_progress_bar)

    def export(self, path: str | Path, *, show_progress_bar: bool = False) -> None:
        """Copy the index to a new or empty directory as it is at one commit, without garbage; it can be opened at once.

        A state that is damaged is left out, and read again there. Neither a model nor the right to write is needed.
        `show_progress_bar` counts bytes on stderr.

        Raises:
            ValueError: the directory is no place for it: it holds something, or lies in this index.
        """
        if Path(path).resolve().is_relative_to(Path(self.path).resolve()):
            raise ValueError(f"{path} lies in the index itself, which holds nothing else: choose one outside")
        export(self._parts.manifest, self._parts.catalog, self._parts.files, Path(path), show_progress_bar)
