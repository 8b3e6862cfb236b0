"""LangChain's clients for OpenAI drive the server unchanged."""

import numpy as np
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr
from serving import QUESTIONS, Running

from gritrag import GritModel


@pytest.fixture(scope="module")
def chat(server: Running) -> ChatOpenAI:
    return ChatOpenAI(model="rag/docs", base_url=f"{server.url}/v1", api_key=SecretStr("none"), max_completion_tokens=5)


def test_chat_answers_streams_and_counts(chat: ChatOpenAI) -> None:
    answer = chat.invoke(QUESTIONS[0])
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
    chunks = list(chat.stream(QUESTIONS[0], stream_usage=True))
    assert "".join(str(chunk.content) for chunk in chunks).strip() == answer.content
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0
    assert len(chat.batch(QUESTIONS)) == len(QUESTIONS)


async def test_chat_answers_many_at_once(chat: ChatOpenAI) -> None:
    answers = await chat.abatch(QUESTIONS * 2)
    assert [a.content for a in answers[:6]] == [a.content for a in answers[6:]]


def test_the_responses_api(server: Running) -> None:
    chat = ChatOpenAI(
        model="tiny",
        base_url=f"{server.url}/v1",
        api_key=SecretStr("none"),
        use_responses_api=True,
        max_completion_tokens=5,
    )
    answer = chat.invoke("one two three")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_embeddings(server: Running, tiny_model: GritModel) -> None:
    embeddings = OpenAIEmbeddings(
        model="gritrag", base_url=f"{server.url}/v1", api_key=SecretStr("none"), check_embedding_ctx_length=False
    )
    vectors = embeddings.embed_documents(QUESTIONS)
    np.testing.assert_allclose(vectors, tiny_model.encode_document(QUESTIONS), atol=1e-6)
    assert len(embeddings.embed_query(QUESTIONS[0])) == tiny_model.dim
