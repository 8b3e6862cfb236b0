"""Hits to the context of an answer: which states, in which order, which tokens remain. Only this file knows the order.

Shape letters: `T` tokens.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import add
from typing import NamedTuple

import numpy as np
import torch

from gritrag.arguments import real
from gritrag.model.answerability import Refusal
from gritrag.model.context import Context, Part
from gritrag.model.grit import GritModel
from gritrag.model.recompute import FIRST_TOKENS
from gritrag.model.state import DocumentState
from gritrag.modes import MODES, NO_RETRIEVAL, Mode
from gritrag.records import Citation, Document, Hit, as_documents, as_hits, check_hits
from gritrag.relevance import relevance_biases

__all__ = [
    "ContextPlan",
    "Given",
    "Retrieved",
    "check_recompute",
    "check_takes_recompute",
    "plan_context",
]

logger = logging.getLogger(__name__)

UNBIASED_SHARE = 0.4
"""Of tokens that are read again: then what matters has been read with all documents in sight, as text is."""


class Given(NamedTuple):
    """What one question is to be answered from; `is_best_last` as in `Retrieved`."""

    hits: list[Hit]
    is_best_last: bool

    @classmethod
    def many(
        cls,
        questions: int,
        hits: Sequence[Sequence[Hit]] | None,
        documents: Sequence[Sequence[Document | str]] | None,
    ) -> "list[Given] | None":
        """For each of so many questions; None where searches are to find it."""
        if hits is not None and documents is not None:
            raise ValueError("give hits (the best first) or documents (in context order), not both")
        for what, lists in (("hits", hits), ("documents", documents)):
            if lists is not None and len(lists) != questions:
                raise ValueError(f"got {questions} questions and {len(lists)} lists of {what}; give one list for each")
        if documents is not None:
            return [cls(as_hits(as_documents(each)), is_best_last=False) for each in documents]
        return None if hits is None else [cls(check_hits(each), is_best_last=True) for each in hits]


@dataclass(frozen=True)
class Retrieved:
    """What the context of one answer is planned from.

    Args:
        question: its text.
        hits: as they were found or given.
        states: of the hits, where they are reused; None to read the documents again.
        question_state: that of the question, likewise.
        computed: numbers of the states that were missing and have been read for this answer.
        is_best_last: the context has the hits in reverse, the first one next to what comes behind the documents.
        question_vector: of the question `[dim]`, where documents came without scores: their similarity to it is used.
    """

    question: str
    hits: Sequence[Hit]
    states: Sequence[DocumentState] | None = None
    question_state: DocumentState | None = None
    computed: Collection[int] = ()
    is_best_last: bool = False
    question_vector: np.ndarray | None = None


@dataclass(frozen=True)
class ContextPlan:
    """What one answer is decoded from.

    Args:
        context: states and the tokens that are still to be read, in order.
        citations: the documents of the context and their token spans.
        is_exact: whether the uncached run of the same segments would give the same tokens.
        cached_tokens: those of states that were there; a state that was missing has been read for this answer.
        refusal: when to say that the documents do not hold the answer; None where the model cannot tell.
        numbers: of the hits that the documents of the context are, in its order.
    """

    context: Context
    citations: tuple[Citation, ...]
    is_exact: bool
    cached_tokens: int
    refusal: Refusal | None = None
    numbers: tuple[int, ...] = ()

    def hits_of(self, hits: Sequence[Hit], complements: Collection[int]) -> tuple[Hit, ...]:
        """The hits that this was planned from, marked where their document is among these numbers of the context's."""
        found = {self.numbers[number] for number in complements}
        return tuple(replace(hit, is_complement=hit.is_complement or n in found) for n, hit in enumerate(hits))

    def refuses(self, unanswerable: float | None) -> bool:
        """Whether that probability made the answer: what the uncached run would have said is not known then."""
        return self.refusal is not None and self.refusal.is_due(unanswerable)


def plan_context(
    model: GritModel,
    mode: Mode,
    retrieved: Retrieved,
    *,
    room: int = 0,
    relevance_bias: float = 0.0,
    recompute: float = 0.0,
    unanswerable_above: float | None = None,
) -> ContextPlan:
    """Documents and question in the order of the mode. Cached and uncached plans are the same token ids.

    Documents that do not fit beside question and answer are left out, with a warning: those that are too long on their
    own, and of the others the last ones. They are hits, but not citations.

    Args:
        room: tokens to leave for the answer.
        relevance_bias: of states of documents; see `RAG`. Those that have one share their positions.
        recompute: share of tokens that will be read again, with all documents in sight: so these stand one behind the
            other, and half the bias will do, less by that share: none from `UNBIASED_SHARE` on. The first tokens of the
            context have none of it: once those of the others have been read again, they alone are the sink of
            attention, and a context without one is answered by chance; see docs/experiments/2026-11-recompute.md.
        unanswerable_above: see `RAG`.

    Raises:
        ValueError: not one document fits.
    """
    hits, states = retrieved.hits, retrieved.states
    before, after = (mode if hits else NO_RETRIEVAL).frame(model, retrieved.question, retrieved.question_state)
    documents = _documents(model, hits, states)
    start = sum(map(len, before))
    bias = relevance_bias if states is not None and not recompute and model.decoder.takes_biases else 0.0
    kept = _kept(model, hits, documents, start + sum(map(len, after)), room, bias)
    biased = [documents[number] for number in kept]
    if states is not None:
        biases = relevance_biases([hits[number].score for number in kept], relevance_bias)
        biased = _biased(biased, biases, recompute)
    order = range(len(kept))[:: -1 if retrieved.is_best_last else 1]
    placed = [biased[number] for number in order]
    if recompute and placed and not before and placed[0].state is not None:
        placed[0] = replace(placed[0], unbiased=FIRST_TOKENS)
    numbers = tuple(kept[number] for number in order)
    ends = dict(zip(numbers, _ends(start, placed), strict=True))
    citations = tuple(_citation(hits[own].document, ends[own], len(documents[own])) for own in kept)
    is_plain = mode is MODES["doc-cache"] and not recompute
    context = model.decoder.usable(Context((*before, *placed, *after), seeks_complements=is_plain))
    new = {id(documents[number].content) for number in retrieved.computed}
    cached = sum(len(each.state) for each in context.states if id(each.state) not in new)
    nearest = _nearest([hits[number] for number in kept])
    refusal = model.refusal(nearest, unanswerable_above) if is_plain else None
    return ContextPlan(context, citations, _is_exact(model, context), cached, refusal, numbers)


