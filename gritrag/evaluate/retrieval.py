"""Rankings of an index's documents for each question, by every way to search, and their scores."""

from collections.abc import Sequence

from gritrag.config import DENSE_WEIGHT
from gritrag.evaluate import scores
from gritrag.evaluate.rows import Question
from gritrag.evaluate.scores import Scores
from gritrag.index.index import Index
from gritrag.index.search import MODES
from gritrag.progress import ProgressBar

QUERIES_PER_BATCH = 64


def rank(index: Index, questions: Sequence[Question], dense_weight: float = DENSE_WEIGHT) -> dict[str, Scores]:
    """By search mode, one number per question of every score of `scores.RANKING`; `dense_weight` is hybrid's."""
    texts, relevant = [question.text for question in questions], [question.document.id for question in questions]
    found: dict[str, Scores] = {}
    with ProgressBar(total=len(MODES) * len(texts), desc="searching", unit="question") as bar:
        for mode in MODES:
            rankings: list[list[str]] = []
            for start in range(0, len(texts), QUERIES_PER_BATCH):
                asked = texts[start : start + QUERIES_PER_BATCH]
                batch = index.search_many(asked, scores.DEPTH, mode=mode, dense_weight=dense_weight)
                rankings += [[hit.document.id for hit in hits] for hits in batch]
                bar.update(len(batch))
            found[mode] = scores.score_rankings(rankings, relevant)
    return found
