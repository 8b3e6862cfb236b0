"""`gritrag eval questions FILE --index FOLDER`: questions without passages, and an index that is only read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gritrag.cli import app
from gritrag.evaluate.existing import evaluate, holds_answer, search
from gritrag.evaluate.quality import Setting
from gritrag.evaluate.question_rows import Question
from gritrag.index.index import Index
from gritrag.model.grit import GritModel
from gritrag.records import Document, as_hits

DOCUMENTS = ["The ferry sails at noon.", "The mill has two wheels.", "Boats lie at the landing stage."]
ROWS = [
    {"question": "When does the ferry sail?", "answer": "noon"},
    {"question": "How many wheels has the mill?", "answers": ["two", "2"]},
    {"question": "Who owns the mill?", "answers": [], "unanswerable": True},
    {"question": "Why?"},
]


@pytest.fixture
def folder(tiny_model: GritModel, tmp_path: Path) -> Path:
    """An index whose model is a folder."""
    tiny_model.lm.save_pretrained(tmp_path / "model")
    tiny_model.tokenizer.save_pretrained(tmp_path / "model")
    model = GritModel.from_pretrained(tmp_path / "model", dtype="float32")
    with Index.create(tmp_path / "index", model=model, states="float32") as index:
        index.add([Document(text, id=text[:9]) for text in DOCUMENTS])
    return tmp_path / "index"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), "utf-8")
    return path


def test_questions_are_asked_of_an_index_that_is_there(folder: Path, file: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "sqlite" not in path.name}
    out, lines = tmp_path / "report.json", tmp_path / "answers.jsonl"
    words = ["eval", str(file), "--index", str(folder), "-k", "2", "--max-new-tokens", "3", "--dtype", "float32"]
    run = CliRunner().invoke(app, [*words, "--out", str(out), "--answers", str(lines)])
    assert run.exit_code == 0, run.output
    assert "a right answer is found" in run.output
    rows = json.loads(out.read_text("utf-8"))["rows"]
    by_way = {(row["cell"]["part"], row["cell"]["way"]): row for row in rows}
    assert by_way["found", "sparse"]["found"] == [1.0, 1.0]  # of the two that have answers
    assert {way for part, way in by_way if part == "answers"} == {
        "no-retrieval",
        "doc-query, retrieved",
        "doc-cache, retrieved",
        "best document, retrieved",
    }
    assert len(by_way["answers", "doc-cache, retrieved"]["F1"]) == 3  # the last row says nothing of answers
    told = [json.loads(line) for line in lines.read_text("utf-8").splitlines()]
    assert [each["document"] for each in told] == [None] * 3
    assert {path: path.read_bytes() for path in before} == before


def test_a_right_answer_is_found_or_not() -> None:
    question = Question("1", "When?", ("at Noon",))
    assert holds_answer(as_hits([Document("no"), Document("It sails at noon.")]), question) == 1
    assert holds_answer(as_hits([Document("at noontide")]), question) == 0


def test_a_model_without_states_answers_from_text(make_model: Callable[..., GritModel], tmp_path: Path) -> None:
    with Index.create(tmp_path / "index", model=make_model("mamba"), states="none") as index:
        index.add([Document(text) for text in DOCUMENTS])
        setting = Setting(questions=1, k=2, max_new_tokens=2)
        rows = evaluate(index, "mamba", search(index, [Question("1", "When?", ("noon",))], setting), setting)
    ways = [cell["way"] for cell, _ in rows if cell["part"] == "answers"]
    assert ways == ["no-retrieval", "doc-query, retrieved", "best document, retrieved"]


def test_what_cannot_be_asked_is_told(folder: Path, file: Path, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        run = CliRunner().invoke(app, ["eval", *words])
        assert run.exit_code == 2
        return run.output

    assert "--compare reads the passages" in refused(str(file), "--index", str(folder), "--compare", "smollm2-135m")
    assert "lacks the key 'passage'" in refused(str(file))
    bare = tmp_path / "bare.csv"
    bare.write_text("question\nWhen?\n", "utf-8")
    assert "no question of" in refused(str(bare), "--index", str(folder))
    assert "no index" in refused(str(file), "--index", str(tmp_path / "nowhere"))


def test_help_shows_a_row() -> None:
    shown = CliRunner().invoke(app, ["eval", "questions", "--help"]).output
    assert '"question": "When does the ferry sail?"' in shown
    assert '"answers": ["noon"]' in shown
