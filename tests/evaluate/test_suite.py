"""Suites: what a run keeps, its file of JSON, and the same report of it everywhere."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import TINY
from typer.testing import CliRunner

from gritrag.cli import app
from gritrag.evaluate import machine
from gritrag.evaluate.first_token import COMMAND, Setting, main
from gritrag.evaluate.statistics import Interval, Spread, as_json, from_json
from gritrag.evaluate.suite import FILE, REPORTS, Result, Results, read_rows, run
from gritrag.evaluate.workload import Subject

NUMBER = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.fixture(scope="module")
def result() -> Result:
    return main(Subject(TINY, "float32"), Setting(documents=2, tokens=40, repetitions=3))


def test_facts_name_the_machine_the_code_and_the_seed(result: Result) -> None:
    known = {"model", "commit", "hardware", "cpu_flags", "cores", "threads", "dtype", "torch", "transformers", "python"}
    assert known <= set(result.facts)
    assert result.facts["settings"]["seed"] == 0
    assert result.facts["dtype"] == "float32"
    assert result.facts["threads"] == torch.get_num_threads()
    told = result.show()
    assert all(
        f"\n{name}: " in f"\n{told}" for name in ("commit", "hardware", "threads", "dtype", "seed", "repetitions")
    )


def test_flags_are_those_that_decide_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {"model name": "A processor", "flags": "fpu avx2 sse4_1 amx_bf16"}
    monkeypatch.setattr(machine, "_of_processor", lambda field: lines.get(field, ""))
    found = machine.machine(torch.float32, torch.device("cpu"))
    assert found["cpu_flags"] == "avx2 amx_bf16"
    assert found["hardware"].startswith("A processor, ")


def test_a_file_says_the_same_as_the_run_and_so_does_its_page(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "first-token.json"
    result.save(path)
    assert set(json.loads(path.read_text())) == {"command", "facts", "rows"}
    again = Result.load(path)
    assert again.sections() == result.sections()
    page = CliRunner().invoke(app, ["bench", "render", str(path)])
    assert page.exit_code == 0, page.output
    assert page.stdout == result.render()
    assert page.stdout.startswith("## First token\n")
    assert f"Measured by `gritrag {COMMAND}`: model {TINY}; " in page.stdout
    assert "| doc-cache, with search" in page.stdout
    assert [file.name for file in path.parent.iterdir()] == ["first-token.json"]


def test_broken_files_and_wrong_names_are_told_before_anything_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, told in (
        ("{}", "no file of a benchmark"),
        ("[", "no file of a benchmark"),
        ("[1]", "no file of a bench"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=told):
            Result.load(path)
    path.write_text(json.dumps({"command": "bench speed", "facts": {}, "rows": []}))
    with pytest.raises(ValueError, match=r"is of 'bench speed'; this version reports of: bench first-token"):
        Result.load(path)
    with pytest.raises(ValueError, match="cannot read"):
        Result.load(tmp_path / "gone.json")
    told = CliRunner().invoke(app, ["bench", "first-token", "--model", "no-such-model", "--out", "x.jsonl"])
    assert (told.exit_code, told.stderr) == (2, "error: --out takes the name of a .json file, not x.jsonl\n")


def test_what_a_folder_has_is_not_measured_again(tmp_path: Path) -> None:
    measured: list[str] = []

    def work(results: Results) -> None:
        for case in ("a", "b"):
            if not results.has("speed", {"case": case}):
                measured.append(case)
                results.write("speed", [({"case": case}, {"n": len(measured)})])

    first = run("bench grid", {"seed": 0}, {"commit": "x"}, work, tmp_path)
    again = run("bench grid", {"seed": 0}, {"commit": "x"}, work, tmp_path)
    assert measured == ["a", "b"]
    assert again.rows == first.rows
    run("bench grid", {"seed": 1}, {"commit": "x"}, work, tmp_path)
    assert measured == ["a", "b", "a", "b"]
    assert [row["n"] for row in read_rows(tmp_path / FILE) if row["kind"] == "speed"] == [1, 2, 3, 4]
    in_memory = run("bench grid", {"seed": 0}, {"commit": "x"}, work)
    assert [row["n"] for row in in_memory.rows] == [5, 6]


def test_a_busy_machine_is_told() -> None:
    rows = [{"kind": "reading", "cell": {"pass": name}, "seconds": [1.0], "tokens": 9} for name in PASSES]
    for load, is_told in ((1.9, True), (0.1, False)):
        facts = {"cores": 2, "load_average": load, "settings": {"seed": 0}}
        result = Result("bench reading", facts, rows)
        assert ("Other processes were busy" in result.show()) == is_told
        assert ("Other processes were busy" in result.render()) == is_told


PASSES = ("bare forward", "encode_document", "read_documents")


def test_every_command_has_a_report() -> None:
    for command, module in REPORTS.items():
        assert hasattr(__import__(f"gritrag.evaluate.{module}", fromlist=["sections"]), "sections"), command


@settings(deadline=None)
@given(NUMBER, NUMBER, st.integers(1, 99))
def test_intervals_and_spreads_survive_a_file(a: float, b: float, n: int) -> None:
    value = {"x": [Interval(a, b, b, n), Spread(b, a, a, n)], "y": {"mean": 1}, "z": None}
    back = from_json(json.loads(json.dumps(as_json(value))))
    assert as_json(back) == as_json(value)
    assert isinstance(back["x"][0], Interval)
    assert isinstance(back["x"][1], Spread)
    assert back["x"][0].mean == pytest.approx(a, rel=1e-5)
