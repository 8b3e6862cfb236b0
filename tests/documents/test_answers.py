"""Files as people have them answer questions, and the citation names the page: on the checkpoint that is shipped."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from files import make_docx, make_pdf
from typer.testing import CliRunner

from gritrag.cli import app


@pytest.mark.parametrize(
    ("make", "question", "said", "cited"),
    [
        (
            make_pdf,
            "At what hour does the last ferry to Osk leave?",
            "four",
            r"osk\.pdf#page=2 \(Osk for visitors, page 2\)",
        ),
        (
            make_docx,
            "When does the baker open?",
            "six",
            r"osk\.docx#section=4 \(Osk handbook > Bakery, page 2, “Bakery”\)",
        ),
    ],
    ids=["pdf", "docx"],
)
def test_the_answer_cites_the_page(
    tmp_path: Path, make: Callable[[Path], Path], question: str, said: str, cited: str
) -> None:
    file = make(tmp_path / f"osk.{make.__name__.removeprefix('make_')}")
    index = str(tmp_path / "index")
    built = CliRunner().invoke(app, ["index", str(file), "--index", index, "--json"])
    assert json.loads(built.stdout)["not_read"] == []
    answered = CliRunner().invoke(app, ["ask", question, "--index", index, "-k", "2", "--max-new-tokens", "24"])
    assert answered.exit_code == 0, answered.output
    assert said in answered.stdout
    assert re.search(cited, answered.stderr), answered.stderr
