"""The official `openai` client drives the server: what it sends by default, and what it expects to get."""

import base64
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from serving import DOCUMENTS, QUESTIONS, Running

from gritrag import GritModel
from gritrag.serve.openai_bodies import EmbeddingRow
from gritrag.serve.tenants import Tenant

CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTIONS[0]}]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


# --- chat ------------------------------------------------------------------------------------------------------------


def test_chat_answers_and_counts(client: openai.OpenAI, tiny_model: GritModel) -> None:
    answer = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=8)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == tiny_model.generate([dict(m) for m in CHAT], max_new_tokens=8)  # type: ignore[arg-type]
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tiny_model.prompts.prompt_ids([dict(m) for m in CHAT]))  # type: ignore[arg-type]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


def test_chat_streams_what_it_would_say_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=8)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=CHAT, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    *texts, last = chunks
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in texts)
    assert texts[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in texts) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in texts][-1] == whole.choices[0].finish_reason
    assert {chunk.id for chunk in chunks} == {last.id}
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]


def test_a_stream_ends_with_done_and_has_usage_only_when_asked(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 4, "stream": True}
    for options, counts in ((None, 0), ({"include_usage": False}, 0), ({"include_usage": True}, 1)):
        lines = http.post("/v1/chat/completions", json={**body, "stream_options": options}).text.split("\n\n")
        assert [line for line in lines if line][-1] == "data: [DONE]"
        assert sum('"choices": []' in line for line in lines) == counts


def test_the_next_turn_reuses_the_turns_before(client: openai.OpenAI, tiny_model: GritModel) -> None:
    chat = [{"role": "system", "content": "short answers"}, {"role": "user", "content": "one two three"}]
    first = client.chat.completions.create(model="tiny", messages=chat, max_tokens=6)  # type: ignore[arg-type]
    chat += [{"role": "assistant", "content": first.choices[0].message.content or ""}]
    chat += [{"role": "user", "content": "and then?"}]
    second = client.chat.completions.create(model="tiny", messages=chat, max_tokens=6)  # type: ignore[arg-type]
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens or 0
    assert cached >= first.usage.prompt_tokens  # type: ignore[union-attr]
    assert second.choices[0].message.content == tiny_model.generate(chat, max_new_tokens=6)
    other = [chat[0], {"role": "user", "content": "something else"}]
    third = client.chat.completions.create(model="tiny", messages=other, max_tokens=6)  # type: ignore[arg-type]
    assert third.usage.prompt_tokens_details.cached_tokens > 0, "the system prompt is known"  # type: ignore[union-attr]
    assert third.choices[0].message.content == tiny_model.generate(other, max_new_tokens=6)


def test_a_conversation_about_documents_reuses_both(client: openai.OpenAI) -> None:
    """What was said before stands before the documents, so that other documents do not change it."""
    chat = [{"role": "system", "content": "answer from the documents, in a few words"}]
    texts = []
    for question in QUESTIONS[:3]:
        chat.append({"role": "user", "content": question})
        answer = client.chat.completions.create(model="rag/docs", messages=chat, max_tokens=6)  # type: ignore[arg-type]
        texts.append(answer.choices[0].message.content)
        told = answer.model_extra["gritrag"]  # type: ignore[index]
        documents = sum(citation["end"] - citation["start"] for citation in told["citations"])
        details = answer.usage.prompt_tokens_details  # type: ignore[union-attr]
        if len(chat) > 2:
            assert details.cached_tokens > documents, "the turns before the last were read once"  # type: ignore[union-attr, operator]
        chat.append({"role": "assistant", "content": texts[-1] or ""})
    again = client.chat.completions.create(model="rag/docs", messages=chat[:-1], max_tokens=6)  # type: ignore[arg-type]
    assert again.choices[0].message.content == texts[-1], "what is reused changes no token"


