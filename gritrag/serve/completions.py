"""`/v1/completions`: raw text or token ids to go on from, without documents."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gritrag.serve.asked import check_model, created, refuse_unsupported, sampling_of
from gritrag.serve.bodies import UsageBody
from gritrag.serve.errors import ERRORS, bad
from gritrag.serve.http import DONE, Asking, Serving, event, merged, new_id, streamed, whole
from gritrag.serve.jobs import TokenLogprob
from gritrag.serve.openai_bodies import (
    CompletionBody,
    CompletionChoice,
    CompletionLogprobs,
    TextCompletion,
)
from gritrag.serve.service import Service
from gritrag.serve.threads import in_thread
from gritrag.serve.writing import Written, go_on, of_choice, token_text

router = APIRouter(tags=["openai"])

Streams = list[AsyncGenerator[Written, None]]


@router.post("/v1/completions", response_model=TextCompletion, responses=ERRORS)
async def completions(body: CompletionBody, request: Request, service: Serving, asker: Asking) -> Response:
    """Go on from a text, or from several at once."""
    refuse_unsupported(body)
    check_model(service, asker.tenant, body.model)
    if body.gritrag is not None:
        raise bad("completions use no documents; ask /v1/chat/completions or /v1/rag", "gritrag")
    choices = body.n or 1
    if body.best_of not in (None, 1, choices):
        raise bad("best_of is not supported here; ask for n texts, and choose", "best_of", "unsupported_parameter")
    prompts = await in_thread(_prompts, service, body.prompt)
    if len(prompts) * choices > service.limits.choices:
        raise bad(f"at most {service.limits.choices} texts at once, not {len(prompts) * choices}", "prompt")
    options = [sampling_of(service, body, body.max_tokens, len(ids), "prompt") for ids in prompts]
    pairs = [(ids, of_choice(each, n)) for ids, each in zip(prompts, options, strict=True) for n in range(choices)]
    streams = [go_on(service, asker, ids, each, body.logprobs) for ids, each in pairs]
    identity = {"id": new_id("cmpl-"), "object": "text_completion", "created": created(), "model": body.model}
    identity["system_fingerprint"] = service.system_fingerprint
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return await streamed(service, asker, request, _chunks(service, streams, choices, identity, usage))
    completion = await whole(service, asker, request, _completion(service, streams, choices, identity))
    return JSONResponse(completion.model_dump(mode="json"))


def _prompts(service: Service, given: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
        ApiError: no prompt, an empty one, or ids that the model does not have.
    """
    if not given:
        raise bad("the prompt is empty; give it at least one word", "prompt")
    items = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    prompts = []
    for item in items:
        if isinstance(item, str):
            prompts.append(service.model.prompts.prompt_ids(item))
            continue
        assert isinstance(item, list)
        size = len(service.model.tokenizer)
        if not item or not all(0 <= id < size for id in item):
            raise bad(f"prompt: token ids of this model are from 0 to {size - 1}", "prompt")
        prompts.append(item)
    return prompts


def _usage(ends: dict[int, Written], choices: int) -> UsageBody:
    """Each prompt is counted once."""
    firsts = [end for number, end in ends.items() if number % choices == 0]
    prompt, cached = sum(end.prompt_tokens for end in firsts), sum(end.cached_tokens for end in firsts)
    return UsageBody.of(prompt, sum(end.new_tokens for end in ends.values()), cached)


async def _completion(service: Service, streams: Streams, choices: int, identity: dict[str, Any]) -> TextCompletion:
    texts, ends = [""] * len(streams), dict[int, Written]()
    logprobs: list[list[TokenLogprob]] = [[] for _ in streams]
    async with aclosing(merged(streams)) as steps:
        async for number, step in steps:
            texts[number] += step.text
            logprobs[number] += step.logprobs
            if step.finish_reason is not None:
                ends[number] = step
    rows = [
        CompletionChoice(
            index=number,
            text=text,
            logprobs=_logprobs(service, logprobs[number]) if logprobs[number] else None,
            finish_reason=ends[number].finish_reason or "stop",
        )
        for number, text in enumerate(texts)
    ]
    return TextCompletion(**identity, choices=rows, usage=_usage(ends, choices))


async def _chunks(
    service: Service, streams: Streams, choices: int, identity: dict[str, Any], with_usage: bool
) -> AsyncGenerator[bytes, None]:
    ends = dict[int, Written]()
    lengths = [0] * len(streams)
    extra = {"usage": None} if with_usage else {}
    async with aclosing(merged(streams)) as steps:
        async for number, step in steps:
            if step.finish_reason is not None:
                ends[number] = step
            elif not step.text and not step.logprobs:
                continue
            told = None
            if step.logprobs:
                logprobs = _logprobs(service, step.logprobs, lengths[number])
                lengths[number] = logprobs.text_offset[-1] + len(logprobs.tokens[-1])
                told = logprobs.model_dump(mode="json")
            choice = {"index": number, "text": step.text, "logprobs": told, "finish_reason": step.finish_reason}
            yield event({**identity, "choices": [choice], **extra})
    if with_usage:
        yield event({**identity, "choices": [], "usage": _usage(ends, choices).model_dump(mode="json")})
    yield DONE


def _logprobs(
    service: Service, tokens: list[TokenLogprob] | tuple[TokenLogprob, ...], start: int = 0
) -> CompletionLogprobs:
    """Of some tokens, the first of which begins at character `start` of the text."""
    texts = [token_text(service, each.token_id) for each in tokens]
    starts = [start + sum(map(len, texts[:number])) for number in range(len(texts))]
    return CompletionLogprobs(
        tokens=texts,
        token_logprobs=[each.logprob for each in tokens],
        top_logprobs=[{token_text(service, id): logprob for id, logprob in each.top} for each in tokens],
        text_offset=starts,
    )
