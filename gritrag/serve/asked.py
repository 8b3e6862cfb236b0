"""From the fields of a request to what the service is asked: which index, which options, which tokens."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from gritrag.config import RELEVANCE_BIAS
from gritrag.index.index import Index
from gritrag.model.sampling import Sampling
from gritrag.modes import MODES
from gritrag.prompts import chat_segments
from gritrag.records import Document, Hit, as_hits
from gritrag.serve.bodies import (
    DocumentBody,
    Extension,
    RagBody,
    SamplingBody,
)
from gritrag.serve.errors import ApiError, bad, too_long
from gritrag.serve.http import readable
from gritrag.serve.openai_bodies import ChatBody, ChatMessage
from gritrag.serve.question import Question
from gritrag.serve.service import Service
from gritrag.serve.tenants import Tenant

DEFAULT = "gritrag"
"""The model that answers from the first index that a key may read, and embeds."""

RAG = "rag/"
"""Before the name of an index: the model that answers from it."""

FREE = (None, "none", "auto")
"""Choices of tools that ask for no call."""

TEXT_PARTS = ("text", "input_text", "output_text")
ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


def readable_names(service: Service, tenant: Tenant) -> list[str]:
    # a list first: stores are created and deleted in other threads
    return [name for name in list(service.indexes) if tenant.may_read(name)]


def index_of(service: Service, tenant: Tenant, model: str, extension: Extension | None) -> Index | None:
    """The index that a request is to be answered from; None for the model alone.

    Raises:
        ApiError: 404 for a model or an index that there is not for this tenant.
    """
    if extension is not None and extension.documents is not None:
        check_model(service, tenant, model)
        return None
    if extension is not None and extension.index is not None:
        return readable(service, tenant, extension.index)
    if model.startswith(RAG):
        return readable(service, tenant, model.removeprefix(RAG))
    check_model(service, tenant, model)
    names = readable_names(service, tenant)
    wants_documents = model == DEFAULT or extension is not None
    return service.indexes.get(names[0]) if wants_documents and names else None


def check_model(service: Service, tenant: Tenant, model: str) -> None:
    """Refuse a model that there is not.

    Raises:
        ApiError: 404; names those that there are.
    """
    names = [DEFAULT, service.model_id, *(RAG + name for name in readable_names(service, tenant))]
    if model not in names:
        raise ApiError(404, f"there is no model {model!r}; there are: {', '.join(names)}", "model_not_found", "model")


def refuse_unsupported(body: SamplingBody) -> None:
    """Refuse what would change the answer and is not done here; None and neutral values are as good as nothing.

    Raises:
        ApiError: 400; names the field.
    """
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(body, name):
            raise bad(f"{name} is not supported here; use repetition_penalty", name, "unsupported_parameter")
    wanted = {
        "logit_bias": any((body.logit_bias or {}).values()),
        "tools": getattr(body, "tools", None) and getattr(body, "tool_choice", None) != "none",
        "functions": getattr(body, "functions", None),
        "tool_choice": isinstance(body, ChatBody) and body.tool_choice not in FREE,
        "function_call": isinstance(body, ChatBody) and body.function_call not in FREE,
        "echo": getattr(body, "echo", None),
        "suffix": getattr(body, "suffix", None),
        "moderation": body.moderation is not None,
        "audio": getattr(body, "audio", None) is not None,
        "modalities": set(getattr(body, "modalities", None) or ()) - {"text"},
        "web_search_options": getattr(body, "web_search_options", None) is not None,
    }
    for name, value in wanted.items():
        if value:
            raise bad(f"{name}: this model does not do that; leave it out", name, "unsupported_parameter")
    form = getattr(body, "response_format", None)
    if form is not None and form.type != "text":
        raise bad("response_format: only text is written here", "response_format", "unsupported_parameter")


def sampling_of(service: Service, body: SamplingBody | RagBody, asked: int | None, prompt: int, param: str) -> Sampling:
    """Options of one generation behind a prompt of so many tokens.

    Args:
        asked: new tokens that were asked for; as many as there is room for, within the server's default, where None.
        param: the field to blame for what is too long.

    Raises:
        ApiError: 413 for what the model cannot take, 400 for options that make no sense.
    """
    room = service.most_tokens - prompt
    most = min(service.limits.default_new_tokens, room) if asked is None else asked
    if room < 1 or most > room:
        raise too_long(prompt + max(most, 1), service.most_tokens, param)
    if most > service.limits.new_tokens:
        raise bad(f"at most {service.limits.new_tokens} new tokens are generated here, not {most}", "max_tokens")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > 16 or any(len(each) > 256 for each in stop):
        raise bad("at most 16 stop strings of at most 256 characters", "stop")
    if not all(stop):
        raise bad("stop: a string that is empty ends nothing; leave it out", "stop")
    options: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "repetition_penalty": body.repetition_penalty,
        "seed": body.seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return Sampling.of({**given, "max_new_tokens": most, "stop": stop})


def messages_of(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Role and text of each message.

    Raises:
        ApiError: 400 for a role or a part that this model cannot read.
    """
    found = []
    for number, message in enumerate(messages):
        place = f"messages.{number}"
        if message.role not in ROLES:
            raise bad(f"{place}: this model knows no role {message.role!r}: it calls no tools", f"{place}.role")
        if isinstance(message.content, list):
            for part in message.content:
                if part.type not in TEXT_PARTS or part.text is None:
                    raise bad(f"{place}: this model reads text, not {part.type!r}", f"{place}.content")
            text = "".join(part.text or "" for part in message.content)
        else:
            text = message.content or ""
        found.append({"role": ROLES[message.role], "content": text})
    return found


