"""The load experiment: its sets of documents, its percentiles, and a run at a size for tests."""

import asyncio

from experiments.serving import DOCUMENTS, Timed, abreast, orders, percentile


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
