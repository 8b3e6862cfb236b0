"""Bodies of the Responses API, as OpenAI and Open Responses have them."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from gritrag.serve.bodies import AnswerBody, Metadata, SamplingBody
from gritrag.serve.openai_bodies import ContentPart, ResponseFormat
from gritrag.serve.paging import Cursor, Page
from gritrag.serve.store_bodies import RankingOptions


class InputItem(BaseModel):
    """An item of the input; messages are read."""

    type: str | None = "message"
    role: str | None = None
    content: str | list[ContentPart] | None = None


class TextSettings(BaseModel):
    format: ResponseFormat | None = None


class Tool(BaseModel):
    """A tool; the only one here is `file_search`."""

    type: str
    vector_store_ids: list[str] = []
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: dict[str, Any] | None = None
    ranking_options: RankingOptions | None = None


class ResponsesBody(SamplingBody):
    """`POST /v1/responses`."""

    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    tools: list[Tool] | None = None
    tool_choice: Any = "auto"
    previous_response_id: str | None = None
    store: bool | None = True
    metadata: dict[str, str] | None = None
    text: TextSettings | None = None
    include: list[str] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    background: bool | None = False
    conversation: Any = None
    prompt: Any = None


class InputDetails(BaseModel):
    cached_tokens: int


class OutputDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class ResponseBody(BaseModel):
    """A response, with all fields that Open Responses asks for."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    incomplete_details: dict[str, str] | None = None
    model: str
    previous_response_id: str | None = None
    instructions: str | None = None
    output: list[dict[str, Any]] = []
    error: dict[str, Any] | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: str = "auto"
    truncation: Literal["disabled"] = "disabled"
    parallel_tool_calls: bool = True
    text: dict[str, Any] = {"format": {"type": "text"}}
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = 0
    temperature: float = 0.0
    reasoning: dict[str, Any] | None = {"effort": None, "summary": None}
    user: str | None = None
    usage: ResponseUsage | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    store: bool = True
    background: bool = False
    service_tier: str = "default"
    metadata: Metadata = {}
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    gritrag: AnswerBody | None = None


class ResponseDeleted(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputTokens(BaseModel):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class SaidItem(BaseModel):
    """A message that a response answered."""

    id: str
    type: Literal["message"] = "message"
    role: str
    status: Literal["completed"] = "completed"
    content: list[dict[str, Any]]

    @classmethod
    def of(cls, id: str, message: dict[str, str]) -> "SaidItem":
        if message["role"] == "assistant":
            part: dict[str, Any] = {"type": "output_text", "text": message["content"], "annotations": []}
        else:
            part = {"type": "input_text", "text": message["content"]}
        return cls(id=id, role=message["role"], content=[part])


class InputItems(Page):
    data: list[SaidItem]


class WantedItems(Cursor):
    """Which messages a client wants to have listed, the latest first unless it says otherwise."""

    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
