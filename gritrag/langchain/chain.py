"""A chain from a question to its answer: `RAG` as a LangChain Runnable."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.runnables import RunnableConfig, RunnableSerializable, run_in_executor
from langchain_core.runnables.utils import AddableDict
from pydantic import ConfigDict, Field

from gritrag.answer import RAG
from gritrag.config import RELEVANCE_BIAS, SEARCH_MODE
from gritrag.langchain.documents import given_documents, to_langchain
from gritrag.langchain.indexes import OpenIndex
from gritrag.records import Answer, Event, as_hits

__all__ = ["GritRAGChain"]

Question = str | dict[str, Any]
"""A question, or ``{"question": ...}`` with ``"filter"`` (metadata for the search) or ``"documents"`` (no search;
the best first, as a retriever gives them)."""


class GritRAGChain(RunnableSerializable[Question, dict[str, Any]]):
    """From a question to ``{"documents", "answer", "citations", "usage", "unanswerable"}``, all in the template the
    model knows best.

    ``citations`` name the documents whose tokens were in the context, and where; ``unanswerable`` is that of `Answer`.
    A stream gives the documents first, then pieces of the answer, all else last; its parts add up to what `invoke`
    returns. Options of `Sampling` can be given per call. Async methods run in threads.

    Args:
        index: an open index, or the path of one.
        mode, k, search_mode, relevance_bias, recompute, rerank, unanswerable_above: see `RAG`.
        max_tokens: at most so many new tokens.

    Raises:
        ValueError: see `RAG`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    index: OpenIndex = Field(repr=False)
    mode: str = "doc-cache"
    k: int = 5
    search_mode: str = SEARCH_MODE
    relevance_bias: float = RELEVANCE_BIAS
    recompute: float = 0.0
    rerank: int | None = None
    unanswerable_above: float | None = None
    max_tokens: int = 64

    def model_post_init(self, context: Any) -> None:
        """Refuse now what `RAG` would refuse at the first question."""
        self._rag()

    def invoke(self, input: Question, config: RunnableConfig | None = None, **options: Any) -> dict[str, Any]:
        """Answer one question; errors are those of `RAG.ask`."""
        return self._call_with_config(self._whole, input, config, **options)

    def stream(self, input: Question, config: RunnableConfig | None = None, **options: Any) -> Iterator[dict[str, Any]]:
        """As `invoke`, in parts."""
        yield from self._transform_stream_with_config(iter([input]), self._parts_of_last, config, **options)

    async def astream(
        self, input: Question, config: RunnableConfig | None = None, **options: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """As `stream`."""

        async def inputs() -> AsyncIterator[Question]:
            yield input

        async for part in self._atransform_stream_with_config(inputs(), self._aparts_of_last, config, **options):
            yield part

    def _rag(self) -> RAG:
        dials = self.relevance_bias, self.recompute, self.rerank, self.unanswerable_above
        return RAG(self.index, self.mode, self.k, self.search_mode, *dials)

    def _events(self, asked: Question, options: Mapping[str, Any]) -> Iterator[Event]:
        given: Mapping[str, Any] = asked if isinstance(asked, Mapping) else {"question": asked}
        unknown = sorted(set(given) - {"question", "filter", "documents"})
        if unknown or not isinstance(given.get("question"), str):
            got = list(asked) if isinstance(asked, Mapping) else repr(asked)
            raise ValueError(f"expected a question, or question with filter or documents, got {got}")
        hits = None
        if given.get("documents") is not None:
            hits = as_hits(given_documents(given["documents"]))
        sampling = {"max_new_tokens": self.max_tokens, **options}
        if "max_tokens" in sampling:  # by the name of the field too
            sampling["max_new_tokens"] = sampling.pop("max_tokens")
        return self._rag().stream(given["question"], where=given.get("filter"), hits=hits, **sampling)

    def _parts(self, asked: Question, options: Mapping[str, Any]) -> Iterator[AddableDict]:
        for event in self._events(asked, options):
            if event.hits is not None:
                yield AddableDict(documents=[to_langchain(hit.document) for hit in event.hits], answer="")
            elif event.text is not None:
                yield AddableDict(answer=event.text)
            elif event.answer is not None:
                answer = event.answer
                cited = [citation._asdict() for citation in answer.citations]
                yield AddableDict(citations=cited, usage=_usage(answer), unanswerable=answer.unanswerable)

    def _whole(self, asked: Question, **options: Any) -> dict[str, Any]:
        first, *others = self._parts(asked, options)
        for part in others:
            first += part
        return dict(first)

    def _parts_of_last(self, inputs: Iterator[Question], **options: Any) -> Iterator[AddableDict]:
        *_, asked = inputs
        yield from self._parts(asked, options)

    async def _aparts_of_last(self, inputs: AsyncIterator[Question], **options: Any) -> AsyncIterator[AddableDict]:
        async for asked in inputs:
            parts = self._parts(asked, options)
            while (part := await run_in_executor(None, next, parts, None)) is not None:
                yield part


def _usage(answer: Answer) -> UsageMetadata:
    usage = answer.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.generated_tokens,
        total_tokens=usage.prompt_tokens + usage.generated_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )
