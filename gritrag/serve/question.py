"""Question: what is asked, by whom, and what is told on the way to the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from gritrag.config import RELEVANCE_BIAS
from gritrag.index.index import Index
from gritrag.model.sampling import Sampling
from gritrag.model.state import DocumentState
from gritrag.records import Answer, Hit
from gritrag.serve.jobs import Piece, TokenLogprob
from gritrag.serve.tenants import Tenant


@dataclass(frozen=True)
class Asker:
    """Who asks, and until when.

    Args:
        tenant: whose key it was.
        client: whose turns the request takes.
        deadline: of `time.monotonic`.
    """

    tenant: Tenant
    client: str
    deadline: float


@dataclass(frozen=True)
class Question:
    """What is asked, and from what it is to be answered.

    Args:
        text: the question.
        sampling: how to choose tokens and when to stop.
        index: to search; None where `hits` are given or nothing is to be found.
        hits: to answer from instead of a search.
        mode: one of `MODES`.
        k, where, search_mode, relevance_bias, recompute, rerank, unanswerable_above: see `RAG`.
        history: token ids of what was said before, which stand before the documents.
        top_logprobs: how many likeliest tokens to tell; None for none.
        remembers: whether the conversation is kept for the next turn.
    """

    text: str
    sampling: Sampling
    index: Index | None = None
    hits: Sequence[Hit] | None = None
    mode: str = "doc-cache"
    k: int = 5
    where: Mapping[str, Any] | None = None
    search_mode: str = "hybrid"
    relevance_bias: float = RELEVANCE_BIAS
    history: tuple[int, ...] = ()
    top_logprobs: int | None = None
    remembers: bool = False
    recompute: float = 0.0
    rerank: int | None = None
    unanswerable_above: float | None = None


@dataclass(frozen=True)
class Told:
    """One step of an answer: exactly one of the first three is set."""

    hits: Sequence[Hit] | None = None
    piece: Piece | None = None
    answer: Answer | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class States(NamedTuple):
    """States of all hits, the numbers of those that had to be read, and the vectors that reading left."""

    states: list[DocumentState]
    computed: set[int]
    vectors: dict[int, np.ndarray]

    def of(self, numbers: Sequence[int]) -> "States":
        """Of some of the hits, in this order."""
        place = {number: new for new, number in enumerate(numbers)}
        return States(
            [self.states[number] for number in numbers],
            {place[number] for number in self.computed if number in place},
            {place[number]: vector for number, vector in self.vectors.items() if number in place},
        )


@dataclass
class Found:
    """What a search has found for a question, what embedding it left, and the states that ranking took."""

    hits: list[Hit]
    is_ranked: bool
    state: DocumentState | None = None
    vector: np.ndarray | None = None
    states: States | None = None


class Observer(Protocol):
    """Is told of what was done, for traces; see `gritrag.tracing`."""

    def answered(self, questions: Sequence[str], answers: Sequence[Answer], index: str, sampling: Sampling) -> None:
        """These questions were answered just now."""

    def reranked(self, documents: int, tokens: int, seconds: float) -> None:
        """So many documents of so many tokens were ranked."""
