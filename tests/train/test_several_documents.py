"""Rows of several passages, rows without an answer, and questions that need two documents."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.config import SourceConfig
from gritrag.train.data.draw import _biases
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.rows import Passage, Question, read_source
from gritrag.train.data.steps import Prompted, RetrievalStep
from gritrag.train.read_once import ReadOnce

Recipe = Callable[..., TrainConfig]
Write = Callable[[Path, list[dict[str, Any]]], Path]

HOUSES = [["The gate is red.", "The roof is flat.", "The cat is old."], ["Dogs may stay.", "Tea is free."]]
ONLY_QUESTIONS = {"p_chat": 0.0, "p_full": 0.0, "p_unanswerable": 0.0}


def text(model: GritModel, ids: list[int]) -> str:
    return model.tokenizer.decode(ids).replace("<|im_end|>", "")


def multi_rows() -> list[dict[str, Any]]:
    return [
        {"question": "What is the roof?", "documents": HOUSES[0], "answers": ["flat"], "gold": [1], "title": "A"},
        {"question": "What is free?", "documents": HOUSES[1], "answers": ["tea"], "gold": [1], "title": "B"},
        {"question": "May dogs stay?", "documents": HOUSES[1], "answers": ["yes"], "gold": [0], "title": "B"},
    ]


def answers_of(mixture: Mixture, steps: int = 40) -> list[tuple[RetrievalStep, Prompted]]:
    found = [step for step in map(mixture.step, range(steps)) if isinstance(step, RetrievalStep)]
    return [(step, answer) for step in found for answer in step.answers]


def test_gold_says_which_passage_answers_and_which_ones_are_needed(tmp_path: Path, write: Write) -> None:
    rows = [
        multi_rows()[0],
        {"question": "Both?", "documents": HOUSES[0], "answers": ["yes"], "gold": [2, 0]},
        {"question": "q?", "documents": HOUSES[1], "answers": []},
    ]
    passages, _ = read_source(write(tmp_path / "a.jsonl", rows), SourceConfig(path="a.jsonl"))
    gate, roof, cat = HOUSES[0]
    assert passages == [
        Passage(roof, "", (Question("What is the roof?", "flat", None, (gate, cat)),)),
        Passage(cat, "", (Question("Both?", "yes", None, (roof,), evidence=(gate,)),)),
        Passage(HOUSES[1][0], "", (Question("q?", "", None, (HOUSES[1][1],)),)),
    ]
    assert [p.questions[0].is_query for p in passages] == [True, False, True]


@pytest.mark.parametrize("gold", [[], [3], [-1], [0, 0], ["0"], [True], 1])
def test_a_gold_that_names_no_passage_is_refused(tmp_path: Path, write: Write, gold: Any) -> None:
    row = {"question": "q?", "documents": HOUSES[0], "answers": ["a"], "gold": gold}
    with pytest.raises(ValueError, match="line 1: broken row: gold must"):
        read_source(write(tmp_path / "a.jsonl", [row]), SourceConfig(path="a.jsonl"))


def test_unanswerable_is_not_the_same_as_no_answer_known(tmp_path: Path, write: Write) -> None:
    rows = [
        {"question": "who?", "passage": "Ann came.", "answers": [], "unanswerable": True},
        {"question": "why?", "passage": "Ann came.", "answers": []},
    ]
    ((passage,), _) = read_source(write(tmp_path / "a.jsonl", rows), SourceConfig(path="a.jsonl"))
    assert [(q.answer, q.is_unanswerable, q.is_query) for q in passage.questions] == [
        ("", True, False),
        ("", False, True),
    ]
    both = {**rows[0], "answers": ["Ann"]}
    with pytest.raises(ValueError, match="marked unanswerable and has answers"):
        read_source(write(tmp_path / "b.jsonl", [both]), SourceConfig(path="b.jsonl"))


def test_sentences_of_a_list_of_facts_become_documents_that_are_all_needed(
    tiny_model: GritModel, recipe: Recipe, tmp_path: Path, write: Write
) -> None:
    facts = "The gate is red. Red gates are rare. Rare things cost much."
    rows = [{"question": "Is it dear?", "passage": facts, "answers": ["yes"]}]
    rows += [{"question": "Who?", "passage": f"Ann {n} came. Bob {n} left.", "answers": ["no"]} for n in range(3)]
    source = {"path": str(write(tmp_path / "facts.jsonl", rows)), "split_sentences": True}
    config = recipe(
        data={"sources": [source], "chat": [], "tokens_per_step": 2000, "p_title": 0},
        generative={**ONLY_QUESTIONS, "documents_per_context": [1]},
    )
    step = Mixture(config, tiny_model).step(0)
    assert isinstance(step, RetrievalStep)
    assert len(step.documents) == 9
    assert step.queries == []
    seen = {
        text(tiny_model, a.question_ids): sorted(text(tiny_model, step.documents[r].ids) for r in a.context)
        for a in step.answers
    }
    dear = next(documents for question, documents in seen.items() if "dear" in question)
    assert [fact for fact in facts.split(". ") if any(fact.strip(".") in d for d in dear)] == facts.split(". ")
    assert ReadOnce(tiny_model, config)(step).losses.keys() == {"placed"}  # nothing to compare, and no error
    tiny_model.lm.zero_grad()


def test_passages_of_a_row_are_its_context_side_by_side(
    tiny_model: GritModel, recipe: Recipe, tmp_path: Path, write: Write
) -> None:
    source = {"path": str(write(tmp_path / "multi.jsonl", multi_rows()))}
    config = recipe(
        data={"sources": [source], "chat": [], "tokens_per_step": 2000},
        generative={**ONLY_QUESTIONS, "documents_per_context": [1], "p_relevance_bias": 1.0},
    )
    checked = 0
    for step, answer in answers_of(Mixture(config, tiny_model)):
        house = HOUSES[0] if "roof" in text(tiny_model, answer.question_ids) else HOUSES[1]
        documents = [text(tiny_model, step.documents[row].ids) for row in answer.context]
        assert len(documents) == len(house)
        assert all(any(passage in document for document in documents) for passage in house)
        assert answer.shares_positions == (True,) * len(house)
        checked += 1
    assert checked > 20


def test_unanswerable_rows_are_told_so_with_their_passage_in_sight(
    tiny_model: GritModel, recipe: Recipe, tmp_path: Path, write: Write
) -> None:
    rows = [
        {"question": f"Who is {n}?", "passage": f"House {n} is red.", "answers": [], "unanswerable": True}
        for n in range(4)
    ]
    rows += [
        {"question": f"What colour is {n}?", "passage": f"House {n} is red.", "answers": ["red"]} for n in range(4)
    ]
    source = {"path": str(write(tmp_path / "rows.jsonl", rows))}
    config = recipe(data={"sources": [source], "chat": [], "tokens_per_step": 2000}, generative=ONLY_QUESTIONS)
    told = set()
    for step, answer in answers_of(Mixture(config, tiny_model)):
        question, said = text(tiny_model, answer.question_ids), text(tiny_model, answer.answer_ids)
        (number,) = [n for n in range(4) if str(n) in question]
        assert any(f"House {number}" in text(tiny_model, step.documents[row].ids) for row in answer.context)
        assert (said == config.generative.not_found) == ("Who" in question)
        assert not any("Who" in text(tiny_model, query.ids) for query in step.queries)
        told.add(said)
    assert told == {config.generative.not_found, "red"}


def test_two_questions_are_asked_as_one_and_both_documents_are_there(tiny_model: GritModel, recipe: Recipe) -> None:
    config = recipe(
        generative={**ONLY_QUESTIONS, "p_two_documents": 0.5, "documents_per_context": [1, 4], "p_relevance_bias": 0.5},
        data={"tokens_per_step": 400},
    )
    joined = 0
    answers = answers_of(Mixture(config, tiny_model))
    for step, answer in answers:
        question, said = text(tiny_model, answer.question_ids), text(tiny_model, answer.answer_ids)
        if "? And " not in question:
            continue
        joined += 1
        first, second = said.split(" and ")
        documents = [text(tiny_model, step.documents[row].ids) for row in answer.context]
        holding = [[row for row, d in enumerate(documents) if part in d] for part in (first, second)]
        assert all(holding)
        assert holding[0] != holding[1]
        if answer.biases:
            assert max(answer.biases) == pytest.approx(0, abs=4)  # neither is pushed out of sight
    assert 0.3 < joined / len(answers) < 0.6


def test_scores_that_chance_draws_put_every_needed_document_high() -> None:
    rng, least = random.Random(0), []
    for _ in range(300):
        biases = _biases(5, [1, 3], rng)
        assert len(biases) == 5
        assert all(-8 <= bias <= 0 for bias in biases)
        least.append(min(biases[1], biases[3]) >= max(biases[0], biases[2], biases[4]) - 4)
    assert sum(least) / len(least) > 0.9
