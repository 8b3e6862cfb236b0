"""Questions to evaluate with: rows of a JSONL file, each with the passage that answers it.

Kinds of rows, told apart by their keys; `id` and `title` may be missing, and `answers` may be empty:

- ``{"id", "question", "passage", "answers", "title"}``;
- ``{"id", "question", "documents", "answers"}``: the first document answers the question, the others do not. A document
  is a text, or ``{"text", "title"}``.

Training reads such files too (`train.rows`), but keeps one answer of each row, where a score wants all of them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gritrag import corpus
from gritrag.records import Document

T = TypeVar("T")


class Question(NamedTuple):
    """`document` answers it, `others` are known not to; `answers` are all right, and none where the row has none."""

    id: str
    text: str
    answers: tuple[str, ...]
    document: Document
    others: tuple[Document, ...] = ()


class QuestionSet(NamedTuple):
    """Questions, and the distinct documents they are asked of."""

    questions: list[Question]
    documents: list[Document]


def read_questions(path: Path) -> list[Question]:
    """All rows of a file.

    Raises:
        ValueError: no such file, no row in it, or a broken row (file and line are named).
    """
    questions = []
    for number, line in numbered_lines(path):
        try:
            questions.append(_question(json.loads(line), str(number)))
        except (KeyError, TypeError, ValueError) as error:
            told = f"it lacks the key {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, line {number}: broken row: {told}") from None
    if not questions:
        raise ValueError(f"{path} holds no rows; a row looks like {{'question', 'passage', 'answers', 'title'}}")
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
    every = _distinct([*answering, *(other for question in questions for other in question.others)])
    chosen = evenly(answering, max(1, documents * len(answering) // len(every)))
    ids = {document.id for document in chosen}
    of_document: dict[str, list[Question]] = {name: [] for name in ids}
    for question in questions:
        if question.document.id in ids:
            of_document[question.document.id].append(question)
    limit = questions_per_document or len(questions)
    allowed = {id(question) for own in of_document.values() for question in evenly(own, limit)}
    kept = [question for question in questions if id(question) in allowed]
    others = (other for question in kept for other in question.others)
    return QuestionSet(kept, _distinct([*chosen, *others])[:documents])


def _distinct(documents: Iterable[Document]) -> list[Document]:
    return list({document.id: document for document in documents}.values())


def evenly(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, spread evenly over them; all of them if there are fewer."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, without blank lines.

    Raises:
        ValueError: the file cannot be read, or is no UTF-8 text.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason}") from None


def _question(row: Any, id: str) -> Question:
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object, not {type(row).__name__}")
    text = _text(row["question"], "question")
    answers = tuple(_text(answer, "an answer") for answer in _list(row, "answers"))
    if "documents" in row:
        documents = [_document(document) for document in _list(row, "documents")]
        if not documents:
            raise ValueError("documents is empty")
    else:
        documents = [_document({"text": row["passage"], "title": row.get("title")})]
    return Question(str(row.get("id", id)), text, answers, documents[0], tuple(documents[1:]))


def _document(item: Any) -> Document:
    """Its id is made from its content, so the same passage of two rows is one document."""
    fields = item if isinstance(item, Mapping) else {"text": item}
    title = fields.get("title")
    return Document(_text(fields["text"], "a passage"), title=_text(title, "title") if title else "")


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(row[key], list):
        raise ValueError(f"{key} must be a list, not {type(row[key]).__name__}")
    return row[key]


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be a text that is not empty, got {value!r}")
    value.encode()  # a lone surrogate, which JSON can spell, is a ValueError that says so
    return value
