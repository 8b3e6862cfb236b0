"""Scores of rankings and of answers, one number per question, and what a sample of questions says about their mean.

Shape letters: `Q` questions, `S` systems, `R` resamples.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

try:
    import ir_measures
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"evaluation needs {error.name}, which is not installed; run: pip install 'gritrag[eval]'", name=error.name
    ) from error

Scores = dict[str, list[float]]
"""By name of the score, one number in [0, 1] per question."""

RANKING = {
    "recall@1": ir_measures.R @ 1,
    "recall@5": ir_measures.R @ 5,
    "recall@20": ir_measures.R @ 20,
    "nDCG@10": ir_measures.nDCG @ 10,
    "MRR@10": ir_measures.RR @ 10,
}
DEPTH = 20
"""How much of a ranking these scores look at."""

ANSWER = ("EM", "F1", "match")
RESAMPLES = 1000

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score_rankings(rankings: Sequence[Sequence[str]], relevant: Sequence[str]) -> Scores:
    """Scores of `Q` rankings of document ids, best first, where one document answers each question."""
    judged = {str(row): {id: 1} for row, id in enumerate(relevant)}
    # scores that fall with the rank: ties of the search keep the order that a user would see
    ranked = {str(row): {id: -float(rank) for rank, id in enumerate(ranking)} for row, ranking in enumerate(rankings)}
    names = {measure: name for name, measure in RANKING.items()}
    scores = {name: [0.0] * len(relevant) for name in RANKING}
    for found in ir_measures.iter_calc(list(names), judged, ranked):
        scores[names[found.measure]][int(found.query_id)] = found.value
    return scores


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016, SQuAD, section 6.1)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def score_answer(text: str, answers: Sequence[str]) -> dict[str, float]:
    """The best over all right answers of: EM (equal), F1 (of words), match (whole, somewhere in the text); normalised.

    Raises:
        ValueError: no right answer to compare with.
    """
    if not answers:
        raise ValueError("an answer cannot be scored without right answers to compare it with")
    said, right = normalise(text), [normalise(answer) for answer in answers]
    return {
        "EM": float(said in right),
        "F1": max(_f1(said.split(), answer.split()) for answer in right),
        "match": float(any(f" {answer} " in f" {said} " for answer in right)),
    }


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(said == right)
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right))


@dataclass(frozen=True)
class Interval:
    """An estimate from `n` questions, and the bounds of its 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    def show(self, form: str = ".1f") -> str:
        """In points of 100."""
        return f"{100 * self.mean:{form}} [{100 * self.low:{form}}, {100 * self.high:{form}}]"


def mean(values_Q: Sequence[float], seed: int) -> Interval:
    """The mean over questions."""
    return _interval(float(np.mean(values_Q)), _resampled([values_Q], seed)[:, 0], len(values_Q))


def difference(a_Q: Sequence[float], b_Q: Sequence[float], seed: int) -> Interval:
    """Mean of `a` - `b`, paired: both were scored on the same questions."""
    return mean(np.subtract(a_Q, b_Q).tolist(), seed)


def ratio(a_Q: Sequence[float], b_Q: Sequence[float], seed: int) -> Interval | None:
    """Mean of `a` over mean of `b`, paired. Resamples in which `b` is 0 are left out; None if `b` is 0 throughout."""
    if not any(b_Q):
        return None
    means_RS = _resampled([a_Q, b_Q], seed)
    means_RS = means_RS[means_RS[:, 1] > 0]
    return _interval(float(np.mean(a_Q) / np.mean(b_Q)), means_RS[:, 0] / means_RS[:, 1], len(a_Q))


def _resampled(values_SQ: Sequence[Sequence[float]], seed: int) -> np.ndarray:
    """Means `[R, S]` over questions drawn with replacement, the same ones for all systems (Efron 1979)."""
    array_SQ, draw = np.asarray(values_SQ, np.float64), np.random.default_rng(seed)
    questions = array_SQ.shape[1]
    return np.stack([array_SQ[:, draw.integers(questions, size=questions)].mean(axis=1) for _ in range(RESAMPLES)])


def _interval(estimate: float, estimates_R: np.ndarray, questions: int) -> Interval:
    low, high = np.quantile(estimates_R, (0.025, 0.975)).tolist()
    return Interval(estimate, low, high, questions)
