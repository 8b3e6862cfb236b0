"""Scores worked by hand, and what a bootstrap interval must and must not say."""

import importlib
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gritrag.evaluate import scores, statistics

UNIT = st.floats(0, 1, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat,\n a dog!", "cat dog"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),  # an article inside a word is none
        ("U.S.A.", "usa"),
        ("the", ""),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert scores.normalise(text) == normal


@pytest.mark.parametrize(
    ("text", "answers", "em", "f1", "match"),
    [
        ("The cat.", ["cat"], 1, 1, 1),
        ("It is a black cat", ["the cat"], 0, 2 / 5, 1),  # "it is black cat": 1 of 4 words, 1 of 1
        ("black dog", ["black cat"], 0, 1 / 2, 0),
        ("concatenate", ["cat"], 0, 0, 0),  # whole words only
        ("cat cat", ["cat"], 0, 2 / 3, 1),  # a word counts as often as the answer has it
        ("noon", ["at noon", "noon", "12"], 1, 1, 1),  # the best of several, whatever their order
        ("", ["cat"], 0, 0, 0),
        ("", ["A", "grade A"], 0, 0, 0),  # silence is no answer of which normalisation leaves nothing
        ("a", ["A"], 1, 1, 1),
        ("the", ["A", "%"], 0, 0, 0),
        ("cat", ["the"], 0, 0, 0),  # nothing is left of the right answer, so nothing contains it
    ],
)
def test_answers_worked_by_hand(text: str, answers: list[str], em: float, f1: float, match: float) -> None:
    expected = {"EM": em, "F1": f1, "match": match}
    assert scores.score_answer(text, answers) == pytest.approx(expected)
    assert scores.score_answer(text, answers[::-1]) == pytest.approx(expected)


def test_an_answer_needs_a_right_one() -> None:
    with pytest.raises(ValueError, match="without right answers"):
        scores.score_answer("cat", [])


@settings(deadline=None)
@given(st.text("abc ", min_size=1), st.lists(st.text("abc ", min_size=1), min_size=1, max_size=3))
def test_equal_answers_have_every_score_and_every_score_lies_in_0_to_1(text: str, answers: list[str]) -> None:
    found = scores.score_answer(text, answers)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["F1"] >= found["EM"]
    assert found["match"] >= found["EM"]
    assert set(scores.score_answer(text, [text]).values()) == {1.0}


def test_rankings_worked_by_hand() -> None:
    others = [f"x{n}" for n in range(20)]
    rankings = [
        ["right", *others],
        [*others[:2], "right"],
        [*others[:10], "right"],
        others,
        [],
    ]
    found = scores.score_rankings(rankings, [["right"]] * 5)
    assert found["recall@1"] == [1, 0, 0, 0, 0]
    assert found["recall@5"] == [1, 1, 0, 0, 0]
    assert found["recall@20"] == [1, 1, 1, 0, 0]
    assert found["nDCG@10"] == pytest.approx([1, 1 / math.log2(4), 0, 0, 0])
    assert found["MRR@10"] == pytest.approx([1, 1 / 3, 0, 0, 0])


def test_a_question_that_needs_two_documents_is_answered_by_both() -> None:
    found = scores.score_rankings([["a", "x", "b"], ["x", "a", "y"]], [["a", "b"]] * 2)
    assert found["recall@1"] == [0.5, 0]
    assert found["recall@5"] == [1, 0.5]
    ideal = 1 + 1 / math.log2(3)
    assert found["nDCG@10"] == pytest.approx([(1 + 0.5) / ideal, 1 / math.log2(3) / ideal])


def test_a_ranking_counts_as_it_stands_whatever_the_ids() -> None:
    """Scores that tie are broken by id in trec_eval; a rank is not a score."""
    for first, second in (("a", "z"), ("z", "a")):
        assert scores.score_rankings([[first, second]], [[first]])["recall@1"] == [1]
        assert scores.score_rankings([[first, second]], [[second]])["MRR@10"] == [0.5]


def test_scores_stay_in_the_order_of_more_than_ten_questions() -> None:
    ids = [f"d{n}" for n in range(12)]
    found = scores.score_rankings(
        [[id] if n in (2, 10) else ["none"] for n, id in enumerate(ids)], [[id] for id in ids]
    )
    assert [n for n, value in enumerate(found["recall@1"]) if value] == [2, 10]


@settings(deadline=None)
@given(st.lists(UNIT, min_size=1, max_size=30), st.integers(0, 9))
def test_an_interval_holds_the_mean_and_stays_within_the_values(values: list[float], seed: int) -> None:
    interval = statistics.mean(values, seed)
    assert interval.mean == pytest.approx(sum(values) / len(values))
    assert min(values) - 1e-9 <= interval.low <= interval.mean + 1e-9
    assert interval.mean - 1e-9 <= interval.high <= max(values) + 1e-9
    assert interval.n == len(values)


def test_an_interval_shrinks_with_the_root_of_the_number_of_questions() -> None:
    few, many = (statistics.mean([0.0, 1.0] * half, 0) for half in (20, 500))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(5, rel=0.2)
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(1000), rel=0.1)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    samples = [draw.uniform(size=40).tolist() for _ in range(100)]
    covering = sum(found.low <= 0.5 <= found.high for found in (statistics.mean(sample, 1) for sample in samples))
    assert 88 <= covering <= 99