def prompt_ids(service: Service, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """A chat, ready to be answered without documents."""
    return service.model.prompts.prompt_ids([dict(message) for message in messages])


def history_ids(service: Service, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
    """What was said before a question, as it stands before the documents."""
    if not messages:
        return ()
    render = partial(service.model.prompts.render, add_generation_prompt=False)
    return tuple(service.model.prompts.encoder.encode(chat_segments([dict(m) for m in messages], render)).ids)


def question_of(
    text: str,
    sampling: Sampling,
    index: Index | None,
    extension: Extension | None,
    history: tuple[int, ...] = (),
    top_logprobs: int | None = None,
) -> Question:
    """What the service is asked."""
    extension = extension or Extension()
    if extension.recompute and history:
        raise bad("recompute is for questions without earlier turns", "recompute")
    if extension.recompute and MODES[extension.mode].is_question_first:
        raise bad("recompute is for modes in which the question stands last", "recompute")
    if extension.rerank is not None and extension.documents is not None:
        raise bad("rerank ranks what a search found: leave it out, or send no documents", "rerank")
    if extension.rerank is not None and extension.rerank < extension.k:
        raise bad(f"rerank is how many candidates are ranked: at least k = {extension.k}", "rerank")
    bias = RELEVANCE_BIAS if extension.relevance_bias is None else extension.relevance_bias
    return Question(
        text,
        sampling,
        index,
        None if extension.documents is None else hits_of(extension.documents),
        extension.mode,
        extension.k,
        extension.where,
        extension.search_mode,
        bias,
        history,
        top_logprobs,
        remembers=bool(history),
        recompute=extension.recompute,
        rerank=extension.rerank,
        unanswerable_above=extension.unanswerable_above,
    )


def hits_of(documents: Sequence[str | DocumentBody]) -> list[Hit]:
    """Documents that came with a request."""
    return as_hits([d if isinstance(d, str) else Document(d.text, d.id, d.title, d.metadata) for d in documents])


def question_tokens(service: Service, text: str, extension: Extension | None) -> int:
    """Tokens of a question in its scaffold, before any document.

    Raises:
        ApiError: 413 if the question alone is more than the model takes.
    """
    service.check_length(service.model.count_tokens(text), "question")
    has_documents = extension is None or MODES[extension.mode].has_documents
    return len(service.model.prompts.question_ids(text, has_documents))


def created() -> int:
    return int(time.time())
