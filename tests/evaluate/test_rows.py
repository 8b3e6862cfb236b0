"""A file of questions: what it says, what is chosen from it, and what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from pythons import TOO_DEEP

from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.rows import choose, evenly, read_questions
from gritrag.records import Document

ROW = {"question": "When?", "passage": "At noon.", "answers": ["noon"]}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def test_both_kinds_of_rows(tmp_path: Path) -> None:
    rag = {"question": "Who?", "documents": ["Ann did.", {"text": "Bob slept.", "title": "Bob"}], "answers": []}
    path = write(tmp_path / "q.jsonl", {**ROW, "id": "q1", "title": "Ferry"}, "", rag)
    first, second = read_questions(path)
    assert first == Question("q1", "When?", ("noon",), Document("At noon.", title="Ferry"))
    assert second == Question("3", "Who?", (), Document("Ann did."), (Document("Bob slept.", title="Bob"),))


def test_gold_names_the_documents_that_are_needed_and_some_questions_have_no_answer(tmp_path: Path) -> None:
    several = {"question": "Who and when?", "documents": ["a", "b", "c", "d"], "answers": ["x"], "gold": [2, 0]}
    one = {**several, "gold": 3}
    none = {"question": "Why?", "passage": "At noon.", "answers": [], "unanswerable": True}
    first, second, third = read_questions(write(tmp_path / "q.jsonl", several, one, none))
    assert [document.text for document in first.gold] == ["c", "a"]
    assert [document.text for document in first.others] == ["b", "d"]
    assert [document.text for document in second.gold] == ["d"]
    assert third.is_unanswerable
    assert not first.is_unanswerable
    few = choose([first], 1)
    assert {document.text for document in few.documents} == {"c", "a"}, "what is needed comes with its question"


def test_one_passage_of_several_rows_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", ROW, {**ROW, "question": "At what time?"}, {**ROW, "title": "Another"})
    chosen = choose(read_questions(path), 10)
    assert len(chosen.questions) == 3
    assert [document.title for document in chosen.documents] == ["", "Another"]


@pytest.mark.parametrize("count", [1, 2, 7, 19, 20, 50])
def test_what_is_chosen_holds_the_document_of_every_question_and_no_more_than_asked(count: int) -> None:
    rows = [
        Question(str(n), "q", (), Document(f"right {n // 2}"), (Document(f"wrong {n}"), Document("shared")))
        for n in range(20)
    ]
    chosen = choose(rows, count)
    ids = [document.id for document in chosen.documents]
    assert 1 <= len(ids) == len(set(ids)) <= count
    assert chosen.questions
    assert all(question.document.id in ids for question in chosen.questions)
    assert len(chosen.questions) == sum(row.document.id in ids for row in rows)


def test_a_choice_is_spread_over_the_file() -> None:
    rows = [Question(str(n), "q", (), Document(str(n))) for n in range(100)]
    assert [document.text for document in choose(rows, 4).documents] == ["0", "25", "50", "75"]
    assert evenly([1, 2], 5) == [1, 2]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "Expecting property name"),
        ("[]", "an object, not list"),
        ({"passage": "p", "answers": []}, "lacks the key 'question'"),
        ({"question": "q", "answers": []}, "lacks the key 'passage'"),
        ({**ROW, "answers": [3]}, "an answer must be a text"),
        ({**ROW, "answers": {"spans": []}}, "need its key 'text'"),
        ({"question": "q", "pos": []}, "pos is empty"),
        ({"question": "q", "passages": "p"}, "passages must be a list, not str"),
        ({**ROW, "answers": [""]}, "an answer must be a text"),
        ({**ROW, "passage": " "}, "a passage must be a text"),
        ({**ROW, "question": 3}, "question must be a text"),
        ({**ROW, "title": 3}, "title must be a text"),
        ({"question": "q", "documents": [], "answers": []}, "documents is empty"),
        ({"question": "q", "documents": [{"title": "t"}], "answers": []}, "lacks the key 'text'"),
        (
            {"question": "q", "documents": ["d"], "answers": [], "gold": [1]},
            "gold must hold numbers of documents from 0 to 0",
        ),
        ({"question": "q", "documents": ["d"], "answers": [], "gold": []}, "gold must hold numbers"),
        ({**ROW, "unanswerable": "yes"}, "unanswerable must be true or false"),
        ({**ROW, "unanswerable": True}, "it is unanswerable, but has answers"),
        ('{"question": "\\ud800", "passage": "p", "answers": []}', "surrogates not allowed"),
        ("[" * 100_000, TOO_DEEP),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(row: Any, told: str, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", ROW, row)
    with pytest.raises(ValueError, match=rf"q\.jsonl, line 2: broken row: .*{told}"):
        read_questions(path)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*none\.jsonl: No such file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no rows"):
        read_questions(write(tmp_path / "empty.jsonl", "", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(ValueError, match="no UTF-8 text"):
        read_questions(tmp_path / "latin.jsonl")


def test_of_each_document_so_many_questions_are_chosen_spread_over_all_it_has(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "passage": f"passage {n % 3}", "answers": []} for n in range(15)]
    questions = read_questions(write(tmp_path / "rows.jsonl", *rows))
    assert choose(questions, 2).questions == [q for n, q in enumerate(questions) if n % 3 < 2]
    few = choose(questions, 2, questions_per_document=2)
    assert [q.text for q in few.questions] == ["0?", "1?", "6?", "7?"]
    assert few.documents == choose(questions, 2).documents
