"""A text splitter of LangChain's that counts in the tokens of the model that will read the chunks."""

import copy
from pathlib import Path
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from langchain_text_splitters import TextSplitter

from gritrag.langchain.models import loaded
from gritrag.model.grit import GritModel
from gritrag.records import Document
from gritrag.tokens import chunk_documents

__all__ = ["GritTextSplitter"]


class GritTextSplitter(TextSplitter):
    """Cuts at the best boundary there is into chunks of at most `chunk_size` tokens, as `gritrag.chunk_documents` does.

    Args:
        model: counts; a `GritModel`, or the name of one.
        chunk_size, chunk_overlap: in content tokens, without the few that the template puts around a document.
        **options: of `TextSplitter`, such as add_start_index.

    Raises:
        ValueError: an overlap that is not below the size.
    """

    def __init__(
        self, model: GritModel | str | Path, chunk_size: int = 256, chunk_overlap: int = 0, **options: Any
    ) -> None:
        if not 0 <= chunk_overlap < chunk_size:
            raise ValueError(f"chunk_overlap must be from 0 to chunk_size - 1 = {chunk_size - 1}, got {chunk_overlap}")
        counts: GritModel = loaded(model)
        super().__init__(chunk_size, chunk_overlap, length_function=counts.count_tokens, **options)

    def split_text(self, text: str) -> list[str]:
        """Chunks of a text, none of a blank one."""
        return [chunk.text for chunk in self._chunks(text)]

    def create_documents(
        self, texts: list[str], metadatas: list[dict[Any, Any]] | None = None
    ) -> list[LangChainDocument]:
        """Chunks of several texts, each with the metadata of its text."""
        documents = []
        for text, metadata in zip(texts, metadatas or [{}] * len(texts), strict=True):
            for chunk in self._chunks(text):
                # the base class looks for a chunk by characters of overlap, and these are tokens
                start = {"start_index": chunk.metadata.get("start", 0)} if self._add_start_index else {}
                documents.append(LangChainDocument(chunk.text, metadata={**copy.deepcopy(metadata), **start}))
        return documents

    def _chunks(self, text: str) -> list[Document]:
        if not text.strip():
            return []
        return list(chunk_documents([text], self._length_function, self._chunk_size, self._chunk_overlap))
