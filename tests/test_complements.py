"""Complements: which documents join the best one, and where they come in a ranking."""

from dataclasses import replace

import numpy as np
import pytest

from gritrag.complements import LEAST_GAIN, WINDOW, complements, gains
from gritrag.index.rerank import BELOW, ranked
from gritrag.records import Document, Hit

TOKENS = 40
PROBABLE, IMPROBABLE = -1.0, -6.0


def explaining(*spans: range) -> np.ndarray:
    """float32 `[N, S]`: each document makes one stretch of the question probable."""
    logs_NS = np.full((len(spans), TOKENS), IMPROBABLE, np.float32)
    for row, span in enumerate(spans):
        logs_NS[row, span] = PROBABLE
    return logs_NS


def hits_of(*scores: float) -> list[Hit]:
    return [Hit(Document(f"text {n}", id=str(n)), score, n + 1) for n, score in enumerate(scores)]


def test_documents_that_explain_other_words_are_complements_the_most_helpful_first() -> None:
    logs_NS = explaining(range(16), range(16), range(16, 26), range(26, 40))
    assert complements(logs_NS, 0) == [3, 2]
    assert complements(logs_NS, 3) == [0, 2]
    assert complements(logs_NS[:2], 0) == [], "another document that explains the same words adds nothing"


def test_one_document_that_explains_everything_is_enough() -> None:
    assert complements(explaining(range(TOKENS), range(16), range(16, 40)), 0) == []


def test_guessing_single_tokens_better_here_and_there_is_no_complement() -> None:
    logs_NS = np.full((2, TOKENS), -2.0, np.float32)
    logs_NS[1] -= 0.25
    logs_NS[1, ::WINDOW] = PROBABLE
    assert np.maximum(*logs_NS).mean() - logs_NS[0].mean() == pytest.approx(0.2)
    assert complements(logs_NS, 0, least_gain=0.1) == []


def test_the_gain_counts_per_token_of_the_question() -> None:
    """The same words beside twice as many others are half as much of the question."""
    half = TOKENS // 2
    logs_NS = explaining(range(half), range(0))
    logs_NS[1, half:] = IMPROBABLE + 2 * LEAST_GAIN + 0.3  # some of it is lost where both meet
    assert complements(logs_NS, 0) == [1]
    rest = np.full((2, TOKENS), IMPROBABLE, np.float32)
    assert complements(np.concatenate([logs_NS, rest], 1), 0) == []


def test_short_questions_and_what_is_no_number() -> None:
    assert complements(np.array([[-1.0], [-9.0]], np.float32), 0) == []
    assert complements(np.array([[-1.0], [-9.0]], np.float32), 1) == [0]
    assert complements(np.full((3, 4), np.nan, np.float32), 0) == []
    assert complements(np.zeros((1, 6), np.float32), 0) == []


def test_complements_come_behind_the_best_with_a_score_close_to_its_own() -> None:
    hits = hits_of(1.0, 0.9, 0.8, 0.0)
    logs_NS = explaining(range(18), range(18), range(18), range(18, 40))
    logs_NS[3] -= 0.5
    alone, together = (ranked(hits, logs_NS, 3, least) for least in (np.inf, LEAST_GAIN))
    assert [hit.document.id for hit in alone] == ["0", "1", "2"]
    assert [hit.document.id for hit in together] == ["0", "3", "1"]
    assert [hit.rank for hit in together] == [1, 2, 3]
    assert together[0].score == alone[0].score
    assert together[1].score == pytest.approx(alone[0].score - BELOW)
    assert together[2] == replace(alone[1], rank=3)
    assert [hit.is_complement for hit in (*alone, *together)] == [False] * 4 + [True, False]


def test_the_best_document_stays_the_best() -> None:
    hits = hits_of(0.0, 1.0)
    logs_NS = explaining(range(18, 40), range(18))
    assert [hit.document.id for hit in ranked(hits, logs_NS, 2)] == ["1", "0"], "also where a complement comes before"


@pytest.mark.parametrize("least", [0.0, -0.1, np.nan])
def test_a_gain_that_any_document_adds_is_refused(least: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        complements(explaining(range(TOKENS)), 0, least)


def test_a_complement_that_is_nearer_to_the_best_keeps_its_score() -> None:
    hits = hits_of(1.0, 0.95, 0.0)
    logs_NS = explaining(range(20), range(20, 40), range(0))
    alone, together = (ranked(hits, logs_NS, 3, least) for least in (np.inf, LEAST_GAIN))
    assert [hit.score for hit in together] == [hit.score for hit in alone]
    assert [hit.is_complement for hit in together] == [False, True, False]


def test_gains_are_what_complements_are_chosen_by() -> None:
    scores_NS = explaining(range(20), range(20, 40), range(0))
    found = gains(scores_NS, 0)
    assert found.argmax() == 1
    assert found[0] == found[2] == 0
    assert complements(scores_NS, 0, float(found[1])) == [1]
    assert complements(scores_NS, 0, float(found[1]) + 1e-6) == []
