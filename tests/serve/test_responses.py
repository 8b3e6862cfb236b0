"""The Responses API: what Open Responses asks of a response, its events, and `file_search` over an index."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import QUESTIONS, Running

from gritrag import GritModel

REQUIRED = [
    "id",
    "object",
    "created_at",
    "completed_at",
    "status",
    "incomplete_details",
    "model",
    "previous_response_id",
    "instructions",
    "output",
    "error",
    "tools",
    "tool_choice",
    "truncation",
    "parallel_tool_calls",
    "text",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "temperature",
    "reasoning",
    "user",
    "usage",
    "max_output_tokens",
    "max_tool_calls",
    "store",
    "background",
    "service_tier",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
]
"""Fields that the schema of Open Responses (2026-04-24) requires of a response, null or not."""

USER = {"type": "message", "role": "user", "content": "Greet me in three words."}
CASES: dict[str, list[dict[str, str]]] = {
    "basic-response": [USER],
    "system-prompt": [{"type": "message", "role": "system", "content": "Talk like a sailor."}, USER],
    "multi-turn": [
        {"type": "message", "role": "user", "content": "I am called Berta."},
        {"type": "message", "role": "assistant", "content": "Hello Berta."},
        {"type": "message", "role": "user", "content": "What am I called?"},
    ],
}
"""Cases of its compliance suite by their names, in words of our own; `streaming-response` is below. The suite's cases
of tools and images do not apply to a model that calls no tools and sees no images: they are refused, see below."""


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Contents of a stream; each is named as its event is."""
    blocks = [block for block in response.text.split("\n\n") if block]
    assert blocks.pop() == "data: [DONE]"
    found = []
    for block in blocks:
        name, data = (line.split(": ", 1)[1] for line in block.split("\n"))
        found.append(json.loads(data))
        assert found[-1]["type"] == name
    return found


@pytest.mark.parametrize("case", CASES)
def test_open_responses_cases(case: str, http: httpx.Client) -> None:
    answer = http.post("/v1/responses", json={"model": "tiny", "input": CASES[case], "max_output_tokens": 6}).json()
    assert set(REQUIRED) <= set(answer)
    assert answer["status"] in ("completed", "incomplete")
    (message,) = answer["output"]
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["content"][0]["type"] == "output_text"
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] >= 0


def test_open_responses_streaming_response(http: httpx.Client) -> None:
    body = {"model": "tiny", "input": [USER], "max_output_tokens": 6}
    whole = http.post("/v1/responses", json=body).json()
    events = events_of(http.post("/v1/responses", json={**body, "stream": True}))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    text = whole["output"][0]["content"][0]["text"]
    assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == text
    last = events[-1]["response"]
    assert last["status"] == whole["status"]
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert last["output"][0]["content"][0]["text"] == text
    assert set(REQUIRED) <= set(last)


def test_the_client_streams_and_goes_on(client: openai.OpenAI) -> None:
    *_, last = client.responses.create(model="tiny", input="one two", max_output_tokens=5, stream=True)
    assert last.type in ("response.completed", "response.incomplete")
    first = last.response
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(
        model="tiny", input="and three", previous_response_id=first.id, max_output_tokens=5
    )
    assert second.usage.input_tokens > first.usage.input_tokens  # type: ignore[union-attr]
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens  # type: ignore[union-attr]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    unkept = client.responses.create(model="tiny", input="one", store=False, max_output_tokens=2)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="tiny", input="two", previous_response_id=unkept.id)


