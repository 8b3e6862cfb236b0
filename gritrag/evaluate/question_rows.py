"""Questions, and the rows that they come from: our own, and those of the usual data sets.

Each line below is what a row may hold; keys that are not named are left alone.

- the question: `question`, or `query`;
- its passage: `passage` or `context` (SQuAD), a text, with `title`. Or several: `documents` or `passages`, texts or
  `{"text", "title"}`, with `gold`, the numbers of those that are needed to answer (one number, or a list; 0 where it
  is missing); MS MARCO's `passages` say by `is_selected` which one answers: the first that it marks; further ones are
  left out. Or `pos` and `neg`: the first of `pos` answers, its others are left out, those of `neg` do not answer.
  GritLM's `[instruction, text]` is its text;
- right answers: `answers` or `answer`: a text, a list of texts, SQuAD's `{"text": [...], "answer_start": [...]}` or a
  list of such, TriviaQA's `{"value", "aliases"}`. An empty list or none at all: not known. SQuAD's object without a
  text: the passage does not answer;
- `unanswerable` or SQuAD's `is_impossible`: true where the passage is about the question, but does not answer it; MS
  MARCO says "No Answer Present." and marks none;
- `id`, `qid`, `query_id` or `_id`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gritrag.records import Document

QUESTION, PASSAGE, SEVERAL = ("question", "query"), ("passage", "context"), ("documents", "passages")
ANSWERS, UNANSWERABLE, IDS = ("answers", "answer"), ("unanswerable", "is_impossible"), ("id", "qid", "query_id", "_id")
NO_ANSWER = "No Answer Present."

EXAMPLE = '{"question": "When does the ferry sail?", "passage": "The ferry sails at noon.", "answers": ["noon"]}'


class Question(NamedTuple):
    """Its `passage` answers it, together with `needed` where one is not enough; `others` are known not to.

    `answers` are all right, and none where the row has none; where it `is_unanswerable`, no document answers. `passage`
    is None of a question for an index that is there.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    passage: Document | None = None
    others: tuple[Document, ...] = ()
    needed: tuple[Document, ...] = ()
    is_unanswerable: bool = False

    @property
    def document(self) -> Document:
        """The passage, of a question that has one."""
        assert self.passage is not None, "a question for an index that is there"
        return self.passage

    @property
    def gold(self) -> tuple[Document, ...]:
        """All that are needed to answer."""
        return () if self.passage is None else (self.passage, *self.needed)


def question_of(row: Any, id: str, needs_passage: bool = True) -> Question:
    """The question of a row.

    Args:
        id: where the row has none.
        needs_passage: refuse a row without one.

    Raises:
        ValueError: a row that is broken, or lacks a question or a passage.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object, not {type(row).__name__}")
    text = _text(_required(row, QUESTION), "question")
    answers, is_unanswerable = _answers(row)
    id = str(next((row[key] for key in IDS if row.get(key) is not None), id))
    first, needed, others = _passages(row)
    if first is None and needs_passage:
        raise ValueError(
            "it lacks the key 'passage' (or context, documents, passages or pos); questions without one are asked of "
            "an index that is there (--index)"
        )
    return Question(id, text, answers, first, others, needed, is_unanswerable)


def _required(row: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    found = _key(row, keys)
    if found is None:
        raise ValueError(f"it lacks the key {keys[0]!r} (or {' or '.join(keys[1:])})")
    return row[found]


def _key(row: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of the keys that the row has a value for."""
    return next((key for key in keys if row.get(key) is not None), None)


# --- answers ----------------------------------------------------------------------------------------------------------


