"""Embeddings: the vectors of a GritModel for any LangChain vector store."""

from typing import Any

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gritrag.config import DEFAULT_MODEL
from gritrag.index.index import Index
from gritrag.langchain.indexes import opened
from gritrag.langchain.models import HoldsModel, Model

__all__ = ["GritEmbeddings"]


class GritEmbeddings(HoldsModel, BaseModel, Embeddings):
    """Vectors of queries and of documents, each L2-normalised and `dim` long.

    Args:
        model: a `GritModel`, or the name of one to load; by default that of the index, else the default checkpoint.
        index: an open index, or the path of one, whose model it is to be.
        instruction: task of the queries; the checkpoint's own where None.
        batch_size: at most so many texts at a time.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: Model = Field(repr=False)
    instruction: str | None = None
    batch_size: int = Field(32, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        index = opened(fields.get("index"))
        others = {name: value for name, value in fields.items() if name != "index"}
        if others.get("model") is None:
            others["model"] = index.model if isinstance(index, Index) else DEFAULT_MODEL
        return others

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors `[N][dim]`.

        Raises:
            ValueError: a text is empty or longer than the model reads.
        """
        vectors: list[list[float]] = self.model.encode_document(texts, batch_size=self.batch_size).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Vector `[dim]`; errors are those of `embed_documents`."""
        vector: list[float] = self.model.encode_query([text], self.instruction)[0].tolist()
        return vector
