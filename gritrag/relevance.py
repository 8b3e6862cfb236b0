"""Relevance: how much the state of each document counts in an answer, by the scores of a search.

Shape letters: `D` dimension of a vector.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gritrag.arguments import real
from gritrag.model.grit import GritModel
from gritrag.modes import Mode
from gritrag.records import Hit

__all__ = ["check_relevance_bias", "lacks_scores", "relevance_biases", "scored"]

MOST_BIAS = 1_000_000
"""Far less already leaves a document no weight."""


def relevance_biases(scores: Sequence[float], relevance_bias: float) -> list[float]:
    """From 0 for the best down to minus `relevance_bias` for a document of score 0; all 0 where no score is above 0."""
    known = [max(score, 0.0) if math.isfinite(score) else 0.0 for score in scores]
    best = max(known, default=0.0)
    return [relevance_bias * (score / best - 1) if best > 0 else 0.0 for score in known]


def lacks_scores(model: GritModel, mode: Mode, relevance_bias: float, hits: Sequence[Hit]) -> bool:
    """Whether states of these documents get a relevance bias, and no score says which; see `scored`."""
    is_biased = relevance_bias > 0 and mode.reuses_documents and model.decoder.takes_biases
    return is_biased and len(hits) > 1 and not any(hit.score > 0 for hit in hits)


def scored(hits: Sequence[Hit], vectors: Sequence[np.ndarray | None], vector_D: np.ndarray) -> list[Hit]:
    """The hits with the similarity to the question as score.

    Args:
        hits: of documents that came without scores.
        vectors: of these documents, `[D]`; None where one is not known, whose score is 0.
        vector_D: of the question.
    """
    found = [None if vector is None else float(vector @ vector_D) for vector in vectors]
    return [replace(hit, score=each or 0.0, similarity=each) for hit, each in zip(hits, found, strict=True)]


def check_relevance_bias(value: float) -> None:
    """Refuse what is no relevance bias.

    Raises:
        ValueError: it is below 0, no number, or more than any precision holds.
    """
    if not 0 <= real("relevance_bias", value) <= MOST_BIAS:
        raise ValueError(f"relevance_bias must be from 0 (none) to {MOST_BIAS:,}, got {value!r}")
