"""Scores of rankings and of answers, one number per question.

Shape letters: `Q` questions.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gritrag.config import DENSE_WEIGHT
from gritrag.evaluate.question_rows import Question
from gritrag.index.index import Index
from gritrag.index.search import MODES
from gritrag.progress import ProgressBar
from gritrag.prompts import NOT_FOUND
from gritrag.records import Hit

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

QUERIES_PER_BATCH = 64
RANKED = "hybrid, ranked from states"
"""The way to search whose candidates are ranked by how probable the question is behind their states."""

ANSWER = ("EM", "F1", "match")

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score_rankings(rankings: Sequence[Sequence[str]], relevant: Sequence[Sequence[str]]) -> Scores:
    """Scores of `Q` rankings of document ids, best first; `relevant` are the documents that each question needs."""
    judged = {str(row): dict.fromkeys(ids, 1) for row, ids in enumerate(relevant)}
    # scores that fall with the rank: ties of the search keep the order that a user would see
    ranked = {str(row): {id: -float(rank) for rank, id in enumerate(ranking)} for row, ranking in enumerate(rankings)}
    names = {measure: name for name, measure in RANKING.items()}
    scores = {name: [0.0] * len(relevant) for name in RANKING}
    for found in ir_measures.iter_calc(list(names), judged, ranked):
        scores[names[found.measure]][int(found.query_id)] = found.value
    return scores


def rank(
    index: Index,
    questions: Sequence[Question],
    dense_weight: float = DENSE_WEIGHT,
    rerank: int | None = None,
    ranked_hits: dict[str, list[Hit]] | None = None,
) -> dict[str, Scores]:
    """By way to search, one number per question of every score of `scores.RANKING`.

    Args:
        dense_weight: of hybrid search.
        rerank: so many candidates of hybrid search are ranked from their states, which makes a way of its own.
        ranked_hits: gets the `DEPTH` best of that way by text of the question, for whoever asks them again.
    """
    texts, relevant = (
        [question.text for question in questions],
        [[document.id for document in question.gold] for question in questions],
    )
    ways: dict[str, dict[str, Any]] = {mode: {"mode": mode} for mode in MODES}
    if rerank is not None:
        ways[RANKED] = {"mode": "hybrid", "rerank": max(rerank, DEPTH)}
    found: dict[str, Scores] = {}
    with ProgressBar(total=len(ways) * len(texts), desc="searching", unit="question") as bar:
        for way, options in ways.items():
            rankings: list[list[str]] = []
            for start in range(0, len(texts), QUERIES_PER_BATCH):
                asked = texts[start : start + QUERIES_PER_BATCH]
                batch = index.search_many(asked, DEPTH, dense_weight=dense_weight, **options)
                rankings += [[hit.document.id for hit in hits] for hits in batch]
                if ranked_hits is not None and way == RANKED:
                    ranked_hits.update(zip(asked, batch, strict=True))
                bar.update(len(batch))
            found[way] = score_rankings(rankings, relevant)
    return found


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016, SQuAD, section 6.1)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def score_answer(text: str, answers: Sequence[str]) -> dict[str, float]:
    """The best over all right answers of: EM (equal), F1 (of words), match (whole, somewhere in the text); normalised,
    as far as that leaves anything of them.

    Raises:
        ValueError: no right answer to compare with.
    """
    if not answers:
        raise ValueError("an answer cannot be scored without right answers to compare it with")
    said, right = _compared(text), [_compared(answer) for answer in answers]
    return {
        "EM": float(said in right),
        "F1": max(_f1(said.split(), answer.split()) for answer in right),
        "match": float(any(f" {answer} " in f" {said} " for answer in right)),
    }


def _compared(text: str) -> str:
    """Normalised; as it is in lower case where nothing would be left, such as of "A" or "%": silence is not that."""
    return normalise(text) or " ".join(text.lower().split())


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(said == right)
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right))


def says_not_found(text: str) -> bool:
    """Whether an answer says that the documents do not hold one."""
    return f" {normalise(NOT_FOUND)} " in f" {normalise(text)} "
