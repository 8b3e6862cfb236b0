"""The experiments on lifting: what is kept, that a stopped run goes on, and how heads are compared."""

import json
from pathlib import Path

import numpy as np
import pytest
from places import PLACES
from repository import TINY
from typer.testing import CliRunner

from experiments import lifting, retrieval_heads
from experiments.asked import KINDS, ONE, TWO
from experiments.retrieval_heads import Gains
from experiments.script import application
from gritrag import GritModel
from gritrag.model.retrieval_heads import RetrievalHeads


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Two questions on each passage."""
    path = tmp_path / "owls.jsonl"
    made = []
    for n, place in enumerate(PLACES[:4]):
        passage = f"{place} has {n} owls and {n + 3} hens."
        made.append({"question": f"How many owls has {place}?", "passage": passage, "answers": [f"{n} owls"]})
        made.append({"question": f"How many hens has {place}?", "passage": passage, "answers": [f"{n + 3} hens"]})
    path.write_text("\n".join(map(json.dumps, made)))
    return path


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The tiny model with heads, which it lacks."""
    source = GritModel.from_pretrained(TINY, dtype="float32")
    heads = RetrievalHeads(((0, 0),), 1.0)
    GritModel(source.lm, source.tokenizer, source.config, retrieval_heads=heads).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_answers_are_kept_and_a_run_goes_on(questions: Path, model: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    given = [str(questions), "--rows", str(rows), "--model", model, "--dtype", "float32"]
    given += ["--questions", "2", "--pairs", "2", "--gain", "1e-9", "--gain", "1000"]

    def asked(*more: str) -> str:
        done = CliRunner().invoke(application(lifting.command), [*given, *more])
        assert done.exit_code == 0, done.output
        return done.stdout

    asked("--stop-after", "1")
    told = asked()
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["way"] for row in kept] == ["text", "states", "1e-09", "1000"] * 6
    assert [sum(row["kind"] == kind for row in kept) for kind in KINDS] == [8, 8, 8]
    assert all(row["lifted"] == 0 for row in kept if row["way"] != "1e-09")
    assert "owls, pairs of one document: 2" in told
    assert "all files" not in told
    assert asked() == told


def test_files_are_shown_together_though_their_questions_have_one_id(
    questions: Path, model: str, tmp_path: Path
) -> None:
    other = tmp_path / "hens.jsonl"
    other.write_text(questions.read_text())
    given = [str(questions), str(other), "--rows", str(tmp_path / "rows.jsonl"), "--model", model, "--dtype", "float32"]
    done = CliRunner().invoke(
        application(lifting.command), [*given, "--questions", "2", "--pairs", "2", "--gain", "1000"]
    )
    assert done.exit_code == 0, done.output
    for name, number in {"owls": 2, "hens": 2, "all files": 4}.items():
        for kind in ("pairs of two documents", "questions one by one", "pairs of one document"):
            assert f"{name}, {kind}: {number}" in done.stdout


def test_a_model_without_heads_is_refused(questions: Path, tmp_path: Path) -> None:
    given = [str(questions), "--rows", str(tmp_path / "rows"), "--model", TINY, "--gain", "1"]
    done = CliRunner().invoke(application(lifting.command), given)
    assert done.exit_code
    assert "no retrieval heads" in done.output


def test_heads_are_shown_with_how_well_they_tell_kinds_apart(questions: Path) -> None:
    given = [str(questions), "--model", TINY, "--dtype", "float32", "--questions", "2", "--pairs", "2", "--most", "3"]
    done = CliRunner().invoke(application(retrieval_heads.command), given)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("| layer ") == 3
    assert "log-probabilities" in done.stdout
    assert "against: pairs of one document" in done.stdout


def test_heads_that_tell_kinds_apart_come_first() -> None:
    found = {TWO: [Gains(np.array([3.0, 1.0]), 1.0)], ONE: [Gains(np.array([1.0, 3.0]), 1.0)]}
    first, second, third = retrieval_heads.table(found, [(0, 0), (0, 1)], 5).splitlines()[-3:]
    assert ("head 0" in first, "100.0" in first, "head 1" in second, " 0.0" in second, "50.0" in third) == (True,) * 5
