"""Rows to evaluate with, from files: questions with their passages, texts with labels, and pairs of sentences.

Kinds of rows, told apart by their keys; a file holds one kind:

- questions; see `gritrag.evaluate.question_rows`;
- ``{"text", "label"}``: a label is a text or a number;
- ``{"sentence1", "sentence2", "score"}``.

Training reads files of questions too (`gritrag.train.data.rows`), but keeps one answer of each row, where a score
wants all of them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gritrag import corpus
from gritrag.evaluate.question_rows import EXAMPLE, Question, question_of
from gritrag.evaluate.row_files import numbered_rows
from gritrag.records import Document

T = TypeVar("T")


class QuestionSet(NamedTuple):
    """Questions, and the distinct documents they are asked of."""

    questions: list[Question]
    documents: list[Document]


def read_questions(path: Path, needs_passages: bool = True) -> list[Question]:
    """All rows of a file.

    Args:
        needs_passages: refuse a row without a passage.

    Raises:
        ValueError: no such file, no row in it, or a broken row (file and line are named).
    """
    questions = []
    for place, number, row in numbered_rows(path):
        try:
            questions.append(question_of(row, str(number), needs_passages))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, {place}: broken row: {error}") from None
    if not questions:
        raise ValueError(f"{path} holds no rows; a row looks like {EXAMPLE}")
    return questions


def invented_questions() -> list[Question]:
    """Those of the package's own corpus, for a run that brings no file."""
    of_id = {document.id: document for document in corpus.documents()}
    return [
        Question(str(number), row.question, tuple(row.answers), of_id[row.document_id])
        for number, row in enumerate(corpus.questions(), start=1)
    ]


def choose(questions: Sequence[Question], documents: int, questions_per_document: int | None = None) -> QuestionSet:
    """At most `documents` distinct documents, spread evenly over the file, and the questions that they answer: all of
    them, or at most `questions_per_document` of each, spread evenly too.

    Where rows name further documents, these take their share of the room.
    """
    answering = _distinct(question.document for question in questions)
    every = _distinct([*answering, *(other for question in questions for other in _beside(question))])
    chosen = evenly(answering, max(1, documents * len(answering) // len(every)))
    ids = {document.id for document in chosen}
    of_document: dict[str, list[Question]] = {name: [] for name in ids}
    for question in questions:
        if question.document.id in ids:
            of_document[question.document.id].append(question)
    limit = questions_per_document or len(questions)
    allowed = {id(question) for own in of_document.values() for question in evenly(own, limit)}
    kept = [question for question in questions if id(question) in allowed]
    needed = (other for question in kept for other in question.needed)
    others = (other for question in kept for other in question.others)
    # what is needed to answer comes with its question, though it be more than was asked for
    least = _distinct([*chosen, *needed])
    return QuestionSet(kept, _distinct([*least, *others])[: max(documents, len(least))])


def _beside(question: Question) -> tuple[Document, ...]:
    return (*question.needed, *question.others)


def _distinct(documents: Iterable[Document]) -> list[Document]:
    return list({document.id: document for document in documents}.values())


def evenly(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, spread evenly over them; all of them if there are fewer."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


class Labelled(NamedTuple):
    text: str
    label: str


class Pair(NamedTuple):
    """Two sentences, and how alike they are in meaning; only the order of scores matters."""

    first: str
    second: str
    score: float


def keys_of(path: Path) -> set[str]:
    """Of the first row, by which a file is known.

    Raises:
        ValueError: the file cannot be read, or holds no rows that are objects.
    """
    for _, row in _objects(path):
        return set(row)
    raise ValueError(f"{path} holds no rows")


def read_labelled(path: Path) -> list[Labelled]:
    """All rows of a file with labels.

    Raises:
        ValueError: a broken row (file and line are named), or fewer than two different labels.
    """
    rows = [Labelled(_field(row, "text", where), _label(row, where)) for where, row in _objects(path)]
    if len({row.label for row in rows}) < 2:
        raise ValueError(f"{path} has {len({row.label for row in rows})} different labels; it takes two to tell apart")
    return rows


def read_pairs(path: Path) -> list[Pair]:
    """All rows of a file of sentence pairs.

    Raises:
        ValueError: a broken row (file and line are named), or fewer than two different scores.
    """
    rows = [
        Pair(_field(row, "sentence1", where), _field(row, "sentence2", where), _score(row, where))
        for where, row in _objects(path)
    ]
    if len({row.score for row in rows}) < 2:
        raise ValueError(f"{path} has {len({row.score for row in rows})} different scores; there is nothing to rank")
    return rows


def _objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """File and line, and what stands there."""
    for place, _, row in numbered_rows(path):
        where = f"{path}, {place}: broken row"
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: a row must be an object, not {type(row).__name__}")
        yield where, row


def _field(row: Mapping[str, Any], key: str, where: str) -> str:
    value = _value(row, key, where)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key} must be a text that is not empty, got {value!r}")
    return value


def _value(row: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise ValueError(f"{where}: it lacks the key {key!r}")
    return row[key]


def _label(row: Mapping[str, Any], where: str) -> str:
    value = _value(row, "label", where)
    if not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{where}: label must be a text or a whole number, got {value!r}")
    return str(value)


def _score(row: Mapping[str, Any], where: str) -> float:
    value = _value(row, "score", where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: score must be a number, got {value!r}")
    return float(value)