def test_choices_seeds_and_stop(client: openai.OpenAI) -> None:
    def draw(seed: int, **options: object) -> list[str | None]:
        answer = client.chat.completions.create(
            model="tiny",
            messages=CHAT,
            max_tokens=12,
            temperature=1.5,
            n=3,
            seed=seed,
            **options,  # type: ignore[call-overload]
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    texts = draw(7)
    assert draw(7) == texts
    assert draw(8) != texts
    assert len(set(texts)) > 1
    text = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=12).choices[0].message.content or ""
    stop = text[3:5]
    cut = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=12, stop=stop).choices[0]
    assert cut.message.content == text[: text.index(stop)]
    assert cut.finish_reason == "stop"


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=5, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == answer.usage.completion_tokens  # type: ignore[union-attr]
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(max(each.logprob for each in token.top_logprobs))
        assert token.logprob <= 0


def test_bytes_of_logprobs_make_the_text_though_no_token_is_a_whole_character(http: httpx.Client) -> None:
    """The tiny model writes bytes, of which most are no text by themselves."""
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 24, "logprobs": True, "temperature": 1.5, "seed": 11}
    answer = http.post("/v1/chat/completions", json=body).json()
    choice = answer["choices"][0]
    told = choice["logprobs"]["content"]
    written = b"".join(bytes(token["bytes"]) for token in told if not token["token"].startswith("<|"))  # control tokens
    assert written.decode(errors="replace") == choice["message"]["content"]
    assert any(len(token["bytes"]) == 1 and token["bytes"][0] > 127 for token in told)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-38},
        {"temperature": 1e-320, "n": 2},
        {"temperature": 1.0, "seed": 2**63 - 1, "n": 3},
        {"temperature": 1.0, "top_p": 1e-300, "top_k": 10**30, "seed": -(2**63)},
    ],
)
def test_numbers_at_the_ends_of_their_ranges_are_answered(fields: dict[str, Any], http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": CHAT, "max_tokens": 2, **fields})
    assert answer.status_code == 200, answer.text
    if fields["temperature"] < 1e-4:
        greedy = http.post("/v1/chat/completions", json={"model": "tiny", "messages": CHAT, "max_tokens": 2}).json()
        assert {choice["message"]["content"] for choice in answer.json()["choices"]} == {
            greedy["choices"][0]["message"]["content"]
        }


def test_a_question_that_is_too_long_is_413_with_documents_and_without(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "word " * 1000}]
    for model in ("tiny", "rag/docs"):
        answer = http.post("/v1/chat/completions", json={"model": model, "messages": messages})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_unknown_fields_are_ignored_and_what_would_matter_is_refused(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 2}
    ignored = {"user": "me", "service_tier": "auto", "safety_identifier": "x", "future_field": {"a": 1}, "tools": []}
    ignored |= {"tool_choice": "auto", "function_call": "none", "logit_bias": {"5": 0}}
    ignored |= {"modalities": ["text"], "reasoning_effort": "low", "store": True, "metadata": {"a": "b"}}
    assert http.post("/v1/chat/completions", json={**body, **ignored, "temperature": None}).status_code == 200
    for field, value in {
        "frequency_penalty": 0.5,
        "presence_penalty": 1,
        "logit_bias": {"5": 1},
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "response_format": {"type": "json_object"},
        "tool_choice": "required",
        "function_call": {"name": "f"},
        "stop": [""],
        "modalities": ["text", "audio"],
        "audio": {"voice": "ash", "format": "wav"},
        "web_search_options": {},
        "moderation": {"model": "x"},
        "n": 99,
    }.items():
        response = http.post("/v1/chat/completions", json={**body, field: value})
        assert response.status_code == 400, field
        assert response.json()["error"]["param"] == field


def test_what_the_client_may_call_and_there_is_not_says_what_to_do(client: openai.OpenAI, http: httpx.Client) -> None:
    stored = client.chat.completions
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: stored.retrieve("chatcmpl-1"), "/v1/responses stores"),
        (lambda: stored.list(), "/v1/responses stores"),
        (lambda: stored.update("chatcmpl-1", metadata={}), "/v1/responses stores"),
        (lambda: stored.delete("chatcmpl-1"), "/v1/responses stores"),
        (lambda: stored.messages.list("chatcmpl-1"), "/v1/responses stores"),
        (lambda: client.models.delete("gritrag"), "that the server was started with"),
        (lambda: client.responses.compact(model="gritrag", input="hi"), "send the messages that are to be kept"),
        (lambda: client.moderations.create(input="hi"), "there is no such route; /docs"),
        (lambda: client.batches.list(), "there is no such route; /docs"),
    ]
    for call, told in calls:
        with pytest.raises(openai.APIStatusError, match=told) as error:
            call()
        assert error.value.status_code in (404, 405)
    with pytest.raises(openai.BadRequestError, match="expires_after: a file is kept here until it is deleted"):
        client.files.create(
            file=("a.txt", b"x"), purpose="assistants", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert client.files.list().data == []


def test_errors_have_the_shape_that_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=CHAT)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}])
    assert wrong.value.param == "messages.0.role"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=CHAT, temperature=-1)
    with pytest.raises(openai.APIStatusError) as long:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "long " * 500}])
    assert long.value.status_code == 413
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        )