def _documents(model: GritModel, hits: Sequence[Hit], states: Sequence[DocumentState] | None) -> list[Part]:
    """Of each hit the state, or its tokens where states are not reused."""
    if states is not None:
        return [Part(state) for state in states]
    return [Part(tuple(model.document_token_ids(hit.document))) for hit in hits]


def _citation(document: Document, end: int, tokens: int) -> Citation:
    return Citation(document.id, document.title, end - tokens, end)


def _biased(documents: Sequence[Part], biases: Sequence[float], recompute: float) -> list[Part]:
    """States with their relevance bias, side by side where there is any; see `plan_context` for `recompute`."""
    left = max(0.0, 1 - recompute / UNBIASED_SHARE) / 2 if recompute else 1.0
    shares = any(biases) and not recompute
    return [
        replace(part, relevance_bias=left * bias, shares_positions=shares)
        for part, bias in zip(documents, biases, strict=True)
    ]


def _nearest(hits: Sequence[Hit]) -> float | None:
    """The greatest similarity of a hit to the question; None where none is known."""
    return max((hit.similarity for hit in hits if hit.similarity is not None), default=None)


def _kept(
    model: GritModel, hits: Sequence[Hit], documents: Sequence[Part], question: int, room: int, relevance_bias: float
) -> list[int]:
    """Numbers of the documents that fit beside `question` tokens and `room` for the answer. Where they get a relevance
    bias, they share positions, and only the longest counts."""
    short = _short(model, hits, documents, question, room)
    shares = any(relevance_biases([hits[number].score for number in short], relevance_bias))
    most = model.context_length - question - room
    return _fitting(short, [len(documents[number]) for number in short], max if shares else add, most)


def _short(model: GritModel, hits: Sequence[Hit], documents: Sequence[Part], question: int, room: int) -> list[int]:
    """Numbers of the documents that are not too long on their own, beside `question` tokens and `room` for the answer.

    Raises:
        ValueError: there are documents, and none fits.
    """
    most = model.context_length - question - room
    short = [number for number, document in enumerate(documents) if len(document) <= most]
    if hits and not short:
        raise ValueError(
            f"document {hits[0].document.called} has {len(documents[0])} tokens, the question "
            f"{question} and the answer up to {room}: more than the {model.context_length} this model "
            "takes; index shorter chunks"
        )
    for number in sorted(set(range(len(hits))) - set(short)):
        logger.warning(
            "document %s is left out: it has %d tokens, and there is room for %d; index shorter chunks",
            hits[number].document.called,
            len(documents[number]),
            most,
        )
    return short


def _fitting(
    numbers: Sequence[int], lengths: Sequence[int], together: Callable[[int, int], int], most: int
) -> list[int]:
    """Of numbers of documents, as many as `most` positions hold, from the first one on.

    Args:
        numbers: each document fits on its own.
        lengths: of these documents, in tokens.
        together: how many positions two documents take, from those of each: their sum, or the longer one's where they
            share them.
    """
    kept = [number for number, end in zip(numbers, accumulate(lengths, together), strict=True) if end <= most]
    if len(kept) < len(numbers):
        logger.warning(
            "only the first %d of %d documents fit the context; the others are left out", len(kept), len(numbers)
        )
    return kept


def check_recompute(value: float) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: it is below 0 or above 1.
    """
    if not 0 <= real("recompute", value) <= 1:
        raise ValueError(f"recompute must be from 0 (nothing is read again) to 1 (everything), got {value!r}")


def check_takes_recompute(model: GritModel, recompute: float) -> None:
    """Refuse to read again what cannot be.

    Raises:
        ValueError: the model has sliding windows, or takes no masks by token.
    """
    if recompute and not model.decoder.takes_recompute:
        raise ValueError(
            "recompute is not for models with sliding windows, nor for those that take no mask of their tokens: leave "
            "it out, or read the documents as text with mode='doc-query'"
        )


def _ends(start: int, parts: Sequence[Part]) -> list[int]:
    return list(accumulate(map(len, parts), initial=start))[1:]


def _is_exact(model: GritModel, context: Context) -> bool:
    """Nothing is reused, or one state that stands where it was read, as it was computed. In fewer bits than float32,
    keys are rounded again where they are placed."""
    if not context.states:
        return True
    (state, position, *_), *others = context.states
    return (
        not others
        and position == 0
        and state.is_lossless  # first: to look at the keys of a packed state unpacks it
        and state.reading == "causal"
        and model.decoder.shape.dtype == state.keys.dtype == torch.float32
    )
