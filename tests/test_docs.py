"""Documentation runs: every Python block of README and docs, in one folder and in the order of the page.

A block that cannot run without a network, a GPU or training has the class `no-run` behind `python`, and the words "not
run by the tests" in the line above it, so that readers see it too. How many there are is counted here.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = 0
"""Python blocks that are marked as not run. Add one only with a reason that the page gives."""

FENCE = re.compile(r"( *)```(.*)")


class Block(NamedTuple):
    """Code of one fence: what stands behind the backticks, the last line of text above it, and the code."""

    info: str
    above: str
    code: str


def blocks(page: Path) -> list[Block]:
    """All fences of a page that hold Python."""
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
    return [block for block in found if block.info.startswith("python")]


def runnable(page: Path) -> list[str]:
    return [block.code for block in blocks(page) if ".no-run" not in block.info]


def test_blocks_that_are_not_run_say_so_and_are_few() -> None:
    marked = [block for page in PAGES for block in blocks(page) if ".no-run" in block.info]
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
