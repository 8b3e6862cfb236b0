"""The dial's experiment: which questions are asked, with which bias, and what is kept."""

import json
from pathlib import Path

import pytest
from repository import TINY
from typer.testing import CliRunner

from experiments.dial import Way, command, in_a_row
from experiments.script import application
from gritrag.model.context import Context, Part
from gritrag.model.grit import GritModel


def test_a_way_is_a_share_and_a_bias() -> None:
    assert str(Way.of("0.20:2.0")) == "0.2:2"
    for wrong in ("0.2", "2:1", "0.2:-1", "a:b"):
        with pytest.raises(ValueError, match=r"SHARE:BIAS|recompute|relevance_bias"):
            Way.of(wrong)


def test_documents_in_a_row_have_so_many_times_their_bias(tiny_model: GritModel) -> None:
    states = [reading.state for reading in tiny_model.read_documents(["an owl", "a bridge"])]
    context = Context((*(Part(state, -0.5, shares_positions=True) for state in states), Part((1, 2))))
    found = in_a_row(context, 4.0)
    assert [(placed.relevance_bias, placed.unbiased) for placed in found.states] == [(-2.0, 4), (-2.0, 0)]
    assert found.states[1].position == len(states[0])


def test_rows_are_kept_and_further_ways_join_them(rows: Path, tmp_path: Path) -> None:
    kept, given = tmp_path / "kept.jsonl", ["--model", TINY, "--dtype", "float32", "--questions", "1", "--pairs", "1"]
    for ways, lines in ((["--way", "0.2:1"], 6), (["--way", "0.2:1", "--way", "1:0"], 8)):
        done = CliRunner().invoke(application(command), [str(rows), "--rows", str(kept), *given, *ways])
        assert done.exit_code == 0, done.output
        found = [json.loads(line) for line in kept.read_text().splitlines()]
        assert len(found) == lines
    of = {(row["id"], row["way"]): row["log p"] for row in found}
    for id in {row["id"] for row in found}:
        assert of[id, "1:0"] == pytest.approx(of[id, "text"], abs=1e-4), "all of it read again is text"
        assert of[id, "0.2:1"] != pytest.approx(of[id, "text"], abs=1e-6)
    assert "Pairs of questions: 1" in done.output
