"""Rows of the usual data sets, in the usual files, are the same questions."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from gritrag.evaluate.question_rows import EXAMPLE, Question, question_of
from gritrag.evaluate.row_files import numbered_rows
from gritrag.evaluate.rows import keys_of, read_labelled, read_questions
from gritrag.records import Document

NOON = Document("The ferry sails at noon.", title="Ferry")
WHEN = Question("7", "When?", ("noon",), NOON)
OURS = {"id": "7", "question": "When?", "passage": NOON.text, "title": "Ferry", "answers": ["noon"]}
SQUAD = {
    "id": "7",
    "title": "Ferry",
    "context": NOON.text,
    "question": "When?",
    "answers": {"text": ["noon", "noon"], "answer_start": [19, 19]},
}


def test_the_example_is_a_row() -> None:
    assert question_of(json.loads(EXAMPLE), "1").answers == ("noon",)


@pytest.mark.parametrize(
    "row",
    [
        OURS,
        SQUAD,
        {**SQUAD, "answers": [{"text": "noon", "answer_start": 19}]},
        {**OURS, "answers": "noon"},
        {**OURS, "answers": None, "answer": "noon"},
        {**OURS, "answers": None, "answer": ["noon"]},
        {**OURS, "answers": {"text": "noon"}},
        {**OURS, "answers": None, "answer": {"value": "noon", "aliases": ["noon"]}},
        {"qid": 7, "query": "When?", "passages": [{"text": NOON.text, "title": "Ferry"}], "answer": "noon"},
        {"_id": "7", "query": "When?", "pos": [{"text": NOON.text, "title": "Ferry"}], "answers": ["noon"]},
    ],
)
def test_one_question_in_many_shapes(row: dict[str, Any]) -> None:
    assert question_of(row, "1") == WHEN


def test_of_pos_the_first_answers_and_of_neg_none_does() -> None:
    row = {"query": "When?", "pos": ["right", "right too"], "neg": ["wrong", "right"]}
    assert question_of(row, "1") == Question("1", "When?", (), Document("right"), (Document("wrong"),))
    told = {"query": ["find it", "When?"], "pos": [["", "right"]], "neg": [["", "wrong"]]}
    with pytest.raises(ValueError, match="question must be a text"):
        question_of(told, "1")
    found = question_of({**told, "query": "When?"}, "1")
    assert (found.document, found.others) == (Document("right"), (Document("wrong"),))


def test_passages_of_ms_marco_say_which_one_answers() -> None:
    columns = {"passage_text": ["a", "b", "c"], "is_selected": [0, 1, 0], "url": ["u", "v", "w"]}
    found = question_of({"query": "Which?", "passages": columns, "answers": ["b"]}, "1")
    assert (found.document.text, [each.text for each in found.others]) == ("b", ["a", "c"])
    listed = [{"passage_text": text, "is_selected": int(text == "c")} for text in "abc"]
    assert question_of({"query": "Which?", "passages": listed, "answers": []}, "1").document.text == "c"


@pytest.mark.parametrize("is_listed", [True, False])
def test_ms_marco_marks_several_passages_that_answer_or_none(is_listed: bool) -> None:
    def row(marks: list[int], *answers: str) -> dict[str, Any]:
        columns: Any = {"passage_text": list("abc"), "is_selected": marks}
        if is_listed:
            columns = [{"passage_text": text, "is_selected": mark} for text, mark in zip("abc", marks, strict=True)]
        return {"query": "Which?", "passages": columns, "answers": list(answers)}

    two = question_of(row([0, 1, 1], "b"), "1")
    assert (two.document.text, two.needed, [each.text for each in two.others]) == ("b", (), ["a"])
    none = question_of(row([0, 0, 0], "No Answer Present."), "1")
    assert (none.is_unanswerable, none.answers) == (True, ())
    with pytest.raises(ValueError, match="is_selected marks none"):
        question_of(row([0, 0, 0], "b"), "1")
    assert question_of(row([0, 0, 0], "b") | {"gold": 2}, "1").document.text == "c"


def test_a_passage_that_stands_twice_in_a_row_is_one() -> None:
    row = {"question": "Which?", "documents": ["a", "b", "a", "b"], "answers": []}
    once = question_of(row, "1")
    assert ([each.text for each in once.gold], [each.text for each in once.others]) == (["a"], ["b"])
    assert question_of({**row, "gold": [0, 2]}, "1").needed == ()


@pytest.mark.parametrize(
    "row",
    [
        {**SQUAD, "answers": {"text": [], "answer_start": []}},
        {**SQUAD, "answers": [], "is_impossible": True},
        {**SQUAD, "answers": [], "unanswerable": True},
    ],
)
def test_squad_says_in_its_own_way_that_a_passage_does_not_answer(row: dict[str, Any]) -> None:
    assert question_of(row, "1") == WHEN._replace(answers=(), is_unanswerable=True)


def test_a_question_without_a_passage_is_for_an_index_that_is_there() -> None:
    row = {"question": "When?", "answer": "noon"}
    with pytest.raises(ValueError, match=r"lacks the key 'passage'.*--index"):
        question_of(row, "1")
    found = question_of(row, "1", needs_passage=False)
    assert (found.passage, found.gold) == (None, ())


# --- files ------------------------------------------------------------------------------------------------------------


def as_csv(path: Path, rows: list[dict[str, Any]], delimiter: str, told: Any) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as out:  # as Excel writes it
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows({key: told(value) for key, value in row.items()} for row in rows)


def plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def printed(value: Any) -> Any:
    return str(value) if isinstance(value, list | dict) else value


@pytest.mark.parametrize("row", [OURS, SQUAD], ids=["ours", "squad"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "json lines", "csv", "csv;", "csv printed", "tsv", "parquet"])
def test_every_kind_of_file_holds_the_same_questions(kind: str, row: dict[str, Any], tmp_path: Path) -> None:
    rows = [row, {**row, "id": "8", "question": "When,\nthen?"}]
    path = tmp_path / f"rows.{kind.split(' ')[0].rstrip(';')}"
    if kind == "json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    elif kind in ("jsonl", "json lines"):
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        as_csv(path, rows, {"csv;": ";", "tsv": "\t"}.get(kind, ","), printed if "printed" in kind else plain)
    assert read_questions(path) == [WHEN, WHEN._replace(id="8", text="When,\nthen?")]


def test_squads_own_file(tmp_path: Path) -> None:
    asked = {"id": "7", "question": "When?", "answers": [{"text": "noon", "answer_start": 19}]}
    never = {"id": "8", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": []}
    article = {"title": "Ferry", "paragraphs": [{"context": NOON.text, "qas": [asked, never]}]}
    path = tmp_path / "dev-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [article]}), "utf-8")
    assert read_questions(path) == [WHEN, Question("8", "Why?", (), NOON, is_unanswerable=True)]


def test_truth_values_are_answers_too(tmp_path: Path) -> None:
    """A cell is a flag in the columns of flags alone; braces that hold no object are text."""
    path = tmp_path / "rows.csv"
    path.write_text('question,answer,is_impossible,passage\nq1,True,False,p\nq2,"{1, 2}",,p\nq3,,true,p\n', "utf-8")
    rows = [(question.answers, question.is_unanswerable) for question in read_questions(path)]
    assert rows == [(("True",), False), (("{1, 2}",), False), ((), True)]


def test_cells_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question,answer,unanswerable,passage\nq1,"[see note 1]",false,p\nq2,,TRUE,p\n', "utf-8")
    first, second = read_questions(path)
    assert first.answers == ("[see note 1]",)  # no list, whatever it begins with
    assert second.is_unanswerable


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.json", "[1, 2", "rows.json: Expecting"),
        ("rows.json", '{"data": 3}', "holds no list of rows"),
        ("rows.csv", "question,passage\nq,p,x\n", "line 2: broken row: more cells than the header has"),
        ("rows.csv", 'question,passage\nq,"p\n', "broken row: unexpected end of data"),
        ("rows.parquet", "no such thing", "is no Parquet file that can be read"),
        ("rows.json", '[{"question": "q"}]', "row 1: broken row: it lacks the key 'passage'"),
        ("rows.csv", "question,passage\n", "holds no rows; a row looks like"),
    ],
)
def test_a_broken_file_is_named(name: str, content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ValueError, match=told):
        read_questions(tmp_path / name)


def test_labels_are_read_from_these_files_too(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("text,label\nice cold,weather\nrice,food\n", "utf-8")
    assert keys_of(path) == {"text", "label"}
    assert [row.label for row in read_labelled(path)] == ["weather", "food"]
    assert [each.place for each in numbered_rows(path)] == ["line 2", "line 3"]
