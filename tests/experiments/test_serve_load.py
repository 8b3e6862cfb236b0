"""The load experiment: its sets of documents, its percentiles, and a run at a size for tests."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from repository import TINY

from experiments.serve_load import WARM, combinations
from experiments.serving import DOCUMENTS, Served, Timed, abreast, make_index, orders, percentile, rag


def test_no_set_of_documents_comes_twice() -> None:
    drawn = orders(500, 8)
    assert len({tuple(each) for each in drawn}) == 500
    assert all(len(set(each)) == DOCUMENTS for each in drawn)
    assert drawn == orders(500, 8)


def test_percentiles() -> None:
    values = [float(number) for number in range(100)]
    assert percentile(values, 0.95) == 95.0
    assert percentile([3.0], 0.95) == 3.0


def test_clients_ask_one_after_the_other_each() -> None:
    running = most = 0

    async def job() -> Timed:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return Timed(0.0, 0.0, "")

    done, _ = asyncio.run(abreast([job] * 20, 3))
    assert len(done) == 20
    assert most == 3


def test_combinations_are_counted_to_the_last_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A request that fails is counted, and stops no other."""
    monkeypatch.setattr("experiments.serve_load.RECORDS", 9)
    asked = 0

    async def fails_once(client: httpx.AsyncClient, **body: Any) -> Timed:
        nonlocal asked
        asked += 1
        return await rag(client, **{**body, "k": 0} if asked == WARM + 15 else body)

    monkeypatch.setattr("experiments.serve_load.rag", fails_once)
    served = Served(tmp_path / "index", "float32", TINY)
    make_index(served, 9)
    found = asyncio.run(combinations(served, 20, 4))
    assert (found["requests"], found["failed"], found["window"]) == (19, 1, 2)
    assert "400" in found["first_failures"][0]
    assert found["hit_tokens_share"] == 1.0
    assert 0.8 < found["cached_share_of_prompt"] < 1
    assert 0 < found["resident_after_first_bytes"] <= 1.5 * found["resident_at_end_bytes"]
    assert found["p95_first_s"] > 0
    assert "20/20" in capfd.readouterr().err
