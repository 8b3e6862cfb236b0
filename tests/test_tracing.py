"""Traced answers: one span each, its stages inside it in their order, and nothing confidential unless asked for."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from gritrag import RAG, GritModel, Index
from gritrag.tracing import STAGES, TracedRAG, Tracing


@pytest.fixture(scope="module")
def index(tiny_model: GritModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with Index.create(tmp_path_factory.mktemp("traced") / "docs", model=tiny_model, states="float32") as index:
        index.add(["the ferry leaves at noon", "bread is baked before dawn", "seven geese live by the river"])
        yield index


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def tree(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan]]:
    (root,) = [span for span in exporter.get_finished_spans() if span.parent is None]
    children = [span for span in exporter.get_finished_spans() if span is not root]
    assert all(child.parent == root.context for child in children)
    return root, children


def test_an_answer_is_a_span_whose_stages_fill_it(
    index: Index, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    answer = TracedRAG(index, k=2, tracing=Tracing("tiny", provider)).ask("who bakes?", max_new_tokens=4, seed=7)
    root, children = tree(exporter)
    assert root.name == "chat tiny"
    assert [child.name for child in children] == list(STAGES)
    assert children[0].start_time == root.start_time
    assert children[-1].end_time == pytest.approx(root.end_time, abs=2)
    for before, after in pairwise(children):
        assert before.end_time == after.start_time
    first_token = children[3].end_time - root.start_time
    assert first_token == pytest.approx(answer.timings.first_token * 1e9, abs=1e3)
    said = root.attributes
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.max_tokens"] == 4
    assert said["gen_ai.request.seed"] == 7
    assert said["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert said["gen_ai.usage.cache_read.input_tokens"] == answer.usage.cached_tokens > 0
    assert said["gen_ai.usage.output_tokens"] == answer.usage.generated_tokens
    assert said["gen_ai.response.finish_reasons"] == (answer.finish_reason,)
    assert children[0].attributes["gen_ai.data_source.id"] == "docs"
    assert children[0].attributes["gritrag.documents"] == 2


def test_no_text_is_told_unless_asked_for(
    index: Index, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    TracedRAG(index, k=1, tracing=Tracing("tiny", provider)).ask("who bakes?", max_new_tokens=2)
    assert "bakes" not in "".join(span.to_json() for span in exporter.get_finished_spans())
    exporter.clear()
    answer = TracedRAG(index, k=1, tracing=Tracing("tiny", provider, records_content=True)).ask("who bakes?")
    root, children = tree(exporter)
    assert json.loads(root.attributes["gen_ai.input.messages"])[0]["parts"][0]["content"] == "who bakes?"
    assert json.loads(root.attributes["gen_ai.output.messages"])[0]["parts"][0]["content"] == answer.text
    found = json.loads(children[0].attributes["gen_ai.retrieval.documents"])
    assert [each["id"] for each in found] == [hit.document.id for hit in answer.hits]


def test_a_batch_is_one_span_and_a_stream_ends_its_own(
    index: Index, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    rag = TracedRAG(index, tracing=Tracing("tiny", provider))
    answers = rag.ask_many(["who bakes?", "who leaves?"], max_new_tokens=3)
    root, _ = tree(exporter)
    assert root.attributes["gritrag.questions"] == 2
    assert root.attributes["gen_ai.usage.output_tokens"] == sum(each.usage.generated_tokens for each in answers)
    exporter.clear()
    assert [event.answer for event in rag.stream("who?", max_new_tokens=2)][-1] is not None
    assert tree(exporter)[0].name == "chat tiny"


def test_a_failure_is_a_span_with_its_error(
    index: Index, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    with pytest.raises(ValueError, match=r"\$no"):
        TracedRAG(index, tracing=Tracing("tiny", provider)).ask("who?", where={"year": {"$no": 1}})
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "ValueError"
    assert [event.name for event in span.events] == ["exception"]


def test_answers_are_those_without_tracing(index: Index, provider: TracerProvider) -> None:
    plain, traced = RAG(index), TracedRAG(index, tracing=Tracing("tiny", provider))
    assert plain.ask("who?", max_new_tokens=5).text == traced.ask("who?", max_new_tokens=5).text


def test_what_is_not_traced_never_imports_it() -> None:
    code = "import sys, gritrag; gritrag.RAG; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
