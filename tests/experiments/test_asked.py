"""Which questions are asked: one by one, and in pairs that need two documents or one."""

import json
from pathlib import Path

import pytest
from places import PLACES

from experiments.asked import KINDS, ONE, SAME, TWO, documents_of, questions_by_kind, questions_of


def test_neighbours_of_a_half_are_asked_together(rows: Path) -> None:
    asked = questions_of(rows, "odd", single=2, pairs=2)
    assert [question.id for question in asked] == ["1+3", "1", "3+5", "3"]
    assert asked[0].text == f"How many owls has {PLACES[1]}? And How many owls has {PLACES[3]}?"
    assert asked[0].answers == ("1 owls and 3 owls", "1 owls and 3", "1 and 3 owls", "1 and 3")
    assert [document.text.split(" has")[0] for document in asked[0].gold] == [PLACES[1], PLACES[3]]
    with pytest.raises(ValueError, match="half must be one of"):
        questions_of(rows, "upper", 1, 1)


def test_kinds_come_in_turn_and_a_pair_on_one_passage_needs_no_second(tmp_path: Path) -> None:
    path = tmp_path / "two_each.jsonl"
    made = [
        {"question": f"How many {what} has {place}?", "passage": f"{place} has {n} owls and hens.", "answers": [f"{n}"]}
        for n, place in enumerate(PLACES[:3])
        for what in ("owls", "hens")
    ]
    path.write_text("\n".join(map(json.dumps, made)))
    found = questions_by_kind(path, single=2, pairs=2)
    assert [kind for kind, _ in found] == [TWO, SAME, ONE, SAME, TWO, ONE]
    assert [len(question.gold) for _, question in found] == [2, 1, 1, 1, 2, 1]
    asked = {kind: next(question for own, question in found if own == kind) for kind in KINDS}
    assert asked[TWO].text == f"How many hens has {PLACES[0]}? And How many owls has {PLACES[1]}?"
    assert asked[SAME].text == f"How many owls has {PLACES[0]}? And How many hens has {PLACES[0]}?"


def test_what_is_needed_is_searched_though_it_is_more_than_was_asked_for(rows: Path) -> None:
    asked = questions_of(rows, "all", single=0, pairs=1)
    assert {document.id for document in documents_of(rows, asked, 1)} == {each.id for each in asked[0].gold}
    more = documents_of(rows, asked, 4)
    assert len({document.id for document in more}) == len(more) == 4
