"""Steady state: a stream of requests, each for a combination of documents that never was before.

Popularity falls by Zipf's law, so documents come again and again, but never in the same company: a cache that knew
documents by their neighbours would miss ever more often.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from gritrag.answer import RAG
from gritrag.config import Recipe
from gritrag.corpus import questions
from gritrag.evaluate.report import Point, Section, Series, Table, line_chart
from gritrag.evaluate.statistics import Interval, quantile, quantile_ratio
from gritrag.evaluate.suite import Row
from gritrag.evaluate.workload import documents_of
from gritrag.index.index import Index
from gritrag.index.storage.states import DocumentState
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar
from gritrag.records import Document, Hit

MOST_DRAWS = 1000
"""Redraws of one request before giving up: the popular combinations have run out."""


class SteadyConfig(Recipe):
    """A stream of requests, each for a combination of documents that never was before.

    Args:
        requests: so many.
        documents: in the index.
        tokens: per document.
        k: documents per request, drawn by Zipf's law.
        exponent: of that law: the n-th most popular document is drawn with weight n^-exponent.
        mode: how they are answered.
        codec: of the states.
        quota: most bytes of states, such as ``"20MB"``; or a share of what all would need, such as ``"50%"``. None for
            no limit. What has no state is read again, and stored as far as the index lets it.
        warmup: requests before the first window.
        window: requests that one p50 and one p95 are taken over.
        new_tokens: longest answer.
    """

    requests: int = Field(1000, ge=1)
    documents: int = Field(100, ge=1)
    tokens: int = Field(120, ge=8)
    k: int = Field(5, ge=1)
    exponent: float = Field(1.0, ge=0)
    mode: str = "doc-cache"
    codec: str = "bf16"
    quota: str | int | None = None
    warmup: int = Field(20, ge=0)
    window: int = Field(200, ge=2)
    new_tokens: int = Field(1, ge=1)


class CountingIndex(Index):
    """An index that counts the states it was asked for, and those that it had."""

    asked = 0
    had = 0

    def load_states(self, documents: Iterable[Document]) -> list[DocumentState | None]:
        states = super().load_states(documents)
        self.asked += len(states)
        self.had += sum(state is not None for state in states)
        return states


def combinations(setting: SteadyConfig, seed: int) -> Iterator[tuple[int, ...]]:
    """For each request the numbers of its `k` documents in context order; no two requests have the same set.

    Raises:
        ValueError: there are too few combinations.
    """
    total, wanted = math.comb(setting.documents, setting.k), setting.warmup + setting.requests
    remedy = "give more documents, fewer requests, or a smaller exponent"
    if total < wanted:
        raise ValueError(
            f"{setting.documents} documents make {total} combinations of {setting.k}, {wanted} requests need as many; "
            + remedy
        )
    draw, seen = np.random.default_rng(seed), set()
    log_weights = -setting.exponent * np.log(np.arange(1, setting.documents + 1))
    popular = draw.permutation(setting.documents)  # which documents, so that it is not those indexed first
    for number in range(wanted):
        for _ in range(MOST_DRAWS):
            # the k greatest of Gumbel-perturbed log weights are k draws without replacement (Yellott 1977)
            perturbed = log_weights + draw.gumbel(size=setting.documents)
            drawn = popular[np.argsort(-perturbed)[: setting.k]].tolist()
            if (chosen := frozenset(drawn)) not in seen:
                break
        else:
            raise ValueError(f"no new combination after {number} of {wanted} requests; {remedy}")
        seen.add(chosen)
        yield tuple(drawn)


def measure(model: GritModel, setting: SteadyConfig, seed: int, folder: Path) -> dict[str, Any]:
    """Answer the stream from a new index in `folder`.

    Returns:
        ``requests``: for each after the warm-up its ``first_token``, ``total``, and states ``asked`` for and ``had``;
        and ``state_bytes`` that are stored in the end, of those that all documents would need.
    """
    stream = list(combinations(setting, seed))
    pool = documents_of(model, setting.tokens, setting.documents, seed)
    whole = Index.estimate(model, pool, setting.codec).state_bytes
    with Index.create(folder, model=model, states=setting.codec, state_quota=_quota(setting.quota, whole)) as index:
        index.add(pool, show_progress_bar=True)
    with CountingIndex.open(folder, model=model, mode="rw") as index:
        rag, texts = RAG(index, mode=setting.mode, k=setting.k), cycle(each.question for each in questions())
        rows = [
            _request(rag, index, text, [pool[n] for n in chosen], setting.new_tokens)
            for text, chosen in zip(texts, ProgressBar(stream, desc="steady state", unit="request"), strict=False)
        ]
        stored = index.stats()["bytes"]["states"]
    return {"requests": rows[setting.warmup :], "state_bytes": stored, "state_bytes_of_all": whole}


def _request(
    rag: RAG, index: CountingIndex, question: str, documents: Sequence[Document], new_tokens: int
) -> dict[str, Any]:
    hits = [Hit(document, 1 / rank, rank) for rank, document in enumerate(documents, start=1)]
    index.asked = index.had = 0
    timings = rag.ask(question, hits=hits, max_new_tokens=new_tokens).timings
    return {"first_token": timings.first_token, "total": timings.total, "asked": index.asked, "had": index.had}


def _quota(quota: str | int | None, whole: int) -> str | int | None:
    """A share of all becomes bytes."""
    if not isinstance(quota, str) or not quota.strip().endswith("%"):
        return quota
    try:
        return int(whole * float(quota.strip()[:-1]) / 100)
    except ValueError:
        raise ValueError(f"quota {quota!r} is no share such as '50%' and no size such as '20MB'") from None


TOLERANCE = 0.1
"""So much may the p95 of the last window be above that of the first."""

Request = Mapping[str, Any]


def windows(requests: Sequence[Request], size: int) -> list[Sequence[Request]]:
    """Whole windows; all requests in one where they do not fill one."""
    starts = range(0, len(requests) - size + 1, size)
    return [requests[start : start + size] for start in starts] or [requests]


def hit_rate(requests: Sequence[Request]) -> float | None:
    """States that were there, of those asked for; None where none were asked for."""
    asked = sum(request["asked"] for request in requests)
    return sum(request["had"] for request in requests) / asked if asked else None


def growth(first: Sequence[Request], last: Sequence[Request], seed: int) -> Interval:
    """p95 of the last window over that of the first."""
    return quantile_ratio(_seconds(last), _seconds(first), 0.95, seed)


def _seconds(requests: Sequence[Request]) -> list[float]:
    return [request["first_token"] for request in requests]


def section(row: Row, setting: Mapping[str, Any]) -> Section:
    """`setting` is that of the run, its seed included."""
    seed = setting["seed"]
    parts = windows(row["requests"], setting["window"])
    quantiles = {q: [quantile(_seconds(part), q, seed) for part in parts] for q in (0.5, 0.95)}
    rows, end = [], 0
    for number, part in enumerate(parts):
        rate, found = hit_rate(part), [of_parts[number] for of_parts in quantiles.values()]
        shown = [each.show(".0f", 1e3) for each in found]
        rows.append([f"{end + 1} to {end + len(part)}", "-" if rate is None else f"{100 * rate:.1f}", *shown])
        end += len(part)
    ratio, rate = growth(parts[0], parts[-1], seed), hit_rate(row["requests"])
    is_flat, is_open = ratio.mean <= 1 + TOLERANCE, ratio.low <= 1 + TOLERANCE < ratio.high
    stored = f"{row['state_bytes'] / 1e6:.1f} MB of states stored, of {row['state_bytes_of_all'] / 1e6:.1f} MB for all"
    verdict = (
        f"{'' if rate is None else f'Hit rate {100 * rate:.1f}%. '}The p95 of the last window is "
        f"{ratio.show('.3f', 1)} times that of the first: {'within' if is_flat else 'not within'} "
        f"{100 * TOLERANCE:.0f}%{', but the interval holds both' if is_open else ''}."
    )
    return Section(
        "Steady state",
        f"{len(row['requests'])} requests in {setting['mode']}, each for another set of {setting['k']} of "
        f"{setting['documents']} documents of {setting['tokens']} tokens, drawn by Zipf's law with exponent "
        f"{setting['exponent']:g}; from hits to the first token; {setting['warmup']} requests before them warmed up. "
        f"{stored}. Brackets are 95% bootstrap intervals.\n{verdict}",
        [_chart(parts, quantiles)],
        [Table(["requests", "hit rate, %", "p50, ms", "p95, ms"], rows)],
    )


def _chart(parts: Sequence[Sequence[Request]], quantiles: Mapping[float, Sequence[Interval]]) -> str:
    ends = np.cumsum([len(part) for part in parts]).tolist()
    series = [
        Series(
            f"p{100 * q:.0f}",
            [Point(x, 1e3 * i.mean, 1e3 * i.low, 1e3 * i.high) for x, i in zip(ends, found, strict=True)],
            style,
        )
        for style, (q, found) in enumerate(quantiles.items())
    ]
    return line_chart("First token over time", series, "requests so far", "milliseconds to the first token")
