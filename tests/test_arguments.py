"""Numbers that callers give: those of any library are numbers, and what is none is refused by its name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ferry import DOCUMENTS, QUESTION

from gritrag import RAG, Document, GritModel, Index, Sampling
from gritrag.arguments import real, whole

NO_NUMBER = ["2", None, [2], b"2"]


@pytest.fixture
def index(tiny_model: GritModel, tmp_path: Path) -> Any:
    with Index.create(tmp_path / "index", model=tiny_model, states="float32") as made:
        made.add(DOCUMENTS)
        yield made


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), torch.tensor(2)])
def test_whole_numbers_of_any_library(value: Any) -> None:
    assert (found := whole("k", value)) == 2
    assert type(found) is int


@pytest.mark.parametrize("value", [*NO_NUMBER, 2.0, 2.5, float("nan"), True])
def test_no_whole_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match="k must be a whole number"):
        whole("k", value)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0)])
def test_numbers_of_any_library(value: Any) -> None:
    assert (found := real("share", value)) == 2.0
    assert type(found) is float


@pytest.mark.parametrize("value", [*NO_NUMBER, 10**400])
def test_no_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match="share must be a number"):
        real("share", value)


@pytest.mark.parametrize("value", [2, np.float32(2), torch.tensor(2.0)])
def test_a_temperature_and_a_penalty_need_not_be_floats(tiny_model: GritModel, value: Any) -> None:
    """Transformers asks for floats, and says of 2 that it is not above 0."""
    for name in ("temperature", "repetition_penalty"):
        expected = tiny_model.generate("a ferry", **{name: 2.0}, seed=1, max_new_tokens=4)
        assert tiny_model.generate("a ferry", **{name: value}, seed=1, max_new_tokens=4) == expected
    assert Sampling.of({"top_p": 1}).top_p == 1.0


def test_an_index_and_its_answers_take_numbers_of_numpy(index: Index) -> None:
    two, half = np.int64(2), np.float32(0.5)
    expected = index.search(QUESTION, k=2, fetch_k=2, rerank=2)
    assert index.search(QUESTION, k=two, fetch_k=two, rerank=two) == expected
    assert index.rerank(QUESTION, index.search(QUESTION), k=two)[1].rank == 2
    answer = RAG(index, k=two, relevance_bias=half, recompute=half).ask(QUESTION, max_new_tokens=2)
    assert answer.text == RAG(index, k=2, relevance_bias=0.5, recompute=0.5).ask(QUESTION, max_new_tokens=2).text
    plain = RAG(index, k=2, relevance_bias=0.5).ask(QUESTION, max_new_tokens=2).text
    assert RAG(index, k=2, relevance_bias=half).ask(QUESTION, max_new_tokens=2).text == plain


@pytest.mark.parametrize("k", [0, -1, 2.5, "2"])
def test_ranking_keeps_no_other_number_than_was_asked_for(index: Index, k: Any) -> None:
    """All but the last of -1, and all of 0."""
    with pytest.raises(ValueError, match="k must be a whole number"):
        index.rerank(QUESTION, index.search(QUESTION), k=k)


@pytest.mark.parametrize(
    ("name", "call"),
    {
        "fetch_k": lambda index, value: index.search(QUESTION, k=1, fetch_k=value),
        "mmr": lambda index, value: index.search(QUESTION, mmr=value),
        "dense_weight": lambda index, value: index.search(QUESTION, dense_weight=value),
        "rerank": lambda index, value: index.search(QUESTION, rerank=value),
        "relevance_bias": lambda index, value: RAG(index, relevance_bias=value),
        "recompute": lambda index, value: RAG(index, recompute=value),
        "unanswerable_above": lambda index, value: RAG(index, unanswerable_above=value),
        "batch_size": lambda index, value: RAG(index).ask_many([QUESTION], batch_size=value),
    }.items(),
)
def test_what_is_no_number_is_refused_by_its_name(index: Index, name: str, call: Callable[[Index, Any], Any]) -> None:
    for value in ("x", [1]):
        with pytest.raises(ValueError, match=f"{name} (must be a|is how many)"):
            call(index, value)


def test_no_filter_is_left_out_in_silence(index: Index) -> None:
    rag, hits = RAG(index, k=2), index.search(QUESTION, k=2)
    for given in ({"hits": hits}, {"documents": ["A text."]}):
        with pytest.raises(ValueError, match="a filter is for a search"):
            rag.ask(QUESTION, where={"year": 9}, **given)
    with pytest.raises(ValueError, match="a filter is for a search"):
        rag.ask_many([QUESTION], where={"year": 9}, hits=[hits])


def test_one_question_that_nobody_can_answer_costs_no_answers(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are looked at first: the hundredth batch is too late."""
    rag = RAG(index, k=2)
    monkeypatch.setattr(rag, "_answers", lambda *given: pytest.fail("it began to answer"))
    for wrong in ("", " \n", "\ud800", None, 5, "a" * 1000):
        with pytest.raises(ValueError, match="question 2 "):
            rag.ask_many([QUESTION, QUESTION, wrong], batch_size=1)


def test_questions_may_come_from_anywhere(index: Index) -> None:
    rag, questions = RAG(index, k=2), [QUESTION, "What do goats eat?"]
    expected = [answer.text for answer in rag.ask_many(questions, max_new_tokens=3)]
    for given in (tuple(questions), iter(questions), np.array(questions)):
        assert [answer.text for answer in rag.ask_many(given, max_new_tokens=3)] == expected
    with pytest.raises(ValueError, match="list of questions"):
        rag.ask_many(None)


def test_ranking_finds_nothing_where_a_filter_lets_nothing_through(
    make_model: Callable[..., GritModel], tmp_path: Path
) -> None:
    """Also with models that read one text after the other."""
    model = make_model("gemma3")
    with Index.create(tmp_path / "index", model=model, states="float32") as index:
        index.add([Document("The ferry leaves at noon.", id="a")])
        assert model.decoder._is_row_by_row
        assert index.search(QUESTION, k=1, rerank=3, where={"year": 9}) == []
        assert len(index.search(QUESTION, k=1, rerank=3)) == 1