def test_text_parts_and_developer_messages_are_read(client: openai.OpenAI, tiny_model: GritModel) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        max_completion_tokens=6,
        messages=[
            {"role": "developer", "content": "short"},
            {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
        ],
    )
    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": "one two"}]
    assert answer.choices[0].message.content == tiny_model.generate(chat, max_new_tokens=6)


@pytest.mark.parametrize("model", ["rag/docs", "gritrag"])
def test_a_model_of_an_index_answers_from_it(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=CHAT, max_tokens=4)
    told = answer.model_extra["gritrag"]  # type: ignore[index]
    assert told["hits"][0]["id"] == "ferry"
    assert told["citations"]
    assert answer.usage.prompt_tokens_details.cached_tokens > 0  # type: ignore[union-attr]
    assert client.models.retrieve("rag/docs").id == "rag/docs"


def test_the_extension_chooses_index_mode_and_documents(client: openai.OpenAI) -> None:
    def ask(**extension: object) -> dict[str, object]:
        answer = client.chat.completions.create(
            model="tiny", messages=CHAT, max_tokens=4, extra_body={"gritrag": extension}
        )
        told: dict[str, object] = answer.model_extra["gritrag"]  # type: ignore[index]
        return told

    assert ask(index="docs", mode="doc-query")["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # type: ignore[index]
    filtered = ask(index="docs", where={"kind": "bridge"})
    assert [hit["id"] for hit in filtered["hits"]] == ["bridge"]  # type: ignore[attr-defined]
    given = ask(documents=["a ferry of paper", {"id": "x", "text": "and another"}])
    assert [hit["text"] for hit in given["hits"]] == ["a ferry of paper", "and another"]  # type: ignore[attr-defined]
    again = ask(documents=["a ferry of paper", {"id": "x", "text": "and another"}])
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]  # type: ignore[index]
    assert cached == sum(citation["end"] - citation["start"] for citation in again["citations"])  # type: ignore[attr-defined]


# --- completions -----------------------------------------------------------------------------------------------------