def test_responses_that_are_kept_are_bounded_in_bytes(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    """Whatever the client has sent with them."""
    server = start(tiny_model, {"docs": make_index(tiny_model)}, responses_bytes=100_000)
    body = {"model": "tiny", "input": "hi", "max_output_tokens": 1, "metadata": {"x": "y" * 40_000}}
    with server.client() as http:
        ids = [http.post("/v1/responses", json=body).json()["id"] for _ in range(6)]
        kept = [id for id in ids if http.get(f"/v1/responses/{id}").status_code == 200]
        assert kept == ids[-2:], "the oldest are forgotten"
        assert server.service.responses.bytes <= 100_000
        for id in kept:
            http.delete(f"/v1/responses/{id}").raise_for_status()
        assert server.service.responses.bytes == 0
        large = http.post("/v1/responses", json={**body, "metadata": {"x": "y" * 200_000}})
        assert large.status_code == 200
        assert http.get(f"/v1/responses/{large.json()['id']}").status_code == 404


def test_file_search_answers_from_an_index_and_cites_it(client: openai.OpenAI, http: httpx.Client) -> None:
    tools: Any = [{"type": "file_search", "vector_store_ids": ["docs"], "max_num_results": 2}]
    answer = client.responses.create(model="tiny", input=QUESTIONS[0], tools=tools, max_output_tokens=5)
    call, message = answer.output
    assert call.type == "file_search_call"
    assert call.status == "completed"
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    assert {note.file_id for note in message.content[0].annotations} >= {"ferry"}  # type: ignore[union-attr]
    body = {"model": "tiny", "input": QUESTIONS[0], "tools": tools, "max_output_tokens": 5, "stream": True}
    kinds = [event["type"] for event in events_of(http.post("/v1/responses", json=body))]
    assert kinds.index("response.file_search_call.completed") < kinds.index("response.output_text.delta")
    assert "response.output_text.annotation.added" in kinds
    filtered = [{**tools[0], "filters": {"type": "eq", "key": "kind", "value": "bridge"}}]
    told = client.responses.create(model="tiny", input=QUESTIONS[0], tools=filtered, max_output_tokens=2)
    assert [hit["id"] for hit in told.model_extra["gritrag"]["hits"]] == ["bridge"]  # type: ignore[index]


def test_instructions_are_of_one_response_and_take_no_system_prompt_away(
    client: openai.OpenAI, tiny_model: GritModel
) -> None:
    def said(messages: list[dict[str, str]], answer: Any) -> None:
        assert answer.usage.input_tokens == len(tiny_model.prompts.prompt_ids(messages))  # type: ignore[arg-type]
        assert answer.output_text == tiny_model.generate(messages, max_new_tokens=4)  # type: ignore[arg-type]

    own: Any = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "one"}]
    asked: Any = {"model": "tiny", "max_output_tokens": 4}
    first = client.responses.create(**asked, input=own, instructions="Talk like a sailor.")
    user = {"role": "user", "content": "one"}
    said([{"role": "system", "content": "Talk like a sailor.\n\nBe brief."}, user], first)
    second = client.responses.create(**asked, input="two", previous_response_id=first.id)
    turns = [{"role": "system", "content": "Be brief."}, user, {"role": "assistant", "content": first.output_text}]
    turns.append({"role": "user", "content": "two"})
    said(turns, second)
    third = client.responses.create(**asked, input="three", previous_response_id=second.id, instructions="Sing.")
    turns[0] = {"role": "system", "content": "Sing.\n\nBe brief."}
    turns += [{"role": "assistant", "content": second.output_text}, {"role": "user", "content": "three"}]
    said(turns, third)


def test_what_is_asked_for_is_included(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "file_search", "vector_store_ids": ["docs"], "max_num_results": 2}]
    asked: Any = {"model": "tiny", "input": QUESTIONS[0], "tools": tools, "max_output_tokens": 4}
    included = client.responses.create(
        **asked, include=["file_search_call.results", "message.output_text.logprobs"], top_logprobs=3
    )
    call, message = included.output
    assert call.results[0].file_id == "ferry"  # type: ignore[union-attr, index]
    assert call.results[0].text == "the ferry leaves at noon"  # type: ignore[union-attr, index]
    assert call.results[0].attributes == {"kind": "boat", "year": 1990}  # type: ignore[union-attr, index]
    logprobs = message.content[0].logprobs  # type: ignore[union-attr]
    assert len(logprobs) == included.usage.output_tokens  # type: ignore[arg-type, union-attr]
    assert all(len(each.top_logprobs) == 3 and each.logprob <= 0 for each in logprobs)  # type: ignore[union-attr]
    assert included.top_logprobs == 3
    events = list(client.responses.create(**asked, include=["file_search_call.results"], stream=True))
    (done,) = [each.item for each in events if each.type == "response.output_item.done" and each.output_index == 0]
    assert [each.file_id for each in done.results] == [each.file_id for each in call.results]  # type: ignore[union-attr]
    plain = client.responses.create(**asked)
    assert plain.output[0].results is None  # type: ignore[union-attr]
    assert plain.output[1].content[0].logprobs == []  # type: ignore[union-attr]
    (message,) = client.responses.create(**asked, tool_choice="none").output
    assert message.type == "message", "nothing was searched"


def test_an_error_in_the_middle_has_the_next_number(http: httpx.Client, server: Running) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("poison")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.service.engine, "_take", fails)
        told = http.post("/v1/responses", json={"model": "tiny", "input": "hi", "stream": True}).text
    *_, before, last = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
    assert last["type"] == "error"
    assert last["sequence_number"] == before["sequence_number"] + 1
    assert "poison" not in told


