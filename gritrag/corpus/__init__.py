"""Passages about things that do not exist, so that no model can know them beforehand, and a question on each.

Sixty are of about a hundred words; twelve are long, of more than two hundred.

Written for this project: the demo, the benchmarks and the tests on the real model stand on it.
"""

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, NamedTuple

from gritrag.records import Document

LONG = "chronicle"
"""Domain of the long passages, for filters: no other passage has it."""


class Question(NamedTuple):
    """A question, the spans of text that answer it, and the document that they stand in."""

    question: str
    answers: list[str]
    document_id: str


def documents() -> list[Document]:
    """The sixty passages, each with its domain as metadata."""
    return _documents("documents.jsonl")


def long_documents() -> list[Document]:
    """The twelve long passages; their domain is `LONG`."""
    return _documents("long_documents.jsonl")


def questions(count: int | None = None) -> list[Question]:
    """One for each of the sixty passages; or `count` of them, spread evenly over the corpus.

    Raises:
        ValueError: more questions than there are, or none.
    """
    every = _questions("questions.jsonl")
    if count is None:
        return every
    if not 1 <= count <= len(every):
        raise ValueError(f"the corpus has {len(every)} questions: ask from 1 to {len(every)}, not {count}")
    return [every[number * len(every) // count] for number in range(count)]


def long_questions() -> list[Question]:
    """One for each of the long passages."""
    return _questions("long_questions.jsonl")


def _documents(name: str) -> list[Document]:
    return [
        Document(row["text"], id=row["id"], title=row["title"], metadata={"domain": row["domain"]})
        for row in _rows(name)
    ]


def _questions(name: str) -> list[Question]:
    return [Question(**row) for row in _rows(name)]


def _rows(name: str) -> Iterator[dict[str, Any]]:
    for line in (files(__package__) / name).read_text("utf-8").splitlines():
        yield json.loads(line)
