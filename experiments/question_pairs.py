"""Questions that need two documents, made of a file whose questions need one: each together with the next.

    python -m experiments.question_pairs nq.validation.jsonl nq-pairs.validation.jsonl
    gritrag eval questions nq-pairs.validation.jsonl

"A?" and "B?" become "A? And b?", which "a and b" answers; both passages are needed. This is the form of such questions
in training, so they say nothing of chains, where one document tells what to look for in the other.
"""

import json
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.script import run
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.rows import read_questions

MOST_WORDS = 5
"""Of an answer that is joined with another."""


def pairs(questions: list[Question]) -> list[dict[str, Any]]:
    """Rows of two neighbouring questions with short answers from different passages, each question once."""
    short = [each for each in questions if any(_is_short(answer) for answer in each.answers)]
    rows = []
    for one, other in zip(short[::2], short[1::2], strict=False):
        if one.document.id == other.document.id:
            continue
        first, second = ([answer for answer in each.answers if _is_short(answer)] for each in (one, other))
        rows.append(
            {
                "id": f"{one.id}+{other.id}",
                "question": f"{one.text.strip()} And {_small(other.text.strip())}",
                "documents": [{"text": each.document.text, "title": each.document.title} for each in (one, other)],
                "gold": [0, 1],
                "answers": [f"{a} and {b}" for a, b in product(first, second)],
            }
        )
    return rows


def _is_short(answer: str) -> bool:
    return len(answer.split()) <= MOST_WORDS


def _small(text: str) -> str:
    """With a small first letter, unless its first word is in capitals."""
    return text if text.split()[0].isupper() else text[0].lower() + text[1:]


def main(
    path: Annotated[Path, typer.Argument(help="Questions with their passages and short answers.")],
    out: Annotated[Path, typer.Argument(help="JSONL to write.")],
) -> None:
    """Write a file of questions that need two documents each."""
    rows = pairs(read_questions(path))
    if not rows:
        raise ValueError(f"{path} holds no two neighbouring questions with short answers and different passages")
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    typer.echo(f"{len(rows)} questions")


if __name__ == "__main__":
    run(main)
