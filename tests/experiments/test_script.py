"""Scripts of the laboratory: each runs as a module, says what it asks, and the package needs none of them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from gritrag.evaluate.suite import load_results

SCRIPTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text("utf-8"))


def test_the_package_does_not_know_the_laboratory() -> None:
    for path in (ROOT / "gritrag").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "experiments" for name in names), path


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_is_for_and_how_it_is_run(name: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / "experiments" / f"{name}.py").read_text("utf-8"))) or ""
    assert text.split("\n\n")[0].rstrip().endswith(("?", "."))
    assert f"python -m experiments.{name}" in text or f"python experiments/{name}.py" in text


def test_a_mistake_is_told_in_one_line() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "experiments.question_pairs", "gone.jsonl", "out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: cannot read gone.jsonl: No such file")
    assert "Traceback" not in run.stderr


def test_the_gpu_script_runs_on_a_processor_and_writes_one_file(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    run = subprocess.run(
        ["experiments/gpu_speed.sh", "--smoke", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    results = load_results(out)
    assert [(each.facts["settings"]["documents"], each.facts["settings"]["codec"]) for each in results] == [
        (2, "int4"),
        (4, "int4"),
    ]
    assert all(each.facts["model"] == "random weights of tiny" for each in results)


def test_the_gpu_script_measures_what_it_should_and_a_failure_costs_only_itself(tmp_path: Path) -> None:
    text = (ROOT / "experiments" / "gpu_speed.sh").read_text("utf-8")
    for case in ("llama3-8b 10 500", "llama3-8b 32 500", "smollm2-135m 10 500"):
        assert case in text
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\n[[ "$*" == *"--documents 4"* ]] && exit 3\nexec "$REAL" "$@"\n')
    python.chmod(0o755)
    out = tmp_path / "gpu.json"
    run = subprocess.run(
        ["experiments/gpu_speed.sh", "--smoke", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": str(python), "REAL": sys.executable, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 1
    assert "failed: tiny 4 50" in run.stderr
    assert [each.facts["settings"]["documents"] for each in load_results(out)] == [2]
