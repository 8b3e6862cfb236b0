"""Bodies of OpenAI's routes and of rerank: chat, completions and embeddings, in their shapes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from gritrag.serve.bodies import AnswerBody, SamplingBody, UsageBody

# --- chat ------------------------------------------------------------------------------------------------------------


class ContentPart(BaseModel):
    """Part of a message; only text is read."""

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    role: str
    content: str | list[ContentPart] | None = None


class ResponseFormat(BaseModel):
    type: str = "text"


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    audio: Any = None
    modalities: list[str] | None = None
    web_search_options: Any = None
    response_format: ResponseFormat | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    system_fingerprint: str
    gritrag: AnswerBody | None = None


# --- completions -----------------------------------------------------------------------------------------------------


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = False
    suffix: str | None = None
    best_of: int | None = None


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody
    system_fingerprint: str


# --- embeddings and rerank -------------------------------------------------------------------------------------------


class EmbeddingBody(BaseModel):
    """`POST /v1/embeddings`. `input_type` says which side of a search a text is on; `instruction` goes on queries."""

    input: str | list[str] | list[int] | list[list[int]]
    model: str = "gritrag"
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None
    input_type: Literal["document", "query", "search_document", "search_query"] | None = "document"
    instruction: str | None = None


class EmbeddingRow(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    data: list[EmbeddingRow]
    model: str
    usage: EmbeddingUsage


class RerankDocument(BaseModel):
    text: str


class RerankBody(BaseModel):
    """`POST /v1/rerank`, as Jina and Cohere have it."""

    query: str
    documents: list[str | RerankDocument] = Field(min_length=1)
    model: str = "gritrag"
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = False
    instruction: str | None = None


class RerankRow(BaseModel):
    index: int
    relevance_score: float
    document: RerankDocument | None = None


class Reranked(BaseModel):
    id: str
    model: str
    results: list[RerankRow]
    usage: EmbeddingUsage
