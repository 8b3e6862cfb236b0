"""Documents that share positions need none of their neighbours': more of them fit than the model has positions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gritrag import RAG, Document, GritModel, Hit, Index
from gritrag.model.context import Context, Part

COUNT, LETTERS = 12, 100


def hits() -> list[Hit]:
    texts = [f"{number:02} " + "the ferry crosses " * (LETTERS // 18) for number in range(COUNT)]
    return [Hit(Document(text, id=f"d{n}"), 1 / (n + 1), n + 1) for n, text in enumerate(texts)]


def test_more_documents_than_the_model_has_positions(make_model: Callable[..., GritModel], tmp_path: Path) -> None:
    model = make_model("qwen3")
    assert 2 * model.context_length < COUNT * LETTERS
    with Index.create(tmp_path / "index", model=model) as index:
        answer = RAG(index, relevance_bias=1.0).ask("which way?", hits=hits(), max_new_tokens=8)
        assert len(answer.citations) == COUNT
        assert answer.usage.prompt_tokens > model.context_length
        assert answer.usage.generated_tokens == 8 or answer.finish_reason == "stop"


def test_documents_in_a_row_are_left_out_as_before(
    make_model: Callable[..., GritModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("qwen3")
    with Index.create(tmp_path / "index", model=model) as index:
        for mode, bias in (("doc-cache", 0.0), ("doc-query", 1.0)):
            caplog.clear()
            answer = RAG(index, mode=mode, relevance_bias=bias).ask("which way?", hits=hits(), max_new_tokens=8)
            assert len(answer.citations) < COUNT
            assert answer.usage.prompt_tokens <= model.context_length
            assert "are left out" in caplog.text


def test_the_end_of_a_context(make_model: Callable[..., GritModel]) -> None:
    long, short = (each.state for each in make_model("qwen3").read_documents(["a long text of a river", "short"]))
    assert Context.of(long, short, [7, 8]).end == len(long) + len(short) + 2
    shared = Context((Part(long, -1.0, True), Part(short, 0.0, True), Part((7, 8))), start=5)
    assert shared.end == 5 + len(long) + 2
    assert Context((Part(short, 0.0, True), Part(long, -1.0, True))).end == len(long)
