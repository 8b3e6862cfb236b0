"""Draws: which of a step's questions are answered, together with which other one, from which documents, in which order.

Nothing here knows of tokens but how many a document has.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gritrag.config import RELEVANCE_BIAS
from gritrag.train.data.rows import Question
from gritrag.train.objectives.config import GenerativeConfig

P_FOUND_FIRST = 0.85
"""Share of contexts with a relevance bias whose own document has the best score, about as hybrid search finds it."""

STRENGTHS = (0.0, 0.25, 0.5, 1.0)
"""Shares of the full relevance bias, one of which a context that shares positions is given."""

LONGEST_JOINED = 12
"""Words of an answer that may be joined with that of another question."""


class Asked(NamedTuple):
    """A question that may be answered.

    Args:
        row: of its document.
        query: row of the query, None where it is none.
        question: see `Question`.
        evidence: rows of further documents that the answer needs.
        beside: rows of the other documents of its row of the file, which do not hold the answer.
    """

    row: int
    query: int | None
    question: Question
    evidence: tuple[int, ...] = ()
    beside: tuple[int, ...] = ()

    @property
    def needed(self) -> tuple[int, ...]:
        """Rows of all documents that the answer needs."""
        return (self.row, *self.evidence)


class Drawn(NamedTuple):
    """A question with its context.

    Args:
        question: as it is asked.
        answer: as it is to be answered.
        context: rows of documents, in order.
        start: position where the context begins.
        biases: relevance bias of each document of the context; empty for none.
        query: row of its query, None where it is none.
    """

    question: str
    answer: str
    context: tuple[int, ...]
    start: int
    biases: tuple[float, ...]
    query: int | None


def draw(
    asked: Sequence[Asked],
    texts: Sequence[str],
    lengths: Sequence[int],
    count: int,
    config: GenerativeConfig,
    rng: random.Random,
) -> Iterator[Drawn]:
    """At most `count` of the questions that have an answer, each with its own documents among others, in any order.

    Args:
        asked: what may be answered.
        texts: of all documents of the step.
        lengths: their tokens.
        rng: every choice is taken from it.
    """
    answerable = [one for one in asked if one.question.answer or one.question.is_unanswerable]
    for one in _some(answerable, count, rng):
        pair = one
        if config.p_two_documents and rng.random() < config.p_two_documents:
            pair = _with_another(one, answerable, rng)
        yield _drawn(pair, texts, lengths, config, rng)


def _drawn(
    asked: Asked, texts: Sequence[str], lengths: Sequence[int], config: GenerativeConfig, rng: random.Random
) -> Drawn:
    question = asked.question
    answer = config.not_found if question.is_unanswerable else question.answer
    needed, others = list(asked.needed), _others(asked, len(texts), config.p_near, rng)
    if question.is_unanswerable and question.answer:  # its own document has lost it: no other one may tell
        others = [row for row in others if question.answer.lower() not in texts[row].lower()]
    if not question.is_unanswerable and not asked.evidence and rng.random() < config.p_unanswerable:
        own = texts[asked.row]  # copies of it may stand among the documents of other rows
        without = [row for row in others if answer.lower() not in texts[row].lower() and own not in texts[row]]
        if without:
            needed, others, answer = without[:1], without[1:], config.not_found
    size = rng.choice(config.documents_per_context)
    if asked.beside:  # passages that belong together are seen together
        size, others = len(others) + 1, [row for row in others if row in asked.beside]
    context, room = list(needed), config.max_context_tokens - sum(lengths[row] for row in needed)
    for row in others[: max(0, size - len(needed))]:
        if lengths[row] <= room:
            context.append(row)
            room -= lengths[row]
    rng.shuffle(context)
    start = rng.randint(0, config.max_start)
    biases: tuple[float, ...] = ()
    if config.p_relevance_bias and len(context) > 1 and rng.random() < config.p_relevance_bias:
        biases = _biases(len(context), [context.index(row) for row in needed], rng)
    return Drawn(question.text, answer, tuple(context), start, biases, asked.query)


def _others(asked: Asked, count: int, p_near: float, rng: random.Random) -> list[int]:
    """Rows of other documents as they are taken: in random order, or the nearest in the batch first."""
    left = [row for row in range(count) if row not in asked.needed]
    others = rng.sample(left, len(left))
    if p_near and rng.random() < p_near:
        others.sort(key=lambda row: abs(row - asked.row))
    return others


def _with_another(one: Asked, asked: Sequence[Asked], rng: random.Random) -> Asked:
    """A question together with one on another document, the nearest of a few that chance draws; as it is where there
    is no other, or where answers are too long to be told apart in a sentence."""

    def is_short(other: Asked) -> bool:
        question = other.question
        return (
            bool(question.answer)
            and not question.is_unanswerable
            and not other.evidence
            and len(question.answer.split()) <= LONGEST_JOINED
        )

    others = [other for other in asked if is_short(other) and other.row != one.row]
    if not others or not is_short(one):
        return one
    few = rng.sample(others, min(len(others), 3))
    other = min(few, key=lambda candidate: abs(candidate.row - one.row))
    first, second = (one, other) if rng.random() < 0.5 else (other, one)
    text = second.question.text
    text = text if text.split()[0].isupper() else text[0].lower() + text[1:]
    joined = Question(
        f"{first.question.text.strip()} And {text}", f"{first.question.answer} and {second.question.answer}", None, ()
    )
    return Asked(first.row, None, joined, evidence=(second.row,))


def _biases(count: int, needed: Sequence[int], rng: random.Random) -> tuple[float, ...]:
    """Of `count` documents, as a search might have scored them: those that are needed first in most cases.

    How strongly scores weigh differs, so that answers do not hang on one strength.
    """
    scores = [rng.random() for _ in range(count)]
    for row in needed:
        scores[row] = 1.0 if row == needed[0] else rng.uniform(0.7, 1.0)
    if rng.random() >= P_FOUND_FIRST:
        for row in needed:
            scores[row] = rng.uniform(0.5, 1.0)
        others = [row for row in range(count) if row not in needed]
        scores[rng.choice(others or list(needed))] = 1.0
    strength = RELEVANCE_BIAS * rng.choice(STRENGTHS)
    return tuple(strength * (score - 1) for score in scores)


def _some(asked: Sequence[Asked], count: int, rng: random.Random) -> list[Asked]:
    """So many of them; made ones fill what the others leave free."""
    given = [one for one in asked if not one.question.is_made]
    made = [one for one in asked if one.question.is_made]
    chosen = rng.sample(given, min(len(given), count))
    return [*chosen, *rng.sample(made, min(len(made), count - len(chosen)))]
