"""Passages that lose one sentence: the one with an answer, so that they are about the matter and do not tell, or one
that does not matter, so that a gap does not give away which of the two it was."""

import random
import re
from collections.abc import Sequence
from itertools import pairwise

from gritrag.train.data.cloze import SMALL_WORDS
from gritrag.train.data.rows import Question
from gritrag.train.data.sentences import sentence_ends

FEWEST_SENTENCES = 3
WORD = re.compile(r"\w+")
TOO_COMMON = frozenset({"yes", "no"})
"""Answers that stand in a passage by chance."""

Span = tuple[int, int]
"""Where a sentence begins, and where the next one does."""


def cut_out(
    text: str, title: str, questions: Sequence[Question], takes_answer: bool, rng: random.Random
) -> tuple[str, list[Question]] | None:
    """A passage without one of its sentences, and its questions as they can be answered now.

    A question is chosen whose answer occurs in one sentence alone, none of its words elsewhere. Its sentence goes if
    `takes_answer`; else the one that is nearest to it in length and holds no answer. Passages that lack either are left
    alone, so both come from the same passages; and those with an answer in words of its own, which may sum up any of
    their sentences.

    Args:
        text: the passage.
        title: it must not hold the answer either.
        questions: of the passage.
        takes_answer: see above.
        rng: every choice is taken from it.

    Returns:
        Text and questions: those whose answer went with the sentence are unanswerable, and those whose answer stood
        there and elsewhere are left out. None for a passage that is left alone.
    """
    ends = [0, *sentence_ends(text), len(text)]
    spans = [span for span in pairwise(ends) if text[slice(*span)].strip()]
    answers = [q.answer for q in questions if q.answer and not q.is_unanswerable]
    is_literal = all(_occurs(answer, text) and answer.lower() not in TOO_COMMON for answer in answers)
    if len(spans) < FEWEST_SENTENCES or not is_literal or any(q.negatives or q.evidence for q in questions):
        return None
    idle = [span for span in spans if not any(_occurs(answer, text[slice(*span)]) for answer in answers)]
    holding = [span for answer in answers for span in spans if _is_lost(answer, text, title, span)]
    if not idle or not holding:
        return None
    span = rng.choice(holding)
    if not takes_answer:
        length = span[1] - span[0]
        span = min(idle, key=lambda other: abs(other[1] - other[0] - length))
    kept = [left for question in questions if (left := _left(question, text, title, span)) is not None]
    return _without(text, span), kept


def _left(question: Question, text: str, title: str, span: Span) -> Question | None:
    """A question once a sentence has gone; None if it is not known whether it can be answered."""
    if question.is_unanswerable or not question.answer or not _occurs(question.answer, text[slice(*span)]):
        return question
    return question._replace(is_unanswerable=True) if _is_lost(question.answer, text, title, span) else None


def _is_lost(answer: str, text: str, title: str, span: Span) -> bool:
    """Whether an answer occurs in this sentence, and no word of it in what remains."""
    if not _occurs(answer, text[slice(*span)]):
        return False
    left = set(WORD.findall(f"{title} {_without(text, span)}".lower()))
    words = set(WORD.findall(answer.lower())) - SMALL_WORDS
    return bool(words) and not words & left


def _occurs(answer: str, text: str) -> bool:
    """Whether it stands in the text in whole words."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def _without(text: str, span: Span) -> str:
    return f"{text[: span[0]]}{text[span[1] :]}".strip()