def test_completions(client: openai.OpenAI, tiny_model: GritModel) -> None:
    answer = client.completions.create(model="tiny", prompt=["one", "two"], max_tokens=5, logprobs=2)
    assert [choice.text for choice in answer.choices] == tiny_model.generate(["one", "two"], max_new_tokens=5)
    assert answer.choices[0].logprobs is not None
    ids = tiny_model.prompts.prompt_ids("one")
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=5)
    assert by_ids.choices[0].text == answer.choices[0].text
    pieces = client.completions.create(model="tiny", prompt="one", max_tokens=5, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


def test_offsets_of_a_stream_go_on_where_it_is(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": ["one", "two"], "max_tokens": 6, "logprobs": 1}
    offsets: list[list[int]] = [[], []]
    for piece in client.completions.create(**asked, stream=True):
        choice = piece.choices[0]
        offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []  # type: ignore[operator]
    whole = client.completions.create(**asked).choices
    assert offsets == [choice.logprobs.text_offset for choice in whole]  # type: ignore[union-attr]
    assert offsets[0][-1] > 0


# --- embeddings ------------------------------------------------------------------------------------------------------


def test_embeddings_are_base64_unless_asked_otherwise(server: Running, tiny_model: GritModel) -> None:
    sent: list[httpx.Request] = []
    received: list[dict[str, object]] = []

    def note(response: httpx.Response) -> None:
        response.read()
        received.append(response.json())

    hooks = {"request": [sent.append], "response": [note]}
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", http_client=httpx.Client(event_hooks=hooks)
    ) as client:
        answer = client.embeddings.create(model="gritrag", input=QUESTIONS)
    assert b'"encoding_format":"base64"' in sent[0].content.replace(b" ", b"")
    raw = base64.b64decode(received[0]["data"][0]["embedding"])  # type: ignore[index]
    expected = tiny_model.encode_document(QUESTIONS)
    np.testing.assert_allclose(np.frombuffer(raw, "<f4"), expected[0], atol=1e-6)
    np.testing.assert_allclose([row.embedding for row in answer.data], expected, atol=1e-6)
    assert [row.index for row in answer.data] == list(range(len(QUESTIONS)))


def test_embedding_dimensions_token_ids_and_sides(client: openai.OpenAI, tiny_model: GritModel) -> None:
    whole = client.embeddings.create(model="gritrag", input="ferry", encoding_format="float").data[0].embedding
    short = client.embeddings.create(model="gritrag", input="ferry", dimensions=5).data[0].embedding
    assert len(short) == 5
    np.testing.assert_allclose(short, np.array(whole[:5]) / np.linalg.norm(whole[:5]), atol=1e-6)
    ids = tiny_model.prompts.encoder.content_ids("ferry")
    for given in (ids, [ids, ids]):
        rows = client.embeddings.create(model="gritrag", input=given).data
        assert len(rows) == (2 if isinstance(given[0], list) else 1)
        np.testing.assert_allclose(rows[0].embedding, whole, atol=1e-6)
    query = client.embeddings.create(model="gritrag", input="ferry", extra_body={"input_type": "query"})
    np.testing.assert_allclose(query.data[0].embedding, tiny_model.encode_query(["ferry"])[0], atol=1e-6)
    for given, param in (([10**6], "input"), ([], "input"), ("", "input"), ([[1], [10**6]], "input")):
        with pytest.raises(openai.BadRequestError) as error:
            client.embeddings.create(model="gritrag", input=given)
        assert error.value.param == param
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="gritrag", input="a", dimensions=10**4)
    with pytest.raises(openai.APIStatusError) as long:
        client.embeddings.create(model="gritrag", input="x" * 600)
    assert long.value.status_code == 413


def test_vectors_are_written_beside_the_loop_of_all_answers(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As numbers in JSON those of one request may take seconds."""
    threads: list[str] = []
    tell = EmbeddingRow.__init__

    def noted(row: EmbeddingRow, **fields: Any) -> None:
        threads.append(threading.current_thread().name)
        tell(row, **fields)

    monkeypatch.setattr(EmbeddingRow, "__init__", noted)
    client.embeddings.create(model="gritrag", input=["one", "two"], encoding_format="float")
    assert [name.startswith("worker") for name in threads] == [True, True]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_rerank(http: httpx.Client, tiny_model: GritModel, path: str) -> None:
    texts = [document.text for document in DOCUMENTS]
    body = {"query": QUESTIONS[1], "documents": [*texts[:3], {"text": texts[3]}], "top_n": 3, "return_documents": True}
    answer = http.post(path, json=body).json()
    scores = (tiny_model.encode_query([QUESTIONS[1]]) @ tiny_model.encode_document(texts[:4]).T)[0]
    assert [row["index"] for row in answer["results"]] == np.argsort(-scores)[:3].tolist()
    for row in answer["results"]:
        assert row["relevance_score"] == pytest.approx(scores[row["index"]], abs=1e-5)
        assert row["document"]["text"] == texts[row["index"]]
    assert "document" not in http.post(path, json={**body, "return_documents": False}).json()["results"][0]


def test_stores_may_come_and_go_while_they_are_listed(
    client: openai.OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made and deleted in other threads."""
    indexes = server.service.indexes
    may_read = Tenant.may_read

    def meanwhile(tenant: Tenant, name: str) -> bool:
        if name == "docs":
            indexes["vs_new"] = indexes["docs"]
        return may_read(tenant, name)

    monkeypatch.setattr(Tenant, "may_read", meanwhile)
    try:
        assert "rag/docs" in {model.id for model in client.models.list()}
    finally:
        del indexes["vs_new"]


def test_models_name_the_indexes(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"gritrag", "tiny", "rag/docs"}
