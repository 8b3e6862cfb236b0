"""The experiment on questions that need several documents: what is kept, and that a stopped run goes on."""

import json
from pathlib import Path

import pytest
from places import PLACES
from typer.testing import CliRunner

from experiments.script import application
from experiments.several_documents import ALONE, ENOUGH, FOUND, TOGETHER, command, table

TINY = str(Path(__file__).parents[2] / "configs" / "tiny" / "model")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "owls.jsonl"
    made = [
        {"question": f"How many owls has {p}?", "passage": f"{p} has {n} owls.", "answers": [f"{n} owls"]}
        for n, p in enumerate(PLACES[:6])
    ]
    path.write_text("\n".join(map(json.dumps, made)))
    return path


def asked(questions: Path, rows: Path, *more: str) -> str:
    given = [
        str(questions),
        "--rows",
        str(rows),
        "--model",
        TINY,
        "--dtype",
        "float32",
        "--questions",
        "2",
        "--pairs",
        "2",
    ]
    done = CliRunner().invoke(application(command), [*given, *more])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_rows_are_kept_and_a_run_goes_on(questions: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    asked(questions, rows, "--stop-after", "1")
    assert len(rows.read_text().splitlines()) == 1
    told = asked(questions, rows)
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["pairs"] for row in kept] == [True, False, True, False]
    assert all(
        row[f"{ENOUGH}, {name}"] <= 1 and f"F1, states, {name}" in row for row in kept for name in (ALONE, TOGETHER)
    )
    assert "Pairs of questions: 2" in told
    assert "F1, states, % of text: alone" in told
    assert "Questions one by one: 2" in told
    assert asked(questions, rows) == told
    assert len(rows.read_text().splitlines()) == len(kept)


def test_without_answers_there_is_no_f1(questions: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    assert "F1" not in asked(questions, rows, "--no-answers")


def test_differences_are_paired_and_in_points() -> None:
    rows = [{f"{FOUND}, {ALONE}": a, f"{FOUND}, {TOGETHER}": a + 0.5} for a in (0.0, 0.5, 0.0, 0.5)]
    assert "+50.0 [+50.0, +50.0]" in table(rows, 0)