@settings(deadline=None)
@given(st.lists(UNIT, min_size=1, max_size=30), st.integers(0, 9))
def test_identical_systems_do_not_differ_at_all(values: list[float], seed: int) -> None:
    assert statistics.difference(values, values, seed) == statistics.Interval(0, 0, 0, len(values))
    if any(values):
        assert statistics.ratio(values, values, seed) == statistics.Interval(1, 1, 1, len(values))


def test_pairing_sees_a_small_difference_between_systems_that_vary_together() -> None:
    better = np.linspace(0, 1, 50)
    worse = better - 0.01
    gap = statistics.difference(better.tolist(), worse.tolist(), 0)
    assert (gap.low, gap.high) == pytest.approx((0.01, 0.01))
    alone = statistics.mean(better.tolist(), 0)
    assert alone.high - alone.low > 0.1


def test_a_ratio_over_nothing_is_none_and_one_over_little_is_finite() -> None:
    assert statistics.ratio([1.0, 0.0], [0.0, 0.0], 0) is None
    assert statistics.auc([1.0, 3.0], [0.0, 1.0, 2.0, 3.0], 0).mean == pytest.approx((1.5 + 3.5) / 8)
    assert statistics.auc([2.0, 3.0], [0.0, 1.0], 0) == statistics.Interval(1, 1, 1, 4)
    assert statistics.area([1.0, 3.0], np.array([0.0, 1.0, 2.0, 3.0])) == pytest.approx((1.5 + 3.5) / 8)
    assert (statistics.percent(None), statistics.percent(statistics.Interval(0.5, 0.25, 1, 3))) == (
        "-",
        "50.0 [25.0, 100.0]",
    )
    assert statistics.Interval(0.5, -0.25, 1, 3).show("+.2f", 1) == "+0.50 [-0.25, +1.00]"
    found = statistics.ratio([1.0, 1.0, 0.0], [1.0, 0.0, 0.0], 0)
    assert found is not None
    assert found.mean == 2
    assert math.isfinite(found.high)


def test_the_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    values = np.random.default_rng(3).uniform(size=30).tolist()
    assert statistics.mean(values, 1) == statistics.mean(values, 1)
    assert statistics.mean(values, 1) != statistics.mean(values, 2)


def test_without_ir_measures_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    monkeypatch.delitem(sys.modules, "gritrag.evaluate.scores")
    with pytest.raises(ModuleNotFoundError, match=r"needs ir_measures.*pip install 'gritrag\[eval\]'"):
        importlib.import_module("gritrag.evaluate.scores")
