"""LangChain's own suites, whole, on the default checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from gritrag import GritModel, Index
from gritrag.langchain import ChatGritRAG, GritEmbeddings, GritRetriever, GritVectorStore


class _OfOneModel:
    """The suites build their subject from class and parameters; the model is loaded once for all of them."""

    @pytest.fixture(autouse=True)
    def _load(self, grit: GritModel) -> None:
        self.grit = grit


class _Chat(_OfOneModel):
    @property
    def chat_model_class(self) -> type[ChatGritRAG]:
        return ChatGritRAG

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.grit}

    @property
    def has_tool_calling(self) -> bool:
        return False  # the suite takes any method of that name for tools; ours says that there are none


class TestChatUnit(_Chat, ChatModelUnitTests):
    pass


class TestChatIntegration(_Chat, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.grit, "max_tokens": 4}


class _Embeddings(_OfOneModel):
    @property
    def embeddings_class(self) -> type[GritEmbeddings]:
        return GritEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.grit}


class TestEmbeddingsUnit(_Embeddings, EmbeddingsUnitTests):
    pass


class TestEmbeddingsIntegration(_Embeddings, EmbeddingsIntegrationTests):
    pass


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, grit: GritModel, tmp_path: Path) -> Iterator[VectorStore]:
        with Index.create(tmp_path / "index", model=grit) as index:
            yield GritVectorStore(index)


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _open(self, corpus_index: Index) -> None:
        self.index = corpus_index

    @property
    def retriever_constructor(self) -> type[GritRetriever]:
        return GritRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.index}

    @property
    def retriever_query_example(self) -> str:
        return "Which lake lies in the crater of a volcano?"
