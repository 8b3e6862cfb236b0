"""A document compressor that ranks from states: it keeps the documents behind which the question is most probable."""

from collections.abc import Sequence

import numpy as np
from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.documents import Document as LangChainDocument
from pydantic import ConfigDict, Field

from gritrag.complements import complements
from gritrag.langchain.documents import from_langchain
from gritrag.langchain.indexes import OpenIndex
from gritrag.langchain.passages import identify, passages_of

__all__ = ["SCORE", "GritReranker"]

SCORE = "relevance_score"
"""Name under which LangChain's rerankers put a score into metadata."""


class GritReranker(BaseDocumentCompressor):
    """Ranks documents by how probable the question is behind each of their states; none is read again.

    For a `ContextualCompressionRetriever` around any retriever. Documents that the index does not hold are read. The
    score, a mean log-probability of the question's tokens, stands in ``metadata["relevance_score"]``. Where the
    question needs several documents, those that complete the best one come next, whatever their score. The retriever's
    own scores do not reach a compressor; ``GritRetriever(rerank=...)`` ranks by both.

    Args:
        index: whose states are used: an open index, or the path of one.
        top_n: so many documents are kept; all where None.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    index: OpenIndex = Field(repr=False)
    top_n: int | None = Field(4, ge=1)

    def compress_documents(
        self, documents: Sequence[LangChainDocument], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[LangChainDocument]:
        """The best documents, best first, each a copy with its score. Those without text are left out.

        Raises:
            ValueError: an empty query, or a document that is too long to be read.
        """
        given = [document for document in documents if document.page_content.strip()]
        asked = [from_langchain(document) for document in given]
        held = [identify(self.index, document) or document for document in asked]
        logs_NS = self.index.question_token_log_likelihoods(query, held)
        if not held:
            return []
        logs_N = logs_NS.mean(1)
        order = _order(logs_NS, logs_N)[: self.top_n]
        passages_of(self.index).note(held[number] for number in order)
        return [_scored(given[number], held[number].id, float(logs_N[number])) for number in order]


def _order(logs_NS: np.ndarray, logs_N: np.ndarray) -> list[int]:
    """The best, then what completes it where the question needs several, then the others."""
    best = int(logs_N.argmax())
    first = [best, *complements(logs_NS, best)]
    return first + [row for row in np.argsort(-logs_N, kind="stable").tolist() if row not in first]


def _scored(document: LangChainDocument, id: str, score: float) -> LangChainDocument:
    """With the metadata that it came with, which may be another's than those of the text in the index."""
    return document.model_copy(update={"id": document.id or id, "metadata": {**document.metadata, SCORE: score}})
