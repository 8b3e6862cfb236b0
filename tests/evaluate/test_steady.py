"""Steady state: no combination comes twice, and a hit is a state that really was there."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gritrag import Index
from gritrag.evaluate.statistics import quantile
from gritrag.evaluate.steady import (
    CountingIndex,
    SteadyConfig,
    combinations,
    growth,
    hit_rate,
    measure,
    section,
    windows,
)
from gritrag.model.grit import GritModel

pytestmark = pytest.mark.filterwarnings("ignore:the states of this index have reached their quota")

SMALL = SteadyConfig(requests=12, documents=6, tokens=40, k=2, warmup=2, window=6)


@settings(max_examples=20, deadline=None)
@given(st.integers(6, 30), st.integers(1, 3), st.integers(0, 99), st.floats(0, 1.2))
def test_no_two_requests_are_for_the_same_documents(documents: int, k: int, seed: int, exponent: float) -> None:
    requests = max(1, math.comb(documents, k) // 8)
    setting = SteadyConfig(requests=requests, documents=documents, k=k, warmup=0, exponent=exponent)
    stream = list(combinations(setting, seed))
    assert len({frozenset(chosen) for chosen in stream}) == len(stream) == requests
    assert all(len(set(chosen)) == k and set(chosen) <= set(range(documents)) for chosen in stream)
    assert stream == list(combinations(setting, seed))


def test_a_few_documents_are_asked_for_often_and_they_are_not_the_first_ones() -> None:
    stream = list(combinations(SteadyConfig(requests=1000, documents=100, k=5, warmup=0), seed=0))
    counts = [sum(n in chosen for chosen in stream) for n in range(100)]
    ranked = sorted(range(100), key=lambda n: -counts[n])
    assert sum(counts[n] for n in ranked[:10]) > 0.4 * sum(counts)
    assert ranked[:10] != list(range(10))


def test_when_combinations_run_out_it_is_said() -> None:
    with pytest.raises(ValueError, match="5 documents make 10 combinations of 2, 11 requests need as many"):
        list(combinations(SteadyConfig(requests=11, documents=5, k=2, warmup=0), seed=0))
    with pytest.raises(ValueError, match=r"no new combination after \d+ of 400 requests; give more documents"):
        list(combinations(SteadyConfig(requests=400, documents=30, k=2, warmup=0, exponent=9), seed=0))


def test_a_hit_is_a_state_that_is_stored(tiny_model: GritModel, tmp_path: Path) -> None:
    with Index.create(tmp_path / "index", model=tiny_model, state_quota=15_000) as index:
        index.add([f"Island number {n} has an owl." for n in range(9)])
    with CountingIndex.open(tmp_path / "index", model=tiny_model, mode="r") as counting:
        documents = counting.get(list(counting))
        stored = [state is not None for state in counting.load_states(counting.get(list(counting)))]
        assert 0 < sum(stored) < 9
        for some in (slice(0, 4), slice(2, 9)):
            counting.asked = counting.had = 0
            assert [state is not None for state in counting.load_states(documents[some])] == stored[some]
            assert (counting.asked, counting.had) == (len(stored[some]), sum(stored[some]))


@pytest.mark.parametrize(("quota", "least", "most"), [(None, 1, 1), ("50%", 0.1, 0.9), (0, 0, 0)])
def test_the_hit_rate_falls_with_the_quota(
    tiny_model: GritModel, quota: str | int | None, least: float, most: float, tmp_path: Path
) -> None:
    setting = SMALL.model_copy(update={"quota": quota})
    figures = measure(tiny_model, setting, 0, tmp_path / "index")
    assert len(figures["requests"]) == setting.requests
    assert all(request["had"] <= request["asked"] == setting.k for request in figures["requests"])
    rate = hit_rate(figures["requests"])
    assert rate is not None
    assert least <= rate <= most
    share = figures["state_bytes"] / figures["state_bytes_of_all"]
    assert share <= {None: 1.1, "50%": 0.5, 0: 0}[quota]


def test_modes_that_load_no_states_have_no_hit_rate(tiny_model: GritModel, tmp_path: Path) -> None:
    figures = measure(tiny_model, SMALL.model_copy(update={"mode": "doc-query"}), 0, tmp_path / "index")
    assert hit_rate(figures["requests"]) is None


def test_a_quota_that_is_no_size_is_refused(tiny_model: GritModel, tmp_path: Path) -> None:
    for quota in ("half%", "much"):
        with pytest.raises(ValueError, match=quota):
            measure(tiny_model, SMALL.model_copy(update={"quota": quota}), 0, tmp_path / "index")


def requests(*seconds: float) -> list[dict[str, float]]:
    return [{"first_token": each, "total": each, "asked": 4, "had": 3} for each in seconds]


def test_windows_are_whole_and_quantiles_are_of_their_requests() -> None:
    stream = requests(*range(1, 11))
    assert [[r["first_token"] for r in part] for part in windows(stream, 4)] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert windows(stream, 11) == [stream]
    seconds = [request["first_token"] for request in stream]
    assert quantile(seconds, 0.5, 0).mean == 5.5
    assert quantile(seconds, 0.95, 0).mean == pytest.approx(9.55)
    assert hit_rate(stream) == 0.75


@pytest.mark.parametrize(("last", "told"), [(1.05, "within 10%."), (1.2, "not within 10%.")])
def test_what_the_p95_of_the_last_window_says_of_that_of_the_first(last: float, told: str) -> None:
    row = {"requests": requests(*[0.1] * 5, *[0.1 * last] * 5), "state_bytes": 5e6, "state_bytes_of_all": 1e7}
    found = section(row, {**SteadyConfig().model_dump(), "window": 5, "seed": 0})
    assert growth(row["requests"][:5], row["requests"][5:], 0).mean == pytest.approx(last)
    assert found.text.endswith(f"times that of the first: {told}")
    assert "Hit rate 75.0%" in found.text
    (table,) = found.tables
    assert table.rows[0] == ["1 to 5", "75.0", "100 [100, 100]", "100 [100, 100]"]
