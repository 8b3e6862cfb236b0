"""How an index grows, with three hundred vectors in place of a million: the table is whole, and recall is counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.scale import command, recall
from experiments.scale_sample import Sample
from experiments.script import application


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a sample of random vectors in it."""
    folder = tmp_path_factory.mktemp("scale")
    vectors = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = [f"word{n}" for n in range(20)]
    Sample(vectors[:50], vectors[50:], words, np.full(20, 0.05)).save(folder / "sample.npz")
    return folder


def run(folder: Path, *options: str) -> str:
    words = ["--sizes", "300", "--folder", str(folder), "--questions", "10", *options]
    done = CliRunner().invoke(application(command), words)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_one_command_fills_builds_and_measures_every_engine(folder: Path) -> None:
    rows = json.loads(run(folder, "--engines", "flat,hnsw", "--json"))
    assert [(row["passages"], row["engine"], row["build"]["engine"]) for row in rows] == [
        (300, "flat", "flat"),
        (300, "hnsw", "hnsw"),
    ]
    for row in rows:
        assert row["recall"] == pytest.approx(1.0, abs=0.1)
        assert row["filtered_recall"] == 1.0, "so few are compared exactly"
        assert 0 < row["p50"] <= row["p95"]
        assert row["open_seconds"] > 0
    assert rows[0]["recall"] == 1.0
    table = run(folder, "--engines", "flat").splitlines()
    assert [line.split(" | ")[:2] for line in table[2:]] == [["| 300", "flat"]]
    assert len({line.count("|") for line in table}) == 1


def test_recall_is_the_part_of_the_nearest_that_was_found() -> None:
    vectors = np.eye(20, dtype=np.float32) * np.arange(20, 0, -1, dtype=np.float32)[:, None]
    queries = np.ones((1, 20), np.float32)
    found = [[f"d{n}" for n in (*range(7), 15, 16, 17)]]
    assert recall(found, queries, vectors, np.arange(20)) == pytest.approx(0.7)
