"""`/v1/responses`: the Responses API (and Open Responses), with `file_search` over the indexes of this server."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from gritrag.serve.asked import FREE, ROLES, check_model, created, messages_of, prompt_ids, refuse_unsupported
from gritrag.serve.bodies import AnswerBody, Extension
from gritrag.serve.errors import ERRORS, as_api_error, bad
from gritrag.serve.filters import where_of
from gritrag.serve.http import DONE, Asking, Serving, event, new_id, readable, streamed, whole
from gritrag.serve.openai_bodies import ChatMessage
from gritrag.serve.question import Asker
from gritrag.serve.response_bodies import (
    InputDetails,
    InputItem,
    InputItems,
    InputTokens,
    ResponseBody,
    ResponseDeleted,
    ResponsesBody,
    ResponseUsage,
    SaidItem,
    WantedItems,
)
from gritrag.serve.response_items import FileSearch, Message, Named
from gritrag.serve.service import Service
from gritrag.serve.stored import Stored
from gritrag.serve.threads import in_thread
from gritrag.serve.writing import Written, chat_writer, logprobs_of

router = APIRouter(tags=["openai"])

RESULTS, LOGPROBS = "file_search_call.results", "message.output_text.logprobs"
"""What a request may ask to have included."""

IGNORED_ITEMS = ("reasoning", "file_search_call", "item_reference")
"""Items of earlier turns that say nothing which the model reads."""


@router.post("/v1/responses", response_model=ResponseBody, responses=ERRORS)
async def respond(body: ResponsesBody, request: Request, service: Serving, asker: Asking) -> Response:
    """Answer; from documents if there is a `file_search` tool, or as chats are."""
    _refuse(body)
    if (body.n or 1) != 1:
        raise bad("n: a response is one answer", "n")
    messages = _messages(service, asker, body)
    extension = _extension(service, asker, body)
    top_logprobs = (body.top_logprobs or 0) if LOGPROBS in (body.include or ()) or body.top_logprobs else None
    instructed = _instructed(messages, body.instructions)
    writer = await chat_writer(service, asker, body, instructed, body.max_output_tokens, extension, top_logprobs)
    response = ResponseBody(
        id=new_id("resp_"),
        created_at=created(),
        model=body.model,
        previous_response_id=body.previous_response_id,
        instructions=body.instructions,
        tools=[tool.model_dump(mode="json") for tool in body.tools or ()],
        tool_choice=body.tool_choice if isinstance(body.tool_choice, str) else "auto",
        top_logprobs=top_logprobs or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        temperature=body.temperature or 0.0,
        user=body.user,
        max_output_tokens=body.max_output_tokens,
        store=body.store is not False,
        metadata=dict(body.metadata or {}),
    )
    with_results = RESULTS in (body.include or ())
    search = FileSearch(messages[-1]["content"], with_results) if _searches(body) else None
    events = _events(service, asker, response, writer(0), messages, search)
    if body.stream:
        return await streamed(service, asker, request, _written(events))
    finished = await whole(service, asker, request, _last(events))
    return JSONResponse(finished.model_dump(mode="json"))


@router.post("/v1/responses/input_tokens", response_model=InputTokens, responses=ERRORS)
async def count_input(body: ResponsesBody, service: Serving, asker: Asking) -> InputTokens:
    """How many tokens an input has, before any documents."""
    _refuse(body)
    check_model(service, asker.tenant, body.model)
    if _searches(body):
        raise bad("tools: which documents a search finds is not known before; count without file_search", "tools")
    messages = _instructed(_messages(service, asker, body), body.instructions)
    return InputTokens(input_tokens=len(await in_thread(prompt_ids, service, messages)))


@router.get("/v1/responses/{response_id}", response_model=ResponseBody, responses=ERRORS)
async def get_response(response_id: str, service: Serving, asker: Asking, stream: bool = False) -> ResponseBody:
    """A response that was stored."""
    if stream:
        raise bad("stream: a stored response is told whole; leave stream out", "stream", "unsupported_parameter")
    return ResponseBody.model_validate(service.responses.get(response_id, asker.tenant).body)


@router.delete("/v1/responses/{response_id}", response_model=ResponseDeleted, responses=ERRORS)
async def delete_response(response_id: str, service: Serving, asker: Asking) -> ResponseDeleted:
    service.responses.delete(response_id, asker.tenant)
    return ResponseDeleted(id=response_id)


@router.get("/v1/responses/{response_id}/input_items", response_model=InputItems, responses=ERRORS)
async def list_input(
    response_id: str, service: Serving, asker: Asking, wanted: Annotated[WantedItems, Query()]
) -> InputItems:
    """What a stored response answered: all messages before it, those of earlier responses too."""
    said = service.responses.get(response_id, asker.tenant).messages[:-1]
    return InputItems.of([SaidItem.of(f"msg_{response_id}_{n}", each) for n, each in enumerate(said)], wanted)


@router.post("/v1/responses/{response_id}/cancel", response_model=ResponseBody, responses=ERRORS)
async def cancel_response(response_id: str, service: Serving, asker: Asking) -> ResponseBody:
    """Refused: responses are written while their client waits, and end when it goes away."""
    service.responses.get(response_id, asker.tenant)
    raise bad("this response is complete: close the connection of one that is still written", "response_id")


# --- what is asked ---------------------------------------------------------------------------------------------------


def _refuse(body: ResponsesBody) -> None:
    for tool in body.tools or ():
        if tool.type != "file_search":
            raise bad(
                f"tools: this server searches files, and calls no {tool.type!r}", "tools", "unsupported_parameter"
            )
        if tool.ranking_options is not None and tool.ranking_options.score_threshold:
            raise bad(
                "ranking_options.score_threshold: answers are made from the best documents, whatever their scores",
                "tools",
                "unsupported_parameter",
            )
    if body.tool_choice not in FREE and not (_searches(body) and _names_search(body.tool_choice)):
        raise bad(
            "tool_choice: the only tool here is file_search, and it has to be among tools",
            "tool_choice",
            "unsupported_parameter",
        )
    for name in ("conversation", "prompt"):
        if getattr(body, name) is not None:
            raise bad(
                f"{name}: nothing of that kind is kept here; send the messages, or previous_response_id",
                name,
                "unsupported_parameter",
            )
    if body.background:
        raise bad("background: responses are written while you wait", "background", "unsupported_parameter")
    if body.text is not None and body.text.format is not None and body.text.format.type != "text":
        raise bad("text.format: only text is written here", "text.format", "unsupported_parameter")
    refuse_unsupported(body.model_copy(update={"tools": None}))


def _messages(service: Service, asker: Asker, body: ResponsesBody) -> list[dict[str, str]]:
    """Everything that was said, with what an earlier response said."""
    items = [InputItem(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    found: list[ChatMessage] = []
    for number, item in enumerate(items):
        if item.type in IGNORED_ITEMS:
            continue
        if item.type not in (None, "message") or item.role is None:
            raise bad(f"input.{number}: messages are read here, not {item.type!r}", f"input.{number}")
        found.append(ChatMessage(role=item.role, content=item.content))
    messages = messages_of(found)
    if body.previous_response_id is not None:
        earlier = service.responses.get(body.previous_response_id, asker.tenant).messages
        messages = [*earlier, *messages]
    if not messages:
        raise bad("the input is empty", "input")
    return messages


def _instructed(messages: list[dict[str, str]], instructions: str | None) -> list[dict[str, str]]:
    """Messages behind the instructions, which are of this response alone: who goes on from it gives his own. They stand
    in one message with a system prompt that comes first, as most templates take one."""
    if not instructions:
        return messages
    system, rest = [instructions], messages
    if messages[0]["role"] == ROLES["system"]:
        system, rest = [instructions, messages[0]["content"]], messages[1:]
    return [{"role": ROLES["system"], "content": "\n\n".join(system)}, *rest]


def _names_search(choice: Any) -> bool:
    """Whether a choice of tools can be met by searching files."""
    tools = [choice]
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        tools = choice["tools"]
    return choice == "required" or any(isinstance(tool, dict) and tool.get("type") == "file_search" for tool in tools)


def _searches(body: ResponsesBody) -> bool:
    return body.tool_choice != "none" and any(tool.type == "file_search" for tool in body.tools or ())


def _extension(service: Service, asker: Asker, body: ResponsesBody) -> Extension | None:
    """What a `file_search` tool says, as our own extension says it."""
    if not _searches(body):
        return body.gritrag
    tools = [tool for tool in body.tools or () if tool.type == "file_search"]
    stores = [store for tool in tools for store in tool.vector_store_ids]
    if len(stores) != 1:
        raise bad("file_search: name exactly one vector store", "tools.vector_store_ids")
    readable(service, asker.tenant, stores[0])
    given = body.gritrag or Extension()
    where = where_of(tools[0].filters) if tools[0].filters else given.where
    return given.model_copy(update={"index": stores[0], "k": tools[0].max_num_results or given.k, "where": where})


# --- what is answered ------------------------------------------------------------------------------------------------


async def _events(
    service: Service,
    asker: Asker,
    response: ResponseBody,
    steps: AsyncGenerator[Written, None],
    messages: list[dict[str, str]],
    search: FileSearch | None,
) -> AsyncGenerator[Named, None]:
    """Names and contents of all events, the whole response in the last one."""
    for name in ("response.created", "response.in_progress"):
        yield name, {"response": response.model_dump(mode="json")}
    message, last, has_begun = Message(int(search is not None)), Written(), False
    for each in () if search is None else search.begun():
        yield each
    async with aclosing(steps):
        async for step in steps:
            if not has_begun:
                has_begun = True
                for each in (*(() if search is None else search.done(step.hits)), *message.begun()):
                    yield each
            if step.text or step.logprobs:
                told = [each.model_dump(mode="json") for each in logprobs_of(service, step.logprobs)]
                yield message.grown(step.text, told)
            if step.finish_reason is not None:
                last = step
    is_whole = last.finish_reason == "stop"
    for each in message.done(last.answer, is_whole):
        yield each
    output = [*([] if search is None else [search.item]), message.item]
    finished = _finished(response, last, output, is_whole)
    if finished.store:
        said = [*messages, {"role": "assistant", "content": message.text}]
        service.responses.keep(Stored(asker.tenant.salt, finished.model_dump(mode="json"), said))
    name = "response.completed" if is_whole else "response.incomplete"
    yield name, {"response": finished.model_dump(mode="json")}


def _finished(response: ResponseBody, last: Written, output: list[dict[str, Any]], is_whole: bool) -> ResponseBody:
    usage = ResponseUsage(
        input_tokens=last.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=last.cached_tokens),
        output_tokens=last.new_tokens,
        total_tokens=last.prompt_tokens + last.new_tokens,
    )
    return response.model_copy(
        update={
            "status": "completed" if is_whole else "incomplete",
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "completed_at": created() if is_whole else None,
            "output": output,
            "usage": usage,
            "gritrag": None if last.answer is None else AnswerBody.of(last.answer),
        }
    )


async def _written(events: AsyncGenerator[Named, None]) -> AsyncGenerator[bytes, None]:
    """As they are sent. An error behind the first is an event too, with the next number."""
    number = 0
    try:
        async with aclosing(events):
            async for name, content in events:
                yield event({"type": name, "sequence_number": number, **content}, name)
                number += 1
    except Exception as error:  # the status line has been sent
        if not number:
            raise
        failed = as_api_error(error)
        told = {"code": failed.code, "message": failed.message, "param": failed.param}
        yield event({"type": "error", "sequence_number": number, **told}, "error")
        return
    yield DONE


async def _last(events: AsyncGenerator[Named, None]) -> ResponseBody:
    last: dict[str, Any] = {}
    async with aclosing(events):
        async for _, content in events:
            last = content
    return ResponseBody.model_validate(last["response"])
