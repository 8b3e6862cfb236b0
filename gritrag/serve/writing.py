"""Writing: what becomes the text of an answer, however it is asked for: plain, or from documents."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from gritrag.model.sampling import Sampling
from gritrag.model.text import token_bytes
from gritrag.records import Answer, Hit
from gritrag.serve.asked import (
    history_ids,
    index_of,
    prompt_ids,
    question_of,
    question_tokens,
    sampling_of,
)
from gritrag.serve.bodies import Extension, SamplingBody, UsageBody
from gritrag.serve.errors import bad
from gritrag.serve.jobs import Finished, TokenLogprob
from gritrag.serve.openai_bodies import ChatLogprob, TopLogprob
from gritrag.serve.question import Asker
from gritrag.serve.service import Service
from gritrag.serve.threads import in_thread


@dataclass(frozen=True)
class Written:
    """One step of a text, however it came about: a piece, or the end of it. `hits` are what was found for it."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    answer: Answer | None = None
    hits: Sequence[Hit] = ()


SEEDS = 1 << 64
"""Of the sampler: whole numbers of 64 bits, with a sign."""

Writer = Callable[[int], AsyncGenerator[Written, None]]
"""The steps of one choice, by its number."""


async def chat_writer(
    service: Service,
    asker: Asker,
    body: SamplingBody,
    messages: Sequence[Mapping[str, str]],
    asked: int | None,
    extension: Extension | None,
    top_logprobs: int | None = None,
) -> Writer:
    """What writes the choices of a chat, checked before any work is done.

    Args:
        body: of the request, for its options.
        messages: of it, roles and texts.
        asked: new tokens that were asked for.
        extension: how to answer from documents, where it says.

    Raises:
        ApiError: no such model or index, no question, or too much of anything.
    """
    index = index_of(service, asker.tenant, body.model, extension)
    has_documents = index is not None or (extension is not None and extension.documents is not None)
    if not has_documents or (extension is not None and extension.mode == "no-retrieval"):
        ids = await in_thread(prompt_ids, service, messages)
        sampling = sampling_of(service, body, asked, len(ids), "messages")
        return lambda number: go_on(service, asker, ids, of_choice(sampling, number), top_logprobs)
    if messages[-1]["role"] != "user":
        raise bad("the last message must be the user's: it is the question that documents are looked for", "messages")
    history = await in_thread(history_ids, service, messages[:-1])
    tokens = len(history) + await in_thread(question_tokens, service, messages[-1]["content"], extension)
    sampling = sampling_of(service, body, asked, tokens, "messages")
    question = question_of(messages[-1]["content"], sampling, index, extension, history, top_logprobs)

    async def answer(number: int) -> AsyncGenerator[Written, None]:
        chosen = replace(question, sampling=of_choice(sampling, number))
        hits: Sequence[Hit] = ()
        async with aclosing(service.answer(asker, chosen)) as steps:
            async for step in steps:
                if step.hits is not None:
                    hits = step.hits
                elif step.piece is not None:
                    yield Written(step.piece.text, step.piece.logprobs, hits=hits)
                elif step.answer is not None:
                    usage = step.answer.usage
                    numbers = (usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens)
                    yield Written("", (), step.answer.finish_reason, *numbers, step.answer, hits)

    return answer


async def go_on(
    service: Service, asker: Asker, ids: list[int], sampling: Sampling, top_logprobs: int | None
) -> AsyncGenerator[Written, None]:
    """From a prompt without documents."""
    async with aclosing(service.go_on(asker, ids, sampling, top_logprobs)) as events:
        async for each in events:
            if isinstance(each, Finished):
                done = each.completion
                yield Written("", (), done.finish_reason, len(ids), each.cached_tokens, len(done.token_ids))
            else:
                yield Written(each.text, each.logprobs)


def of_choice(sampling: Sampling, number: int) -> Sampling:
    """Each choice draws with a seed of its own; the greatest of 64 bits is followed by the least."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + number + SEEDS // 2) % SEEDS - SEEDS // 2)


def usage_of(ends: list[Written]) -> UsageBody:
    """Of all choices: the prompt is counted once, as it is written once."""
    first = ends[0]
    cached = min(end.cached_tokens for end in ends)
    return UsageBody.of(first.prompt_tokens, sum(end.new_tokens for end in ends), cached)


def token_text(service: Service, token_id: int) -> str:
    """A token by itself."""
    return str(service.model.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))


def logprobs_of(service: Service, tokens: Sequence[TokenLogprob]) -> list[ChatLogprob]:
    """Tokens that were chosen, and the likeliest ones of their places, as chats and responses tell them."""

    def told(token_id: int, logprob: float) -> TopLogprob:
        own = token_bytes(service.model.tokenizer, token_id)
        text = token_text(service, token_id)
        return TopLogprob(token=text, logprob=logprob, bytes=None if own is None else list(own))

    return [
        ChatLogprob(**told(each.token_id, each.logprob).model_dump(), top_logprobs=[told(*pair) for pair in each.top])
        for each in tokens
    ]
