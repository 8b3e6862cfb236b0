"""A vector store over an index. What it returns is remembered, so that a prompt that quotes it is answered from states.

`N` documents, `D` length of a vector.
"""

import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from gritrag.config import SEARCH_MODE
from gritrag.index.index import Index
from gritrag.index.parts import Parts
from gritrag.langchain.documents import from_langchain, to_langchain
from gritrag.langchain.embeddings import GritEmbeddings
from gritrag.langchain.indexes import opened
from gritrag.langchain.passages import passages_of
from gritrag.model.grit import GritModel
from gritrag.records import Document

__all__ = ["GritVectorStore"]

Filter = Mapping[str, Any]
"""Metadata that documents must have: the `where` of `Index.search`, applied before the search."""


class GritVectorStore(VectorStore):
    """LangChain's interface of an `Index`.

    Every search takes ``filter=`` (see `gritrag.index.filters`) and, where it goes by words, ``mode=``: ``"dense"``,
    ``"sparse"`` or ``"hybrid"``. Async methods run in threads.

    Args:
        index: an open index, which whoever opened it closes; or the path of one, which is opened here.
        mode: how a path is opened: ``"r"`` to search, ``"rw"`` to add and delete too.

    Raises:
        ValueError: no index at that path, or one of another kind of model.
    """

    def __init__(self, index: Index | str | Path, mode: Literal["r", "rw"] = "r") -> None:
        self.index: Index = opened(index, mode)
        if not isinstance(self.index.model, GritModel):
            kind = type(self.index.model).__name__
            raise ValueError(f"a vector store needs the index of a GritModel, not one of a {kind}")
        self._model = self.index.model

    @property
    def embeddings(self) -> GritEmbeddings:
        """Of the model that reads for the index."""
        return GritEmbeddings(model=self._model)

    # --- documents --------------------------------------------------------------------------------------------------

    def add_documents(
        self,
        documents: list[LangChainDocument],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Read documents and store them; one whose id is there already, or came earlier in the call, is replaced.

        Documents without text, as loaders make them of blank or scanned pages, are left out with a warning.

        Args:
            documents: they are not changed.
            ids: names, in place of the documents' own. Without either a name is made from the content.
            batch_size: what LangChain's indexing API passes on; an index makes its own batches.
            **kwargs: of `Index.add`: on_conflict, show_progress_bar.

        Returns:
            The ids of what was stored, in the order of the documents.

        Raises:
            ValueError: as many ids are needed as documents; other errors are those of `Index.add`.
        """
        documents = list(documents)  # a generator too, though the type says list
        given = list(ids) if ids is not None else [None] * len(documents)
        if len(given) != len(documents):
            raise ValueError(f"{len(documents)} documents came with {len(given)} ids; give one for each, or none")
        pairs = list(zip(documents, given, strict=True))
        converted = [from_langchain(document, id) for document, id in pairs if document.page_content.strip()]
        if len(converted) < len(pairs):
            blank = next(document for document in documents if not document.page_content.strip())
            warnings.warn(
                f"{len(pairs) - len(converted)} of {len(pairs)} documents hold no text and were left out (the first "
                f"has the metadata {blank.metadata}): scanned pages need text recognition (OCR) first",
                stacklevel=2,
            )
        of_id = {document.id: document for document in converted}
        replaces = kwargs.get("on_conflict", "replace") == "replace"  # else `Index.add` says what stands against what
        self.index.add(of_id.values() if replaces else converted, **kwargs)
        return [document.id for document in converted]

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_documents`, of texts, with metadata of each.

        LangChain's own loses the last texts where there are fewer ids, and all of a generator.

        Raises:
            ValueError: as many ids and metadata are needed as texts; other errors are those of `Index.add`.
        """
        if isinstance(texts, str):
            raise ValueError("expected a list of texts, got one string; put it into a list")
        listed = list(texts)
        facts = [each or {} for each in metadatas or [{}] * len(listed)]
        if len(facts) != len(listed):
            raise ValueError(f"{len(listed)} texts came with {len(facts)} metadatas; give one for each, or none")
        documents = [LangChainDocument(text, metadata=each) for text, each in zip(listed, facts, strict=True)]
        return self.add_documents(documents, ids=ids, **kwargs)

    def delete(self, ids: list[str] | None = None, *, filter: Filter | None = None, **kwargs: Any) -> bool:
        """Delete documents by id, by filter, or those that satisfy both; all of them where neither is given."""
        _refuse(kwargs)
        self.index.delete(ids, {} if ids is None and filter is None else filter)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[LangChainDocument]:
        """The documents of those ids that are there, in the order of the ids."""
        with self.index.snapshot():  # or one could be deleted between the two
            found = self.index.get([id for id in dict.fromkeys(ids) if id in self.index])
        return self._returned(found)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store of a new index that holds these texts.

        Args:
            texts, metadatas, ids: what to store.
            embedding: a `GritEmbeddings`: its model also answers, so no other will do.
            path: directory of the index; where None, one that goes when the store and its index do.
            **kwargs: of `Index.create`: states, state_quota, overwrite.

        Raises:
            ValueError: other embeddings; other errors are those of `Index.create` and `Index.add`.
        """
        if not isinstance(embedding, GritEmbeddings):
            raise ValueError(f"an index is read by one GritModel, not by {type(embedding).__name__}: GritEmbeddings")
        folder = None if path is not None else tempfile.TemporaryDirectory(prefix="gritrag-")
        index = Index.create(folder.name if folder else str(path), model=embedding.model, **kwargs)
        store = cls(index)
        # of the index, which a chain may hold without the store; its parts do not hold the index itself
        weakref.finalize(index, _discard, index._parts, folder)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    # --- search -----------------------------------------------------------------------------------------------------

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[LangChainDocument]:
        """The `k` best documents, best first; see `similarity_search_with_score`."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Filter | None = None, mode: str = SEARCH_MODE
    ) -> list[tuple[LangChainDocument, float]]:
        """With scores, higher for better: cosine similarities in mode ``"dense"``; see `Index.search` for the others.

        Raises:
            ValueError: an empty query, k below 1, an unknown mode or a broken filter.
        """
        hits = self.index.search(query, k, where=filter, mode=mode)
        passages_of(self.index).note_search(query, hits)
        return [(to_langchain(hit.document), hit.score) for hit in hits]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[LangChainDocument]:
        """The `k` documents most similar to a vector `[D]`."""
        _refuse(kwargs)
        return self._returned(hit.document for hit in self.index.search_by_vector(embedding, k, where=filter))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        mode: str = SEARCH_MODE,
        **kwargs: Any,
    ) -> list[LangChainDocument]:
        """`k` documents of the `fetch_k` best, each compared with those that were taken before it.

        Args:
            query: the question.
            k, fetch_k: how many to return, and to choose from.
            lambda_mult: 1 for relevance only, 0 for diversity only.
            filter: see `GritVectorStore`.
            mode: what ranks the candidates; novelty is always that of vectors.
            **kwargs: none.
        """
        _refuse(kwargs)
        hits = self.index.search(query, k, where=filter, mode=mode, mmr=lambda_mult, fetch_k=max(k, fetch_k))
        passages_of(self.index).note_search(query, hits)
        return [to_langchain(hit.document) for hit in hits]

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[LangChainDocument]:
        """As `max_marginal_relevance_search`, for a vector `[D]`."""
        _refuse(kwargs)
        query_QD = np.asarray([embedding], np.float32)
        if query_QD.shape != (1, self._model.dim):
            raise ValueError(f"the vector has {len(embedding)} numbers, those of this index have {self._model.dim}")
        options: dict[str, Any] = {"where": filter, "mode": "dense", "mmr": lambda_mult, "fetch_k": max(k, fetch_k)}
        hits = self.index.search_many(["(a vector)"], k, vectors=query_QD, **options)[0]  # words play no part in it
        return self._returned(hit.document for hit in hits)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return _relevance

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[LangChainDocument, float]]:
        if kwargs.get("mode", "dense") != "dense":
            raise ValueError(f"relevance within [0, 1] is known in mode 'dense' only, not {kwargs['mode']!r}")
        return super()._similarity_search_with_relevance_scores(query, k, **{**kwargs, "mode": "dense"})

    def _returned(self, documents: Iterable[Document]) -> list[LangChainDocument]:
        found = list(documents)
        passages_of(self.index).note(found)
        return [to_langchain(document) for document in found]


def _relevance(cosine: float) -> float:
    """Similarity is relevance already, but for texts that point away from each other, and rounding."""
    return min(max(cosine, 0.0), 1.0)


def _refuse(kwargs: Mapping[str, Any]) -> None:
    """An argument that nobody looks at, such as a misspelt filter, must not pass for one that was heeded."""
    if kwargs:
        raise TypeError(f"unexpected keyword arguments: {', '.join(kwargs)}")


def _discard(parts: Parts, folder: "tempfile.TemporaryDirectory[str] | None") -> None:
    parts.close()
    if folder is not None:
        folder.cleanup()
