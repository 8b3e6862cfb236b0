"""Documentation runs: every Python block of README and docs, in one folder and in the order of the page.

A block that cannot run without a network, a GPU or training has the class `no-run` behind `python`, and the words "not
run by the tests" in the line above it, so that readers see it too. How many there are is counted here.
"""

import ast
import hashlib
import importlib.util
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import typer
from repository import ROOT
from test_public_surface import surface

import gritrag
from gritrag.cli import app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = 0
"""Python blocks that are marked as not run. Add one only with a reason that the page gives."""

FENCE = re.compile(r"( *)```(.*)")


class Block(NamedTuple):
    """Code of one fence: what stands behind the backticks, the last line of text above it, and the code."""

    info: str
    above: str
    code: str


def fences(page: Path, language: str) -> list[Block]:
    """All fences of a page in one language."""
    found: list[Block] = []
    above, opened, code = "", None, []
    for line in page.read_text("utf-8").splitlines():
        fence = FENCE.match(line)
        if opened is None and fence:
            opened, code = fence, []
        elif opened is not None and line == f"{opened[1]}```":
            found.append(Block(opened[2].strip(), above, "\n".join(code) + "\n"))
            opened = None
        elif opened is not None:
            code.append(line.removeprefix(opened[1]))
        elif line.strip():
            above = line.strip()
    assert opened is None, f"{page} has a fence that is never closed"
    return [block for block in found if block.info.split() and block.info.split()[0] == language]


def runnable(page: Path) -> list[str]:
    return [block.code for block in fences(page, "python") if ".no-run" not in block.info]


def test_blocks_that_are_not_run_say_so_and_are_few() -> None:
    marked = [block for page in PAGES for block in fences(page, "python") if ".no-run" in block.info]
    assert len(marked) == NOT_RUN
    assert all("not run by the tests" in block.above for block in marked)


def test_the_readme_has_code_to_run() -> None:
    assert len(runnable(ROOT / "README.md")) == 2


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_python_block_runs(tmp_path: Path) -> None:
    """One process for all pages. It loads each model once, as `from_pretrained` is remembered."""
    script = [
        "import functools, gritrag",
        "cls = gritrag.GritModel",
        "cls.from_pretrained = staticmethod(functools.cache(cls.from_pretrained))",
    ]
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        script += [f"print('page:', {name!r}, flush=True)", "names = {'__name__': '__main__'}"]
        script += [f"exec(compile({code!r}, {name!r}, 'exec'), names)" for code in runnable(page)]
    file = tmp_path / "every_block.py"
    file.write_text("\n".join(script), "utf-8")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, str(file)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-4000:]}"


def prose() -> list[Path]:
    """All pages that readers see in the repository."""
    return [*PAGES, *ROOT.glob("*.md"), ROOT / "indexes" / "README.md", ROOT / "findings" / "README.md"]


def test_relative_links_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in prose()
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_pages_use_the_words_of_the_field() -> None:
    """Words that were private to this project are left to the notes of old experiments."""
    private = re.compile(r"\b(abreast|weighed|shel(f|ves)|dresser|outlook|quantisers?|sealed)\b", re.IGNORECASE)
    pages = [page for page in prose() if "experiments" not in page.parts]
    assert [f"{page.name}: {found[0]}" for page in pages for found in private.finditer(page.read_text("utf-8"))] == []


def commands(page: Path) -> list[list[str]]:
    """Words of every line of a page's shell blocks that calls gritrag."""
    lines = [line for _, _, code in fences(page, "sh") for line in code.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("gritrag ")]


def test_commands_of_the_docs_exist_with_their_options() -> None:
    """Experiments are left out: they say what was called then."""
    app_commands = surface(typer.main.get_command(app))
    pages = [page for page in prose() if "experiments" not in page.parts]
    found = [(page.name, words) for page in pages for words in commands(page)]
    assert len(found) > 20
    for page, words in found:
        name = " ".join(words[1:3]) if " ".join(words[1:3]) in app_commands else words[1]
        options = {word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
        name = "eval questions" if name == "eval" else name
        assert options <= set(app_commands[name].split()), f"{page}: {' '.join(words)}"


def test_the_key_of_the_page_on_serving_is_the_one_that_its_command_hashes() -> None:
    text = (ROOT / "docs" / "how-to" / "serve.md").read_text("utf-8")
    (key,) = re.findall(r'printf %s "(.+)" \| sha256sum', text)
    assert re.findall("key_sha256: (.+)", text) == [hashlib.sha256(key.encode()).hexdigest()]


def messages() -> list[str]:
    """Texts of the package but its docstrings, with a gap where a value stands."""
    found = []
    for path in (ROOT / "gritrag").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                found.append(node.value)
    return found


def test_messages_of_the_page_on_troubles_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "how-to" / "troubleshoot.md").read_text("utf-8")
    told, said = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE), messages()
    assert len(told) > 15
    for message in told:
        words = re.compile(".*".join(re.escape(part.strip()) for part in message.split("...")), re.DOTALL)
        assert any(map(words.search, said)), f"nothing says {message!r} any more"


def test_the_model_card_tells_of_every_file_of_its_checkpoint() -> None:
    (card,) = (ROOT / "gritrag" / "checkpoints").glob("*/README.md")
    files = {str(path.relative_to(card.parent)) for path in card.parent.rglob("*") if path.is_file()} - {card.name}
    told = re.findall(
        r"^\* `(.+?)`:", card.read_text("utf-8").partition("## Files")[2].partition("\n## ")[0], re.MULTILINE
    )
    assert sorted(told) == sorted(files)


def test_names_in_the_architecture_exist() -> None:
    names = re.findall(r"`(gritrag(?:\.\w+)+)`", (ROOT / "docs" / "architecture.md").read_text("utf-8"))
    assert len(names) > 40
    for name in names:
        pkgutil.resolve_name(name)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    reference = (tmp_path / "site" / "reference" / "python" / "index.html").read_text("utf-8")
    assert all(f">{name}<" in reference for name in gritrag.__all__)
    assert "gritrag index" in (tmp_path / "site" / "reference" / "cli" / "index.html").read_text("utf-8")


def script(name: str) -> ModuleType:
    """A script of the documentation, as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "docs" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_and_plot_are_those_of_the_committed_files() -> None:
    readme, tables, plot = (
        script(f"{name}.py") for name in ("benchmarks/readme", "benchmarks/tables", "pictures/first_token")
    )
    first, record = readme.load("first-token.json"), readme.load("readme.json")
    text = (ROOT / "README.md").read_text("utf-8")
    assert readme.rendered(text, first, record) == text, "run python docs/benchmarks/readme.py --render"
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert tables.rendered(page) == page, "run python docs/benchmarks/tables.py"
    drawn = (ROOT / "docs" / "pictures" / "first_token.svg").read_text("utf-8")
    assert plot.draw(first) + "\n" == drawn, "run python docs/pictures/first_token.py"


def test_every_number_of_the_readmes_table_is_in_a_committed_file() -> None:
    """Read from the page and the files alone, without the code that renders them."""
    held = "".join(
        (ROOT / "docs" / "benchmarks" / name).read_text("utf-8") for name in ("first-token.json", "readme.json")
    )
    rows = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    (header,) = [number for number, line in enumerate(rows) if "from states | otherwise" in line]
    table = rows[header + 1 : header + 7]
    assert len(table) == 6
    numbers = [number for row in table for number in re.findall(r"\d[\d,]*(?:\.\d+)?", row)]
    assert len(numbers) >= 12
    assert [number for number in numbers if number not in held] == []
