"""Questions that need two documents, made of those that need one."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.question_pairs import main
from experiments.script import application
from gritrag.evaluate.quality import SEVERAL, kind_of
from gritrag.evaluate.rows import read_questions

ROWS = [
    {"id": "a", "question": "Who owns it?", "passage": "Ann owns it.", "answers": ["Ann", "Ann Lee"], "title": "It"},
    {"id": "b", "question": "NASA was founded when?", "passage": "In 1958.", "answers": ["1958"]},
    {"id": "long", "question": "Why?", "passage": "So.", "answers": ["because it is so and not otherwise"]},
    {"id": "c", "question": "How?", "passage": "By boat.", "answers": ["by boat"]},
    {"id": "d", "question": "Where To?", "passage": "To Osk.", "answers": ["Osk", "to the far port of Osk by noon"]},
    {"id": "e", "question": "One?", "passage": "The same.", "answers": ["1"]},
    {"id": "f", "question": "Two?", "passage": "The same.", "answers": ["2"]},
]


def made(tmp_path: Path, rows: list[dict[str, object]]) -> Path:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    run = CliRunner().invoke(application(main), [str(path), str(out)])
    if run.exit_code:
        raise ValueError(run.output)
    return out


def test_each_question_is_asked_once_with_its_neighbour(tmp_path: Path) -> None:
    first, second = read_questions(made(tmp_path, ROWS))
    assert first.text == "Who owns it? And NASA was founded when?"
    assert first.answers == ("Ann and 1958", "Ann Lee and 1958")
    assert [document.text for document in first.gold] == ["Ann owns it.", "In 1958."]
    assert first.document.title == "It"
    assert second.text == "How? And where To?"
    assert second.answers == ("by boat and Osk",), "long answers are left out"
    assert [kind_of(first), kind_of(second)] == [SEVERAL] * 2


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no two neighbouring questions"):
        made(tmp_path, ROWS[:1])
