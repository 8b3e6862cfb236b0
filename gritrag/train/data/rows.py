"""Rows of a training file or data set become passages with their questions, or chats. A broken row is refused.

Kinds of rows, told apart by their keys:

- ``{"question", "passage", "answers", "title"}``: one passage, one question; `answers` may be empty;
- ``{"question", "passage", "unanswerable": true, "answers": []}``: the passage does not hold the answer;
- ``{"question", "documents", "answers", "gold"}``: several passages; `gold` lists the numbers of those that hold the
  answer, ``[0]`` where it is not given. With several the answer needs all of them;
- ``{"query", "pos", "neg", "instruction"}``, where texts may be GritLM's ``[instruction, text]``: the first of `pos`;
- ``{"text", "label"}``: a text whose query is another text of its label, and whose negatives are of other labels;
- ``{"messages"}``: a chat; GritLM's ``{"text": [user, assistant, ...]}`` too.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from gritrag.tokens import check_text
from gritrag.train.data.config import SourceConfig
from gritrag.train.data.row_files import read_rows
from gritrag.train.data.sentences import sentence_ends


class Question(NamedTuple):
    """A question on a passage.

    Args:
        text: the question.
        answer: empty where it is not known: such a question is for retrieval only.
        instruction: of the query; the source's where None.
        negatives: further passages of its row, which do not hold the answer.
        is_made: made of the passage itself (see `gritrag.train.data.cloze`): answered, but never a query.
        is_unanswerable: its passage does not hold the answer, which is `answer` where it has been cut out of it;
            answered with `GenerativeConfig.not_found`, never a query.
        evidence: further passages that the answer needs. With any, the question is never a query.
    """

    text: str
    answer: str
    instruction: str | None
    negatives: tuple[str, ...]
    is_made: bool = False
    is_unanswerable: bool = False
    evidence: tuple[str, ...] = ()

    @property
    def is_query(self) -> bool:
        """Whether retrieval should find its passage, and that one alone."""
        return not (self.is_made or self.is_unanswerable or self.evidence)


class Passage(NamedTuple):
    """A document and all questions of a file that it answers.

    Passages of one `identity`, which is title and text where it is empty, are not held against each other's questions
    when they are met in another step.
    """

    text: str
    title: str
    questions: tuple[Question, ...]
    identity: str = ""


class Chat(NamedTuple):
    """A list of ``{"role", "content"}``."""

    messages: tuple[Mapping[str, str], ...]


def read_source(path: Path, config: SourceConfig) -> tuple[list[Passage], list[Chat]]:
    """All rows of a source; one of the two lists is empty.

    Args:
        path: where `config.path` lies if it is a file or a folder. Where nothing is there, it is a name on the hub.
        config: the source.

    Raises:
        ValueError: no such file or data set, a broken row (file and line are named), or questions and chats in one.
    """
    questions: dict[tuple[str, str, tuple[str, ...]], list[Question]] = {}
    chats: list[Chat] = []
    labelled: list[tuple[str, str]] = []
    for number, (where, row) in enumerate(read_rows(path, config)):
        if config.max_rows is not None and number == config.max_rows:
            break
        try:
            if "label" in row:
                labelled.append((_text(row["text"], "text"), str(row["label"])))
            elif "messages" in row or "text" in row:
                chats.append(_chat(row))
            else:
                text, title, question = _question(row)
                where_told = "\n".join((text, *question.evidence))
                if config.literal_answers and question.answer.lower() not in where_told.lower():
                    question = question._replace(answer="")
                if config.split_sentences:
                    text, question = _split(text, question)
                questions.setdefault((text, title, question.evidence), []).append(question)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: broken row: {_told(error)}") from None
    if sum(map(bool, (questions, chats, labelled))) != 1:
        raise ValueError(
            f"{path} must hold question rows, chat rows or rows with labels, one kind of them and at least one row; "
            "split it, or leave it out"
        )
    if labelled:
        return _alike(labelled, config.label_negatives, path), []
    return [Passage(text, title, tuple(found)) for (text, title, _), found in questions.items()], chats


def _split(text: str, question: Question) -> tuple[str, Question]:
    """The first sentence as the passage, the others as further evidence."""
    ends = [0, *sentence_ends(text), len(text)]
    sentences = [text[start:end].strip() for start, end in pairwise(ends)]
    first, *others = [sentence for sentence in sentences if sentence]
    return first, question._replace(evidence=(*others, *question.evidence))


def _alike(labelled: Sequence[tuple[str, str]], negatives: int, path: Path) -> list[Passage]:
    """Each text with another of its label as its query (NV-Embed, section 4.2, does so with data for classification).

    The choice is the same whenever the file is read. A text that is alone with its label is left out.
    """
    by_label: dict[str, list[int]] = {}
    for row, (_, label) in enumerate(labelled):
        by_label.setdefault(label, []).append(row)
    if len(by_label) < 2 or max(map(len, by_label.values())) < 2:
        raise ValueError(f"{path} has {len(by_label)} labels; two are needed, and two texts of one of them")
    passages = []
    for row, (text, label) in enumerate(labelled):
        rng = random.Random(f"{path.name}/{row}")
        same = [other for other in by_label[label] if other != row]
        if same:
            strangers = [
                rng.choice(by_label[rng.choice([o for o in by_label if o != label])]) for _ in range(negatives)
            ]
            question = Question(labelled[rng.choice(same)][0], "", None, tuple(labelled[n][0] for n in strangers))
            passages.append(Passage(text, "", (question,)))
    return passages


def _told(error: Exception) -> str:
    return f"it lacks the key {error}" if isinstance(error, KeyError) else str(error)


def _question(row: Mapping[str, Any]) -> tuple[str, str, Question]:
    """Passage text, title and question of one row."""
    if "query" in row:
        told, query = _instructed(row["query"])
        positives = [_instructed(text)[1] for text in _list(row, "pos")]
        negatives = tuple(_text(_instructed(text)[1], "a negative") for text in row.get("neg") or ())
        if not positives:
            raise ValueError("pos is empty")
        instruction = row.get("instruction") or told
        if instruction is not None:
            _text(instruction, "an instruction")
        return _text(positives[0], "pos"), "", Question(_text(query, "query"), "", instruction, negatives)
    answer = _shortest(_list(row, "answers"))
    is_unanswerable = row.get("unanswerable", False)
    if not isinstance(is_unanswerable, bool):
        raise ValueError(f"unanswerable must be true or false, not {is_unanswerable!r}")
    if is_unanswerable and answer:
        raise ValueError("it is marked unanswerable and has answers; remove one of the two")
    question = Question(_text(row["question"], "question"), answer, None, (), is_unanswerable=is_unanswerable)
    if "documents" in row:
        documents = [_titled(document) for document in _list(row, "documents")]
        first, *more = _gold(row, len(documents))
        contents = [f"{title}\n{text}".strip() for text, title in documents]
        others = [number for number in range(len(documents)) if number not in (first, *more)]
        return *documents[first], question._replace(
            negatives=tuple(contents[number] for number in others), evidence=tuple(contents[number] for number in more)
        )
    return _text(row["passage"], "passage"), _title(row), question


def _gold(row: Mapping[str, Any], count: int) -> list[int]:
    """Which of `count` documents hold the answer."""
    if not count:
        raise ValueError("documents is empty")
    gold = list(_list(row, "gold")) if row.get("gold") is not None else [0]
    if not gold or len(set(gold)) < len(gold) or not all(type(n) is int and 0 <= n < count for n in gold):
        raise ValueError(f"gold must list different numbers of documents, from 0 to {count - 1}, got {gold}")
    return gold


def _chat(row: Mapping[str, Any]) -> Chat:
    if "messages" in row:
        messages = [dict(message) for message in _list(row, "messages")]
    else:
        roles = ("user", "assistant")
        messages = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(_list(row, "text"))]
    for message in messages:
        _text(message["role"], "role")
        _text(message["content"], "content")
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("the chat has no turn of the assistant to learn from")
    return Chat(tuple(messages))


def _instructed(item: Any) -> tuple[str | None, Any]:
    """GritLM's ``[instruction, text]``, or a plain text."""
    if isinstance(item, Sequence) and not isinstance(item, str):
        if len(item) != 2:
            raise ValueError(f"expected [instruction, text], got {len(item)} items")
        return item[0] or None, item[1]
    return None, item


def _titled(document: Any) -> tuple[str, str]:
    if isinstance(document, Mapping):
        return _text(document["text"], "a document"), _title(document)
    return _text(document, "a document"), ""


def _title(fields: Mapping[str, Any]) -> str:
    title = fields.get("title")
    return _text(title, "title") if title else ""


def _list(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = row[key]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{key} must be a list, not {type(value).__name__}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be a text that is not empty, got {value!r}")
    return check_text(value, what)


def _shortest(answers: Sequence[Any]) -> str:
    """The shortest of several right answers: an answer is to be brief."""
    return min((_text(answer, "an answer").strip() for answer in answers), key=len, default="")
