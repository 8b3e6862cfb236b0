"""`/v1/chat/completions`: plain chat, or answers from an index, in the shape of OpenAI's."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gritrag.serve.asked import created, messages_of, refuse_unsupported
from gritrag.serve.bodies import AnswerBody
from gritrag.serve.errors import ERRORS, bad
from gritrag.serve.http import DONE, Asking, Serving, event, merged, new_id, streamed, whole
from gritrag.serve.jobs import TokenLogprob
from gritrag.serve.openai_bodies import (
    AssistantMessage,
    ChatBody,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
)
from gritrag.serve.service import Service
from gritrag.serve.writing import Written, chat_writer, logprobs_of, usage_of

router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERRORS)
async def chat(body: ChatBody, request: Request, service: Serving, asker: Asking) -> Response:
    """Answer a chat; from documents if the model is ``gritrag`` or ``rag/NAME``, or the field ``gritrag`` says so."""
    refuse_unsupported(body)
    choices = body.n or 1
    if choices > service.limits.choices:
        raise bad(f"at most {service.limits.choices} choices, not {choices}", "n")
    asked = body.max_completion_tokens or body.max_tokens
    messages, top_logprobs = messages_of(body.messages), top_logprobs_of(body)
    writer = await chat_writer(service, asker, body, messages, asked, body.gritrag, top_logprobs)
    identity = {"id": new_id("chatcmpl-"), "created": created(), "model": body.model}
    identity["system_fingerprint"] = service.system_fingerprint
    streams = [writer(number) for number in range(choices)]
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return await streamed(service, asker, request, _chunks(service, streams, identity, usage))
    completion = await whole(service, asker, request, _completion(service, streams, identity))
    return JSONResponse(completion)


def top_logprobs_of(body: ChatBody) -> int | None:
    """How many likeliest tokens are to be told; None for no logprobs.

    Raises:
        ApiError: `top_logprobs` without `logprobs`.
    """
    if body.top_logprobs and not body.logprobs:
        raise bad("top_logprobs needs logprobs: true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


async def _completion(
    service: Service, streams: list[AsyncGenerator[Written, None]], identity: dict[str, Any]
) -> dict[str, Any]:
    texts, ends = [""] * len(streams), dict[int, Written]()
    logprobs: list[list[TokenLogprob]] = [[] for _ in streams]
    async with aclosing(merged(streams)) as steps:
        async for number, step in steps:
            texts[number] += step.text
            logprobs[number] += step.logprobs
            if step.finish_reason is not None:
                ends[number] = step
    choices = [
        ChatChoice(
            index=number,
            message=AssistantMessage(content=text.strip() if ends[number].answer else text),
            logprobs=ChatLogprobs(content=logprobs_of(service, logprobs[number])) if logprobs[number] else None,
            finish_reason=ends[number].finish_reason or "stop",
        )
        for number, text in enumerate(texts)
    ]
    first = ends[0].answer
    completion = ChatCompletion(
        **identity,
        choices=choices,
        usage=usage_of(list(ends.values())),
        gritrag=AnswerBody.of(first) if first else None,
    )
    return completion.model_dump(mode="json", exclude={"gritrag"} if first is None else set())


async def _chunks(
    service: Service, streams: list[AsyncGenerator[Written, None]], identity: dict[str, Any], with_usage: bool
) -> AsyncGenerator[bytes, None]:
    ends = dict[int, Written]()
    extra = {"usage": None} if with_usage else {}

    def chunk(number: int, delta: dict[str, str], **more: Any) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return event({**identity, "object": "chat.completion.chunk", "choices": [choice], **extra})

    begun = set[int]()
    async with aclosing(merged(streams)) as steps:
        async for number, step in steps:
            if number not in begun:
                begun.add(number)
                yield chunk(number, {"role": "assistant", "content": ""})
            if step.text or step.logprobs:
                told = ChatLogprobs(content=logprobs_of(service, step.logprobs)) if step.logprobs else None
                yield chunk(number, {"content": step.text}, logprobs=told and told.model_dump(mode="json"))
            if step.finish_reason is not None:
                ends[number] = step
                last = {**identity, "object": "chat.completion.chunk", **extra}
                last["choices"] = [
                    {"index": number, "delta": {}, "logprobs": None, "finish_reason": step.finish_reason}
                ]
                if step.answer is not None:
                    last["gritrag"] = AnswerBody.of(step.answer).model_dump(mode="json")
                yield event(last)
    if with_usage:
        usage = usage_of(list(ends.values())).model_dump(mode="json")
        yield event({**identity, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    yield DONE
