"""Questions about real documentation, answered from text and from states of one index, paired.

    apt-get download sqlite3-doc && dpkg-deb -x sqlite3-doc_*.deb sqlite
    python -m experiments.documentation_questions sqlite/usr/share/doc/sqlite3

Pages that the questions are about are indexed, with others to choose wrongly from. Each question is answered from the
same hits in both ways; an answer is right if it has one of the strings that the file of questions accepts.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from scipy.stats import binomtest

from experiments.script import run
from gritrag import RAG, GritModel, Index
from gritrag.config import DEFAULT_MODEL
from gritrag.demo import is_right
from gritrag.documents.sources import FILE
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.scores import says_not_found
from gritrag.progress import ProgressBar

QUESTIONS = Path(__file__).parent.parent / "tests" / "data" / "sqlite_questions.jsonl"
WAYS = {"text": "doc-query", "states": "doc-cache"}
MAX_OTHER_BYTES = 30_000


def make_index(pages: Path, wanted: set[str], others: int, folder: Path, model: str, dtype: str) -> None:
    """An index of the pages that are asked about and of some others, by the command line that users have."""
    smaller = sorted(
        page for page in pages.glob("*.html") if page.name not in wanted and page.stat().st_size <= MAX_OTHER_BYTES
    )
    with tempfile.TemporaryDirectory() as chosen:
        for page in [*(pages / name for name in sorted(wanted)), *smaller[:: max(1, len(smaller) // others)][:others]]:
            shutil.copy(page, chosen)
        command = [
            sys.executable,
            "-m",
            "gritrag",
            "index",
            chosen,
            "--index",
            str(folder),
            "--model",
            model,
            "--dtype",
            dtype,
        ]
        subprocess.run(command, check=True)


def main(
    pages: Annotated[Path, typer.Argument(help="Folder of the documentation, HTML.")],
    questions: Annotated[Path, typer.Option(help="JSONL of question, answers and page.")] = QUESTIONS,
    others: Annotated[int, typer.Option(help="Pages that nothing is asked about.", min=1)] = 20,
    k: Annotated[int, typer.Option("-k", help="Documents in a context.", min=1)] = 5,
    index: Annotated[Path | None, typer.Option(help="Folder of the index; made if it is not there.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Write every answer here, as JSONL.")] = None,
    model: Annotated[str, typer.Option(help="Name or folder of a checkpoint.")] = DEFAULT_MODEL,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Count right answers of both ways and print them as JSON."""
    asked = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    grit = GritModel.from_pretrained(model, dtype=dtype)
    with tempfile.TemporaryDirectory() as temporary:
        folder = index or Path(temporary) / "index"
        if not folder.exists():
            make_index(pages, {row["page"] for row in asked}, others, folder, model, dtype)
        with Index.open(folder, model=grit, mode="r") as opened:
            rows = [one(opened, row, k) for row in ProgressBar(asked, desc="asking", unit="question")]
            documents = len(opened)
    if answers is not None:
        answers.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    only = {way: sum(row[way]["right"] and not row[other]["right"] for row in rows) for way, other in pairs()}
    facts = {"model": model, **machine_of(grit), "documents": documents, "questions": len(rows), "k": k}
    results = {
        "page_found": sum(row["found"] for row in rows),
        "right": {way: sum(row[way]["right"] for row in rows) for way in WAYS},
        "right_only": only,
        "p_of_so_uneven_a_split": binomtest(only["text"], sum(only.values())).pvalue if sum(only.values()) else 1.0,
        "not_in_the_documents": {way: sum(row[way]["declined"] for row in rows) for way in WAYS},
    }
    typer.echo(json.dumps({**facts, **results}, indent=2))


def pairs() -> list[tuple[str, str]]:
    first, second = WAYS
    return [(first, second), (second, first)]


def one(index: Index, row: dict[str, Any], k: int) -> dict[str, Any]:
    """One question, both ways, from the same hits."""
    hits = index.search(row["question"], k)
    found = any(hit.document.metadata.get(FILE) == row["page"] for hit in hits)
    result = {"question": row["question"], "answers": row["answers"], "found": found}
    for way, mode in WAYS.items():
        text = RAG(index, mode=mode, k=k).ask(row["question"], hits=hits, max_new_tokens=48).text
        result[way] = {"text": text, "right": is_right(text, row["answers"]), "declined": says_not_found(text)}
    return result


if __name__ == "__main__":
    run(main)
