"""What the site makes from other files: references from the code, and pages whose one truth lies elsewhere."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gritrag

ROOT = Path(__file__).parents[1]
CARD = "gritrag/checkpoints/gritrag-smollm2-135m/README.md"


def included(name: str) -> str:
    """A file of the repository as a page: without a YAML header, and with its links seen from `docs/`."""
    text = re.sub(r"\A---\n.*?\n---\n", "", (ROOT / name).read_text("utf-8"), flags=re.DOTALL)
    return text.replace("](docs/", "](")


def command_line(_: str = "") -> str:
    """Every command and option, as typer writes them."""
    words = [
        sys.executable,
        "-m",
        "typer",
        "gritrag.cli",
        "utils",
        "docs",
        "--name",
        "gritrag",
        "--title",
        "Command line",
    ]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def python_names(_: str = "") -> str:
    """A directive of mkdocstrings for each public name."""
    parts = ["# Python\n", "What `import gritrag` gives, and `gritrag.langchain`.\n"]
    for name in sorted(gritrag.__all__, key=str.lower):
        inherited = "    options: {inherited_members: true}\n" if name in ("Index", "GritModel") else ""
        parts.append(f"::: {getattr(gritrag, name).__module__}.{name}\n{inherited}")
    from gritrag import langchain

    parts.append("## LangChain\n")
    for name in langchain.__all__:
        parts.append(f"::: {getattr(langchain, name).__module__}.{name}\n")
    return "\n".join(parts)


MADE: dict[str, tuple[Callable[[str], str], str]] = {
    "changelog.md": (included, "CHANGELOG.md"),
    "model-card.md": (included, CARD),
    "on-disk-format.md": (included, "indexes/README.md"),
    "reference/cli.md": (command_line, ""),
    "reference/python.md": (python_names, ""),
}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The hook that mkdocs calls for each page."""
    make, argument = MADE.get(page.file.src_uri, (None, ""))
    return make(argument) if make else markdown
