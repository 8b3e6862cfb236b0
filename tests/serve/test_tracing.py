"""A server that is traced tells answers and rankings as spans."""

from collections.abc import Callable
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import Running

from gritrag import GritModel
from gritrag.tracing import Tracing


def test_answers_and_rankings_are_spans(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server = start(tiny_model, {"docs": make_index(tiny_model)})
    with server.client() as client:
        body = {"question": "when does the ferry leave?", "max_new_tokens": 3}
        client.post("/v1/rag", json=body).raise_for_status()
        assert exporter.get_finished_spans() == ()
        server.service.observer = Tracing("tiny", provider)
        answer = client.post("/v1/rag", json=body).raise_for_status().json()
        client.post("/v1/rerank", json={"query": "ferry", "documents": ["a", "b"]}).raise_for_status()
    names = [span.name for span in exporter.get_finished_spans()]
    assert names == ["retrieve", "load", "place", "forward", "decode", "chat tiny", "rerank tiny"]
    retrieve, *_, chat, rerank = exporter.get_finished_spans()
    assert retrieve.attributes["gen_ai.data_source.id"] == "docs"
    assert chat.attributes["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert chat.end_time - chat.start_time >= answer["timings"]["total"] * 0.5e9
    assert rerank.attributes["gritrag.documents"] == 2