@pytest.mark.parametrize("tools", [[], [{"type": "file_search", "vector_store_ids": ["docs"], "max_num_results": 2}]])
def test_candidates_are_ranked_by_their_states(tools: list[dict[str, Any]], http: httpx.Client) -> None:
    """As `/v1/rag` ranks them, with the tool or the extension alone."""
    question = QUESTIONS[3]
    asked = {"index": "docs", "k": 2}
    ranked = http.post("/v1/rag", json={"question": question, "max_new_tokens": 1, **asked, "rerank": 6}).json()
    plain = http.post("/v1/rag", json={"question": question, "max_new_tokens": 1, **asked}).json()
    body = {"model": "gritrag", "input": question, "max_output_tokens": 1, "tools": tools}
    answer = http.post("/v1/responses", json={**body, "gritrag": {**asked, "rerank": 6}}).json()
    found = [(hit["id"], hit["score"]) for hit in answer["gritrag"]["hits"]]
    assert found == [(hit["id"], hit["score"]) for hit in ranked["hits"]]
    assert found != [(hit["id"], hit["score"]) for hit in plain["hits"]], "the search alone scores otherwise"
    refused = http.post("/v1/responses", json={**body, "gritrag": {**asked, "rerank": 1}})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "rerank"


def test_what_is_not_done_is_refused(client: openai.OpenAI) -> None:
    refused: list[dict[str, Any]] = [
        {"tools": [{"type": "function", "name": "f", "parameters": {}}]},
        {"background": True},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "allowed_tools", "tools": 3}},
        {"tool_choice": {"type": "function", "name": "f"}},
        {"tools": [{"type": "file_search", "vector_store_ids": ["docs"]}], "tool_choice": {"type": "web_search"}},
        {"conversation": "conv_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"text": {"format": {"type": "json_object"}}},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
        {"input": []},
        {"tools": [{"type": "file_search", "vector_store_ids": []}]},
        {"tools": [{"type": "file_search", "vector_store_ids": ["docs"], "ranking_options": {"score_threshold": 0.5}}]},
    ]
    for fields in refused:
        with pytest.raises(openai.BadRequestError):
            client.responses.create(**{"model": "tiny", "input": "hi", **fields})
    with pytest.raises(openai.NotFoundError):
        client.responses.create(
            model="tiny", input="hi", tools=[{"type": "file_search", "vector_store_ids": ["secret"]}]
        )


def test_what_a_response_answered_is_listed(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="one", max_output_tokens=2)
    second = client.responses.create(
        model="tiny", input="two", previous_response_id=first.id, max_output_tokens=2, instructions="Be brief."
    )
    items: list[Any] = list(client.responses.input_items.list(second.id, limit=1, order="asc"))
    assert [item.role for item in items] == ["user", "assistant", "user"]
    assert [item.content[0].text for item in items] == ["one", first.output_text, "two"]
    assert [item.content[0].type for item in items] == ["input_text", "output_text", "input_text"]
    assert [item.id for item in client.responses.input_items.list(second.id)] == [item.id for item in items[::-1]]
    for call in (client.responses.input_items.list, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call("resp_x")
    with pytest.raises(openai.BadRequestError, match="is complete"):
        client.responses.cancel(second.id)
    with pytest.raises(openai.BadRequestError, match="leave stream out"):
        client.responses.retrieve(second.id, stream=True)


def test_tokens_of_an_input_are_those_that_a_response_reads(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="one two three", max_output_tokens=2)
    asked: list[dict[str, Any]] = [
        {"input": "one two three"},
        {"input": "four", "instructions": "Be brief."},
        {"input": "four", "previous_response_id": first.id},
    ]
    for fields in asked:
        answer = client.responses.create(model="tiny", max_output_tokens=2, **fields)
        assert answer.usage is not None
        assert client.responses.input_tokens.count(model="tiny", **fields).input_tokens == answer.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="count without file_search"):
        client.responses.input_tokens.count(
            model="tiny", input="x", tools=[{"type": "file_search", "vector_store_ids": ["docs"]}]
        )
    with pytest.raises(openai.NotFoundError):
        client.responses.input_tokens.count(model="gpt-9", input="x")


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "file_search"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "file_search"}]},
    ],
)
def test_a_search_may_be_what_is_chosen(client: openai.OpenAI, choice: Any) -> None:
    tools: Any = [{"type": "file_search", "vector_store_ids": ["docs"]}]
    response = client.responses.create(model="tiny", input="hi", max_output_tokens=2, tools=tools, tool_choice=choice)
    assert [item.type for item in response.output] == ["file_search_call", "message"]
