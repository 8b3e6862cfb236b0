"""Rows to evaluate with, from JSONL files: questions with their passages, texts with labels, and pairs of sentences.

Kinds of rows, told apart by their keys; a file holds one kind. Of questions `id` and `title` may be missing, and
`answers` may be empty, which means that they are not known:

- ``{"id", "question", "passage", "answers", "title"}``;
- ``{"id", "question", "documents", "answers", "gold"}``: `gold` are the numbers of the documents that are needed to
  answer (one number, or a list; 0, the first, where it is missing), the others are known not to answer. A document is
  a text, or ``{"text", "title"}``;
- either of these with ``"unanswerable": true``: the passage is about the question, but does not answer it;
- ``{"text", "label"}``: a label is a text or a number;
- ``{"sentence1", "sentence2", "score"}``.

Training reads files of questions too (`gritrag.train.data.rows`), but keeps one answer of each row, where a score
wants all of them.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gritrag import corpus
from gritrag.records import Document

T = TypeVar("T")


class Question(NamedTuple):
    """`document` answers it, together with `needed` where one is not enough; `others` are known not to.

    `answers` are all right, and none where the row has none; where it `is_unanswerable`, no document answers.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    document: Document
    others: tuple[Document, ...] = ()
    needed: tuple[Document, ...] = ()
    is_unanswerable: bool = False

    @property
    def gold(self) -> tuple[Document, ...]:
        """All that are needed to answer."""
        return (self.document, *self.needed)


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
    is_unanswerable = row.get("unanswerable", False)
    if not isinstance(is_unanswerable, bool):
        raise ValueError(f"unanswerable must be true or false, not {is_unanswerable!r}")
    if is_unanswerable and answers:
        raise ValueError("it is unanswerable, but has answers")
    id = str(row.get("id", id))
    if "documents" not in row:
        document = _document({"text": row["passage"], "title": row.get("title")})
        return Question(id, text, answers, document, is_unanswerable=is_unanswerable)
    documents = [_document(document) for document in _list(row, "documents")]
    if not documents:
        raise ValueError("documents is empty")
    numbers = _gold(row.get("gold", 0), len(documents))
    first, *needed = (documents[number] for number in numbers)
    others = tuple(document for number, document in enumerate(documents) if number not in numbers)
    return Question(id, text, answers, first, others, tuple(needed), is_unanswerable)


def _gold(gold: Any, documents: int) -> list[int]:
    """Numbers of the documents that answer, each once."""
    numbers = list(dict.fromkeys(gold)) if isinstance(gold, list) else [gold]
    if not numbers or not all(type(number) is int and 0 <= number < documents for number in numbers):
        raise ValueError(f"gold must hold numbers of documents from 0 to {documents - 1}, got {gold!r}")
    return numbers


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
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}: broken row"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
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
