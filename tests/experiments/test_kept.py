"""Rows of experiments: what is kept in a file, and what is compared of it."""

from pathlib import Path

from experiments.kept import Kept, Paired, lacking


def test_rows_come_back_from_their_file_with_what_is_true_of_all(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "rows.jsonl")
    kept.add([{"way": "text", "F1": 0.5}, {"way": "states", "F1": 1.0}], id="1", file="nq")
    kept.add([{"way": "text", "F1": 0.0}], id="2", file="nq")
    again = Kept(kept.path)
    assert again.rows == kept.rows
    assert [row["F1"] for row in again.of(way="text", file="nq")] == [0.5, 0.0]
    assert lacking(again.of(id="2"), ["text", "states"]) == ["states"]


def test_only_questions_that_have_all_ways_are_compared() -> None:
    rows = [{"way": way, "id": id, "F1": f1} for id, way, f1 in (("1", "a", 0.5), ("2", "a", 0.25), ("2", "b", 0.5))]
    paired = Paired.of([*rows, {"way": "other", "id": "1", "F1": 9.0}], ["a", "b"])
    assert paired.questions == 1
    assert [(way, [row["id"] for row in own]) for way, own in paired.each()] == [("a", ["2"]), ("b", ["2"])]
    assert paired.shares("b", "F1", "a", 0) == ["50.0 [50.0, 50.0]", "200.0 [200.0, 200.0]"]
    assert paired.change("b", "F1", "a", 0) == "+25.0 [+25.0, +25.0]"
    assert paired.change("b", "F1", "a", 0, "+.2f", 1) == "+0.25 [+0.25, +0.25]"


def test_nothing_is_compared_where_no_question_has_all_ways() -> None:
    assert list(Paired.of([{"way": "a", "id": "1", "F1": 1.0}], ["a", "b"]).each()) == []
