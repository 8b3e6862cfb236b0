"""What a steady-state row says: hit rate, p50 and p95 by window, and is the last window as good as the first?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gritrag.evaluate.report import Section, Table
from gritrag.evaluate.scores import RESAMPLES, Interval
from gritrag.evaluate.suite import Row
from gritrag.evaluate.svg import Point, Series, line_chart

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


def quantile(requests: Sequence[Request], q: float, seed: int) -> Interval:
    """A quantile of the first token in seconds, with its 95% bootstrap interval."""
    low, high = np.quantile(_resampled(requests, q, seed), (0.025, 0.975)).tolist()
    return Interval(float(np.quantile(_seconds(requests), q)), low, high, len(requests))


def growth(first: Sequence[Request], last: Sequence[Request], seed: int) -> Interval:
    """p95 of the last window over that of the first."""
    ratios = _resampled(last, 0.95, seed) / _resampled(first, 0.95, seed + 1)
    low, high = np.quantile(ratios, (0.025, 0.975)).tolist()
    ratio = float(np.quantile(_seconds(last), 0.95) / np.quantile(_seconds(first), 0.95))
    return Interval(ratio, low, high, len(last))


def _seconds(requests: Sequence[Request]) -> np.ndarray:
    return np.array([request["first_token"] for request in requests])


def _resampled(requests: Sequence[Request], q: float, seed: int) -> np.ndarray:
    seconds, draw = _seconds(requests), np.random.default_rng(seed)
    return np.quantile(draw.choice(seconds, (RESAMPLES, len(seconds))), q, axis=1)


def section(row: Row, setting: Mapping[str, Any], seed: int) -> Section:
    """`setting` is that of the run."""
    parts = windows(row["requests"], setting["window"])
    quantiles = {q: [quantile(part, q, seed) for part in parts] for q in (0.5, 0.95)}
    rows, end = [], 0
    for number, part in enumerate(parts):
        rate, found = hit_rate(part), [of_parts[number] for of_parts in quantiles.values()]
        shown = [f"{1e3 * each.mean:.0f} [{1e3 * each.low:.0f}, {1e3 * each.high:.0f}]" for each in found]
        rows.append([f"{end + 1} to {end + len(part)}", "-" if rate is None else f"{100 * rate:.1f}", *shown])
        end += len(part)
    ratio, rate = growth(parts[0], parts[-1], seed), hit_rate(row["requests"])
    is_flat, is_open = ratio.mean <= 1 + TOLERANCE, ratio.low <= 1 + TOLERANCE < ratio.high
    stored = f"{row['state_bytes'] / 1e6:.1f} MB of states stored, of {row['state_bytes_of_all'] / 1e6:.1f} MB for all"
    verdict = (
        f"{'' if rate is None else f'Hit rate {100 * rate:.1f}%. '}The p95 of the last window is {ratio.mean:.3f} "
        f"[{ratio.low:.3f}, {ratio.high:.3f}] times that of the first: {'within' if is_flat else 'not within'} "
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
