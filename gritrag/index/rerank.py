"""Ranking from states: candidates of a search ranked anew by how probable the question is behind each of their states.

`N` candidates, `S` tokens of the question.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from gritrag.arguments import whole
from gritrag.complements import LEAST_GAIN, complements
from gritrag.index.protocol import Reader
from gritrag.index.storage.states import DocumentState
from gritrag.records import Hit

__all__ = ["Ranker", "check_rerank", "ranked", "ranker"]

LOG_WEIGHT = 0.3
"""Of a nat per token of the question, against the scores of a search scaled to [0, 1]. Chosen on validation sets, see
docs/experiments/2026-11-ranking.md."""

MOST_BELOW = 1.0
"""Nats per token by which a document can be below the best: further ones are no less relevant. So one that answers half
of a question keeps its place."""

BELOW = 0.1
"""How far below the best a document is put that explains what the best one does not. At the same score, questions that
need one document lose twice what those gain that need several; see docs/experiments/2026-11-several-documents.md."""


@runtime_checkable
class Ranker(Protocol):
    """A model that ranks from states; not every `Reader` can."""

    def question_token_log_likelihoods(self, question: str, states: Sequence[DocumentState]) -> np.ndarray:
        """float32 `[N, S]`: log-probability of each of the question's tokens behind each state, in nats."""


def check_rerank(rerank: int | None, k: int, mmr: float | None = None) -> None:
    """Refuse a number of candidates that makes no sense.

    Raises:
        ValueError: it is no whole number, below `k`, or comes with `mmr`.
    """
    if rerank is None:
        return
    try:
        is_enough = whole("rerank", rerank) >= k
    except ValueError:
        is_enough = False
    if not is_enough:
        raise ValueError(
            f"rerank is how many candidates are ranked from their states: at least k = {k}, not {rerank!r}"
        )
    if mmr is not None:
        raise ValueError("mmr and rerank each decide the order: give one of them")


def ranker(model: Reader) -> Ranker:
    """The model, if it ranks.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(model, Ranker):
        raise ValueError(f"a {type(model).__name__} does not rank from states; leave rerank out")
    return model


def ranked(
    hits: Sequence[Hit], logs_NS: np.ndarray, k: int, least_gain: float = LEAST_GAIN, below: float = BELOW
) -> list[Hit]:
    """The `k` best of the hits by both: how the search scored them, and how probable the question is behind each.

    Where the question needs several documents, those that explain what the best one does not get a score that
    is `below` its own at most: they weigh nearly as much in an answer. See `complements` for `least_gain`.
    """
    if not hits:
        return []
    logs_N = logs_NS.astype(np.float64).mean(1)
    scores_N = combined(np.array([hit.score for hit in hits], np.float64), logs_N)
    best = int(scores_N.argmax())
    further = complements(logs_NS, best, least_gain)
    scores_N[further] = np.maximum(scores_N[further], scores_N[best] - below)
    first = {row: number for number, row in enumerate([best, *further])}
    order = sorted(range(len(hits)), key=lambda row: (-scores_N[row], first.get(row, len(hits)), row))[:k]
    return [
        replace(hits[row], score=float(scores_N[row]), rank=rank, is_complement=row in further)
        for rank, row in enumerate(order, start=1)
    ]


def combined(scores_N: np.ndarray, logs_N: np.ndarray) -> np.ndarray:
    """Scores of a search, scaled to [0, 1] whatever its mode, and by how much log-probabilities are below the greatest.

    The best of a search behind which the question is most probable has 1. Where all scores are alike, only
    probabilities differ.
    """
    spread = np.ptp(scores_N)
    scaled_N = (scores_N - scores_N.min()) / spread if spread > 0 else np.ones_like(scores_N)
    below_N = np.minimum(logs_N.max() - logs_N, MOST_BELOW)
    total_N: np.ndarray = scaled_N - LOG_WEIGHT * below_N
    return total_N
