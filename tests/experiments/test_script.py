"""Scripts of the laboratory: each runs as a module, says what it asks, and the package needs none of them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
        [sys.executable, "-m", "experiments.recipes", "gone.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: cannot read the recipe gone.yaml")
    assert "Traceback" not in run.stderr
