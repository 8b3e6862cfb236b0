"""The experiment on questions that need several documents: what is kept, and that a stopped run goes on."""

import json
from pathlib import Path

import pytest
from places import PLACES
from repository import TINY
from typer.testing import CliRunner

from experiments.script import application
from experiments.several_documents import ALONE, F1, FOUND, TEXT, Way, command, table


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


def test_rows_are_kept_and_a_run_goes_on_with_further_ways(questions: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    asked(questions, rows, "--way", "0.6:0", "--stop-after", "1")
    assert [json.loads(line)["way"] for line in rows.read_text().splitlines()] == [TEXT, ALONE, "0.6:0"]
    told = asked(questions, rows, "--way", "0.6:0", "--way", "0.1:0")
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["way"] for row in kept[3:]] == ["0.1:0", *[TEXT, ALONE, "0.6:0", "0.1:0"] * 3]
    assert [row["pairs"] for row in kept if row["way"] == ALONE] == [True, False, True, False]
    assert all(row["complements"] == 0 for row in kept if row["way"] in (TEXT, ALONE))
    assert "Pairs of questions: 2" in told
    assert "% of text" in told
    assert "Questions one by one: 2" in told
    assert asked(questions, rows, "--way", "0.6:0", "--way", "0.1:0") == told
    assert len(rows.read_text().splitlines()) == len(kept)


def test_log_probabilities_are_kept_by_candidate(questions: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    assert "F1" not in asked(questions, rows, "--no-answers", "--way", "0.6:0")
    (row, *_) = (row for row in map(json.loads, rows.read_text().splitlines()) if row["way"] == ALONE)
    assert len(row["log p"]) == len(row["search"]) == len(row["needed"]) == 6
    assert sum(row["needed"]) == 2
    assert row["search"] == sorted(row["search"], reverse=True)
    assert all(log_p < 0 for log_p in row["log p"][0])


def test_differences_are_paired_and_in_points() -> None:
    rows = [
        {"way": way, "id": str(number), "complements": way == "0.6:0", FOUND: 1.0, F1: f1 + 0.25 * (way == "0.6:0")}
        for number, f1 in enumerate((0.25, 0.5, 0.25, 0.5))
        for way in (TEXT, ALONE, "0.6:0")
    ]
    (line,) = (line for line in table(rows, [TEXT, ALONE, "0.6:0"], 0).splitlines() if "0.6:0" in line)
    assert line.split("|")[2].strip() == "4"
    assert "+25.0 [+25.0, +25.0]" in line


@pytest.mark.parametrize("way", ["0.6", "a:b", "0:0", "0.6:-1", "nan:0"])
def test_a_way_that_there_is_not_is_refused(way: str) -> None:
    with pytest.raises(ValueError, match=r"0\.6:0|above 0"):
        Way.of(way)
