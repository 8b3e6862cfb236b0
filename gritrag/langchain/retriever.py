"""A retriever over an index. What it returns is remembered, so that a prompt that quotes it is answered from states."""

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from gritrag.config import DENSE_WEIGHT, SEARCH_MODE
from gritrag.langchain.documents import to_langchain
from gritrag.langchain.indexes import OpenIndex
from gritrag.langchain.passages import passages_of

__all__ = ["GritRetriever"]


class GritRetriever(BaseRetriever):
    """Documents for a question. Each field but `index` can also be given per call: ``retriever.invoke(question, k=3)``.

    Args:
        index: an open index, or the path of one.
        k: how many documents.
        filter: metadata that they must have, see `gritrag.index.filters`; applied before the search.
        mode: ``"hybrid"``, ``"dense"`` or ``"sparse"``.
        mmr: weight of relevance against novelty in [0, 1]; None leaves it out.
        fetch_k: candidates from each ranking; see `Index.search`.
        dense_weight: of vectors against words in ``"hybrid"``, in [0, 1].
        rerank: so many candidates are ranked from their states; see `Index.rerank`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    index: OpenIndex = Field(repr=False)
    k: int = 4
    filter: Mapping[str, Any] | None = None
    mode: str = SEARCH_MODE
    mmr: float | None = None
    fetch_k: int | None = None
    dense_weight: float = DENSE_WEIGHT
    rerank: int | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[LangChainDocument]:
        names = {"k", "mode", "mmr", "fetch_k", "dense_weight", "rerank"}
        fields = {"where": self.filter, **self.model_dump(include=names)}
        if "filter" in options and "where" in options:
            raise ValueError("filter and where are two names for the same: give one of them")
        if "filter" in options:
            options["where"] = options.pop("filter")
        hits = self.index.search(query, **{**fields, **options})
        passages_of(self.index).note_search(query, hits)
        return [to_langchain(hit.document) for hit in hits]