def _answers(row: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """All right answers, and whether there is none."""
    key = _key(row, ANSWERS)
    given = None if key is None else row[key]
    answers = tuple(dict.fromkeys(_text(answer, "an answer") for answer in _texts(given)))
    flag = _key(row, UNANSWERABLE)
    is_unanswerable = flag is not None and _flag(row[flag])
    if not isinstance(is_unanswerable, bool):
        raise ValueError(f"{flag} must be true or false, not {is_unanswerable!r}")
    if is_unanswerable and flag == "unanswerable" and answers:
        raise ValueError("it is unanswerable, but has answers")
    is_empty_of_squad = isinstance(given, Mapping) and "answer_start" in given and not answers
    is_unanswerable = is_unanswerable or is_empty_of_squad or _says_none(row)
    return () if is_unanswerable else answers, is_unanswerable


def _says_none(row: Mapping[str, Any]) -> bool:
    """Whether MS MARCO says so: in the place of an answer, of a row with several passages."""
    key = _key(row, ANSWERS)
    return key is not None and _key(row, SEVERAL) is not None and row[key] in (NO_ANSWER, [NO_ANSWER])


def _flag(value: Any) -> Any:
    """A truth value, which a cell of CSV spells; anything else as it is."""
    spelt = value.strip().lower() if isinstance(value, str) else ""
    return spelt == "true" if spelt in ("true", "false") else value


def _texts(given: Any) -> list[Any]:
    """The texts of whatever form answers have."""
    if given is None:
        return []
    if isinstance(given, Mapping):
        known = [given[key] for key in ("text", "value", "aliases") if given.get(key) is not None]
        if not known:
            raise ValueError(f"answers that are an object need its key 'text', got {sorted(given)}")
        return [text for each in known for text in _texts(each)]
    if isinstance(given, list):
        return [text for each in given for text in (_texts(each) if isinstance(each, Mapping) else [each])]
    return [given]


# --- passages ---------------------------------------------------------------------------------------------------------


def _passages(row: Mapping[str, Any]) -> tuple[Document | None, tuple[Document, ...], tuple[Document, ...]]:
    """What answers, what is needed beside it, and what is known not to answer."""
    if (key := _key(row, SEVERAL)) is not None:
        return _several(row, key)
    if row.get("pos") is not None:
        pos, neg = (_marked(row.get(name)) for name in ("pos", "neg"))
        if not pos:
            raise ValueError("pos is empty")
        return pos[0], (), tuple(document for document in neg if document not in pos)
    key = _key(row, PASSAGE)
    return (None if key is None else _document({"text": row[key], "title": row.get("title")})), (), ()


def _several(row: Mapping[str, Any], key: str) -> tuple[Document, tuple[Document, ...], tuple[Document, ...]]:
    given, gold = row[key], row.get("gold")
    marks: list[Any] = []
    if isinstance(given, Mapping) and isinstance(given.get("passage_text"), list):  # MS MARCO: a list for each field
        marks, given = given.get("is_selected") or [], given["passage_text"]
    elif isinstance(given, list):
        told = [each.get("is_selected") if isinstance(each, Mapping) else None for each in given]
        marks = told if any(mark is not None for mark in told) else []
    if not isinstance(given, list):
        raise ValueError(f"{key} must be a list, not {type(given).__name__}")
    documents = [_document(document) for document in given]
    if not documents:
        raise ValueError(f"{key} is empty")
    if gold is None and marks and not any(marks) and not _says_none(row):
        raise ValueError("is_selected marks none of its passages; name the one that answers by gold, or remove the row")
    marked = [number for number, is_right in enumerate(marks) if is_right] if gold is None else []
    numbers = _gold(gold if gold is not None else marked[:1] or 0, len(documents))
    right = {documents[number].id: documents[number] for number in numbers}
    first, *needed = right.values()
    known = {*right, *(documents[number].id for number in marked if number < len(documents))}
    others = {document.id: document for document in documents if document.id not in known}
    return first, tuple(needed), tuple(others.values())


def _gold(gold: Any, documents: int) -> list[int]:
    """Numbers of the documents that answer, each once."""
    numbers = list(dict.fromkeys(gold)) if isinstance(gold, list) else [gold]
    if not numbers or not all(type(number) is int and 0 <= number < documents for number in numbers):
        raise ValueError(f"gold must hold numbers of documents from 0 to {documents - 1}, got {gold!r}")
    return numbers


def _marked(given: Any) -> list[Document]:
    """Of `pos` or `neg`: one text or several, each perhaps with GritLM's instruction before it."""
    texts = [given] if isinstance(given, str) else given or []
    if not isinstance(texts, list):
        raise ValueError(f"pos and neg must be lists, not {type(given).__name__}")
    return [_document(text[-1] if isinstance(text, list) and text else text) for text in texts]


def _document(item: Any) -> Document:
    """Its id is made from its content, so the same passage of two rows is one document."""
    fields = item if isinstance(item, Mapping) else {"text": item}
    key = _key(fields, ("text", "passage_text"))
    if key is None:
        raise ValueError("a document lacks the key 'text'" if isinstance(item, Mapping) else f"no passage: {item!r}")
    title = fields.get("title")
    return Document(_text(fields[key], "a passage"), title=_text(title, "title") if title else "")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be a text that is not empty, got {value!r}")
    value.encode()  # a lone surrogate, which JSON can spell, is a ValueError that says so
    return value
