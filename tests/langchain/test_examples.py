"""The examples run, and what they print is true."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from gritrag import GritModel, Index

EXAMPLES = ROOT / "examples" / "langchain"


def run(name: str, *arguments: Any, **options: Any) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](*arguments, **options)


def test_stuff_chain(corpus_index: Index) -> None:
    answer = run("stuff_chain", corpus_index)
    assert "Old Margit" in answer.text
    assert answer.usage_metadata["input_token_details"]["cache_read"] > 0.8 * answer.usage_metadata["input_tokens"]


def test_conversation(corpus_index: Index) -> None:
    first, second = run("conversation", corpus_index)
    assert "Old Margit" in first.text
    assert second.usage_metadata["input_token_details"]["cache_read"] > 0.5 * second.usage_metadata["input_tokens"]


def test_indexing(grit: GritModel, tmp_path: Path) -> None:
    with Index.create(tmp_path / "index", model=grit) as index:
        first, again, next_day = run("indexing", index)
    assert (first["num_added"], first["num_deleted"]) == (3, 0)
    assert (again["num_added"], again["num_skipped"]) == (0, 3)
    assert (next_day["num_added"], next_day["num_skipped"], next_day["num_deleted"]) == (1, 1, 2)


def test_citations(corpus_index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    result = run("citations", corpus_index)
    assert result["answer"] in capsys.readouterr().out
    assert [citation["id"] for citation in result["citations"]] == [document.id for document in result["documents"]]
    assert "mount-harrowick" in [citation["id"] for citation in result["citations"]]


def test_first_token(corpus_index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    (ratio,) = run("first_token", corpus_index, k=2, rounds=1)
    printed = capsys.readouterr().out
    assert f"{ratio:.1f}x  100% reused" in printed
    assert printed.splitlines()[-1].startswith("one letter edited")
    assert printed.count(": right") == 2
