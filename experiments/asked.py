"""Questions of a file one by one, and pairs of neighbouring ones asked together ("A? And B?").

Most pairs need two documents; where both questions are about the same one, that is enough. Pairs of the two kinds are
as long and look the same.
"""

from collections.abc import Sequence
from itertools import pairwise, product, zip_longest
from pathlib import Path

from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.rows import evenly, read_questions
from gritrag.records import Document

K = 5
"""Documents that a question is answered from."""

MOST_ANSWERS = 4
"""Wordings of one question's answer that are joined with those of another's."""

HALVES = {"even": slice(0, None, 2), "odd": slice(1, None, 2), "all": slice(None)}

TWO, ONE, SAME = KINDS = ("Pairs of two documents", "Questions one by one", "Pairs of one document")


def questions_of(path: Path, half: str, single: int, pairs: int) -> list[Question]:
    """So many answerable questions, and pairs of two documents, of every second row of a file, spread evenly and in
    turn.

    Raises:
        ValueError: no such half, or a broken file.
    """
    if half not in HALVES:
        raise ValueError(f"half must be one of {', '.join(HALVES)}, not {half!r}")
    own = _answerable(path)[HALVES[half]]
    joined = [_together(one, other) for one, other in pairwise(own) if one.document != other.document]
    turns = zip_longest(evenly(joined, pairs), evenly(own, single))
    return [question for turn in turns for question in turn if question is not None]


def questions_by_kind(path: Path, single: int, pairs: int) -> list[tuple[str, Question]]:
    """So many of each of `KINDS`, spread evenly and in turn.

    Raises:
        ValueError: a broken file.
    """
    own = _answerable(path)
    same = [_together(one, other) for one, other in pairwise(own) if one.document == other.document]
    plain = [(TWO if question.needed else ONE, question) for question in questions_of(path, "all", single, pairs)]
    turns = zip_longest(plain, [(SAME, question._replace(needed=())) for question in evenly(same, pairs)])
    return [each for turn in turns for each in turn if each is not None]


def documents_of(path: Path, questions: Sequence[Question], most: int) -> list[Document]:
    """What the questions need, and further passages of the file."""
    needed = {document.id: document for question in questions for document in question.gold}
    others = [question.document for question in read_questions(path) if question.document.id not in needed]
    others = list({document.id: document for document in others}.values())
    return [*needed.values(), *evenly(others, max(0, most - len(needed)))]


def _answerable(path: Path) -> list[Question]:
    """Those with answers, each by its number among them."""
    read = [question for question in read_questions(path) if question.answers]
    return [question._replace(id=str(number)) for number, question in enumerate(read)]


def _together(one: Question, other: Question) -> Question:
    """Both questions as one, which needs both documents."""
    texts = [question.text.strip().rstrip("?") for question in (one, other)]
    answers = product(one.answers[:MOST_ANSWERS], other.answers[:MOST_ANSWERS])
    return Question(
        f"{one.id}+{other.id}",
        f"{texts[0]}? And {texts[1]}?",
        tuple(f"{first} and {second}" for first, second in answers),
        one.document,
        (),
        (other.document,),
    )
