"""What requests and answers look like. Unknown fields are ignored; OpenAI's routes have theirs in `openai_bodies`."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from gritrag.modes import MODES
from gritrag.records import Answer, Citation, Hit

Mode = Literal[
    "no-retrieval", "query-doc", "doc-query", "query-cache", "doc-cache", "query-doc-cache", "doc-query-cache"
]
SearchMode = Literal["dense", "sparse", "hybrid"]
Metadata = dict[str, Any]
Where = Mapping[str, Any]

assert set(MODES) == set(Mode.__args__)  # type: ignore[attr-defined]


# --- documents and answers -------------------------------------------------------------------------------------------


class DocumentBody(BaseModel):
    """A document that comes with a request."""

    text: str
    id: str = ""
    title: str = ""
    metadata: Metadata = {}


class HitBody(BaseModel):
    """A document that a search found; `score` is higher for better."""

    id: str
    title: str
    text: str
    metadata: Metadata
    score: float
    rank: int

    @classmethod
    def of(cls, hit: Hit) -> "HitBody":
        document = hit.document
        return cls(
            id=document.id,
            title=document.title,
            text=document.text,
            metadata=dict(document.metadata),
            score=hit.score,
            rank=hit.rank,
        )


class CitationBody(BaseModel):
    """A document whose tokens were in the context: `[start, end)` in tokens."""

    id: str
    title: str
    start: int
    end: int

    @classmethod
    def of(cls, citation: Citation) -> "CitationBody":
        return cls(**citation._asdict())


class TimingsBody(BaseModel):
    """Seconds; `first_token` and `total` count from the moment when the request was taken up."""

    retrieve: float
    load: float
    place: float
    first_token: float
    total: float


class CachedDetails(BaseModel):
    cached_tokens: int = 0


class ReasoningDetails(BaseModel):
    reasoning_tokens: int = 0


class UsageBody(BaseModel):
    """Tokens. `cached_tokens` are those of the prompt that were not read again."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedDetails
    completion_tokens_details: ReasoningDetails = ReasoningDetails()

    @classmethod
    def of(cls, prompt: int, completion: int, cached: int) -> "UsageBody":
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=CachedDetails(cached_tokens=cached),
        )


class AnswerBody(BaseModel):
    """An answer from documents; see `gritrag.Answer`."""

    text: str
    hits: list[HitBody]
    citations: list[CitationBody]
    usage: UsageBody
    timings: TimingsBody
    exact: bool
    mode: str
    finish_reason: str
    unanswerable: float | None = None

    @classmethod
    def of(cls, answer: Answer) -> "AnswerBody":
        usage = answer.usage
        return cls(
            text=answer.text,
            hits=[HitBody.of(hit) for hit in answer.hits],
            citations=[CitationBody.of(citation) for citation in answer.citations],
            usage=UsageBody.of(usage.prompt_tokens, usage.generated_tokens, usage.cached_tokens),
            timings=TimingsBody(**vars(answer.timings)),
            exact=answer.exact,
            mode=answer.mode,
            finish_reason=answer.finish_reason,
            unanswerable=answer.unanswerable,
        )


class Extension(BaseModel):
    """How to answer from documents, in the field `gritrag` of a request.

    Args:
        index: name of the index; or the model ``rag/NAME``.
        documents: to answer from instead of a search.
        mode: ``doc-cache`` answers from states, ``doc-query`` reads the documents again.
        k, where, search_mode, relevance_bias, recompute: see `gritrag.RAG`.
        rerank: so many candidates of the search, at least `k`, are ranked by how probable the question is behind the
            state of each; the `k` best are kept. Not with `documents`.
        unanswerable_above: probability that the documents do not hold the answer, above which the answer says so; see
            `gritrag.RAG`. Not told behind earlier turns.
    """

    index: str | None = None
    documents: list[str | DocumentBody] | None = Field(None, max_length=64)
    mode: Mode = "doc-cache"
    k: int = Field(5, ge=1, le=64)
    where: Where | None = None
    search_mode: SearchMode = "hybrid"
    relevance_bias: float | None = Field(None, ge=0, le=100)
    recompute: float = Field(0.0, ge=0, le=1)
    rerank: int | None = Field(None, ge=1, le=64)
    unanswerable_above: float | None = Field(None, ge=0, le=1)


# --- sampling, shared by all that generate ---------------------------------------------------------------------------


class StreamOptions(BaseModel):
    include_usage: bool | None = False


class SamplingBody(BaseModel):
    """How to choose tokens. Nothing given is greedy."""

    model: str = "gritrag"
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    moderation: Any = None
    user: str | None = None
    gritrag: Extension | None = None


# --- models ----------------------------------------------------------------------------------------------------------


class ModelBody(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gritrag"
    max_model_len: int
    index: str | None = None


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelBody]


# --- rag -------------------------------------------------------------------------------------------------------------


class RagBody(Extension):
    """`POST /v1/rag`: one question, answered from an index or from documents that come with it.

    With `stream`, events named ``hits``, ``text`` and ``answer`` follow one another.
    """

    question: str
    max_new_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    stream: bool | None = False
