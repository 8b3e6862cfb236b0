"""OpenTelemetry spans of answers: one for the answer, and in it retrieve, load, place, forward and decode.

Names and attributes are those of https://github.com/open-telemetry/semantic-conventions-genai; what these have no word
for begins with ``gritrag.``. Where no SDK is configured, the API of OpenTelemetry drops all spans. An answer that is
not traced does not know this module.
"""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    get_tracer,
    set_span_in_context,
)

import gritrag
from gritrag.answer import RAG, Where
from gritrag.model.sampling import Sampling
from gritrag.plan import Given
from gritrag.records import Answer, Event, Timings

__all__ = ["TracedRAG", "Tracing"]

STAGES = ("retrieve", "load", "place", "forward", "decode")
Attributes = dict[str, Any]


class Tracing:
    """Makes spans of answers that are finished, and of those that failed.

    Args:
        model: name of the model, in the spans.
        tracer_provider: that of the SDK; the one that is set for the process if left out.
        records_content: put questions, answers and ids of documents into the spans. They may be confidential.
    """

    def __init__(
        self, model: str, tracer_provider: TracerProvider | None = None, records_content: bool = False
    ) -> None:
        self._model, self._records_content = model, records_content
        self._tracer: Tracer = get_tracer("gritrag", gritrag.__version__, tracer_provider)

    def answered(
        self,
        questions: Sequence[str],
        answers: Sequence[Answer],
        index: str = "",
        sampling: Sampling | None = None,
    ) -> None:
        """Answers of one batch are there: now. Their times count backwards from here.

        Args:
            questions: of the batch.
            answers: one for each; they share their times.
            index: that was searched.
            sampling: options of the request.
        """
        timings = answers[0].timings
        end = time.time_ns()
        start = end - _nanoseconds(timings.total)
        span = self._begin("chat", start, {**_requested(sampling), **_counted(answers)})
        if self._records_content:
            span.set_attributes(_spoken(questions, answers))
        self._stages(span, start, timings, answers, index)
        span.end(end)

    def failed(self, error: BaseException, seconds: float, sampling: Sampling | None = None) -> None:
        """An answer that began so many seconds ago will not come."""
        end = time.time_ns()
        span = self._begin("chat", end - _nanoseconds(seconds), _requested(sampling))
        span.set_attribute("error.type", type(error).__qualname__)
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, str(error)))
        span.end(end)

    def reranked(self, documents: int, tokens: int, seconds: float) -> None:
        """So many documents were ranked for a query."""
        end = time.time_ns()
        attributes = {"gen_ai.usage.input_tokens": tokens, "gritrag.documents": documents}
        self._begin("rerank", end - _nanoseconds(seconds), attributes).end(end)

    def _begin(self, operation: str, start: int, attributes: Attributes) -> Span:
        named = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "gritrag",
            "gen_ai.request.model": self._model,
            **attributes,
        }
        name = f"{operation} {self._model}"
        return self._tracer.start_span(name, kind=SpanKind.INTERNAL, attributes=named, start_time=start)

    def _stages(self, parent: Span, start: int, timings: Timings, answers: Sequence[Answer], index: str) -> None:
        ends = {"retrieve": timings.retrieve, "load": timings.retrieve + timings.load}
        ends["place"] = min(ends["load"] + timings.place, timings.first_token)
        ends |= {"forward": timings.first_token, "decode": timings.total}
        context = set_span_in_context(parent)
        began = start
        for stage in STAGES:
            ended = max(began, start + _nanoseconds(ends[stage]))
            attributes: Attributes = {"gritrag.stage": stage}
            if stage == "retrieve":
                attributes |= {"gen_ai.operation.name": "retrieval", "gen_ai.data_source.id": index}
                attributes["gritrag.documents"] = sum(len(answer.hits) for answer in answers)
                if self._records_content:
                    found = [{"id": hit.document.id, "score": hit.score} for each in answers for hit in each.hits]
                    attributes["gen_ai.retrieval.documents"] = json.dumps(found)
            child = self._tracer.start_span(stage, context=context, attributes=attributes, start_time=began)
            child.end(ended)
            began = ended


class TracedRAG(RAG):
    """A `RAG` whose answers become spans.

    Args:
        *args: of `RAG`.
        tracing: what makes the spans; by default with the index's folder as the model's data source.
        **options: of `RAG`.
    """

    def __init__(self, *args: Any, tracing: Tracing, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tracing = tracing

    def _answers(
        self, questions: Sequence[str], where: Where, given: Sequence[Given] | None, options: Sampling
    ) -> Iterator[list[Event]]:
        began = time.perf_counter()
        try:
            for events in super()._answers(questions, where, given, options):
                answers = [event.answer for event in events if event.answer is not None]
                if answers:
                    self.tracing.answered(questions, answers, self.index.path.name, options)
                yield events
        except Exception as error:  # told, and raised again
            self.tracing.failed(error, time.perf_counter() - began, options)
            raise


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _requested(sampling: Sampling | None) -> Attributes:
    if sampling is None:
        return {}
    given: Attributes = {
        "gen_ai.request.max_tokens": sampling.max_new_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.stop_sequences": sampling.stop,
    }
    if sampling.seed is not None:
        given["gen_ai.request.seed"] = sampling.seed
    return given | ({"gen_ai.request.top_k": float(sampling.top_k)} if sampling.top_k else {})


def _counted(answers: Sequence[Answer]) -> Attributes:
    return {
        "gen_ai.response.finish_reasons": [answer.finish_reason for answer in answers],
        "gen_ai.response.time_to_first_chunk": answers[0].timings.first_token,
        "gen_ai.usage.input_tokens": sum(answer.usage.prompt_tokens for answer in answers),
        "gen_ai.usage.output_tokens": sum(answer.usage.generated_tokens for answer in answers),
        "gen_ai.usage.cache_read.input_tokens": sum(answer.usage.cached_tokens for answer in answers),
        "gritrag.questions": len(answers),
        "gritrag.mode": answers[0].mode,
        "gritrag.exact": all(answer.exact for answer in answers),
    }


def _spoken(questions: Sequence[str], answers: Sequence[Answer]) -> Attributes:
    asked = [{"role": "user", "parts": [{"type": "text", "content": question}]} for question in questions]
    said = [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": answer.text}],
            "finish_reason": answer.finish_reason,
        }
        for answer in answers
    ]
    return {"gen_ai.input.messages": json.dumps(asked), "gen_ai.output.messages": json.dumps(said)}
