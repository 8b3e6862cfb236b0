"""What tells unanswerable questions, judged: by kind of question, by file, and as probabilities.

Shape letters: `N` questions.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

import numpy as np

from experiments.answerability_fit import Data, Judged, told_at
from experiments.answerability_rows import ANSWERABLE, DEMO, KINDS, TAKEN_OUT
from gritrag.evaluate.report import aligned
from gritrag.evaluate.statistics import Interval, auc, draws
from gritrag.evaluate.statistics import mean as interval

Scores = Mapping[str, np.ndarray]
"""By name, one score `[N]` for each row, higher where there is no answer."""


def choices(found: Sequence[Judged], data: Data) -> str:
    """How each choice tells the questions of files that it was not fitted to."""
    kinds = [kind for kind in KINDS[1:] if kind in found[0].areas]
    lines = []
    for each in found:
        own = [f"{100 * each.areas[kind]:.1f}" for kind in kinds]
        told = [f"{100 * told_at(*_apart(each.scores, data, kind)):.0f}" for kind in kinds]
        cells = [cell for pair in zip(own, told, strict=True) for cell in pair]
        lines.append([each.choice.name, f"{each.choice.ridge:g}", f"{100 * each.mean:.1f}", *cells])
    columns = [
        "hidden states, attention",
        "ridge",
        "mean AUC",
        *(f"{kind}: {what}" for kind in kinds for what in ("AUC", "told")),
    ]
    return aligned(columns, lines)


class Difference(NamedTuple):
    """How one score tells questions of a kind from answerable ones, with its bootstrap intervals."""

    auc: Interval
    told: Interval
    """Share of the unanswerable ones above what 5% of the answerable ones are above."""


def judge(unanswerable_N: np.ndarray, answerable_N: np.ndarray, seed: int) -> Difference:
    """Of a score that is higher where there is no answer."""
    lines = zip(draws(len(unanswerable_N), seed), draws(len(answerable_N), seed + 1), strict=True)
    resampled = [told_at(unanswerable_N[ours], answerable_N[theirs]) for ours, theirs in lines]
    low, high = np.quantile(resampled, (0.025, 0.975)).tolist()
    told = Interval(told_at(unanswerable_N, answerable_N), low, high, len(unanswerable_N))
    return Difference(auc(unanswerable_N.tolist(), answerable_N.tolist(), seed), told)


def _is_kind(data: Data, kind: str) -> np.ndarray:
    """bool `[N]`; see `Data.of_kind`."""
    own = {id(row) for row in data.of_kind(kind).rows}
    return np.array([id(row) in own for row in data.rows])


def _apart(scores_N: np.ndarray, data: Data, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a kind, and of answerable questions."""
    return scores_N[_is_kind(data, kind)], scores_N[_is_kind(data, ANSWERABLE)]


def by_kind(scores: Scores, data: Data, seed: int) -> str:
    """Each score by each kind of unanswerable question."""
    kinds = [kind for kind in KINDS[1:] if data.of_kind(kind).rows]
    lines = []
    for name, scores_N in scores.items():
        found = [judge(*_apart(scores_N, data, kind), seed) for kind in kinds]
        lines.append([name, *(cell for each in found for cell in (each.auc.show(), each.told.show()))])
    counts = {kind: len(data.of_kind(kind).rows) for kind in (*kinds, ANSWERABLE)}
    columns = ["score", *(f"{kind}: {what}" for kind in kinds for what in ("AUC", "told at 5% lost, %"))]
    return ", ".join(f"{n} {kind}" for kind, n in counts.items()) + "\n\n" + aligned(columns, lines)


def by_file(scores_N: np.ndarray, above: float, data: Data, seed: int) -> str:
    """What is told above a threshold or by greedy decoding, and by that alone; what it costs. The demo is no part of
    all."""
    files = [file for file in data.files if file != DEMO]
    is_above_N, told_N = scores_N > above, data.values("told")
    f1_N = np.array([row.get("F1", np.nan) for row in data.rows])
    lines = []
    for name, members in [*((file, [file]) for file in files), ("all", files), (DEMO, [DEMO])]:
        is_own_N = np.array([row["file"] in members for row in data.rows])
        line = [name.removesuffix(".validation")]
        for kind in KINDS:
            chosen_N = is_own_N & _is_kind(data, kind)
            line += _told(told_N[chosen_N], is_above_N[chosen_N], seed)
        answered_N = is_own_N & _is_kind(data, ANSWERABLE)
        lines.append([*line, *(_percent(each_N[answered_N]) for each_N in (f1_N, f1_N * ~is_above_N))])
    columns = ["file, % told", *(f"{kind}{what}" for kind in KINDS for what in (" now", ", then", ", of"))]
    return f"above {above:.3f}\n\n" + aligned([*columns, "F1 now", "then"], lines)


def _told(now_N: np.ndarray, is_above_N: np.ndarray, seed: int) -> list[str]:
    """Three cells: what is told now, what would be, and of how many."""
    if not len(now_N):
        return ["-", "-", "0"]
    then = interval(np.maximum(now_N, is_above_N).tolist(), seed)
    return [f"{100 * mean(now_N):.0f}", then.show(".0f"), str(len(now_N))]


def _percent(values_N: np.ndarray) -> str:
    """Mean of those that are known."""
    known_N = values_N[~np.isnan(values_N)]
    return f"{100 * known_N.mean():.1f}" if len(known_N) else "-"


def losses(scores_N: np.ndarray, thresholds: Sequence[float], data: Data) -> str:
    """Of each file, how many answerable questions are above each threshold, and how many whose passage is gone."""
    lines = []
    for name, members in [*((file, [file]) for file in data.files), ("all", data.files)]:
        is_own_N = np.array([row["file"] in members for row in data.rows])
        line = [name]
        for kind in (ANSWERABLE, TAKEN_OUT):
            own_N = scores_N[is_own_N & _is_kind(data, kind)]
            line += [str(len(own_N)), *(_percent((own_N > each).astype(float)) for each in thresholds)]
        lines.append(line)
    named = [cell for kind in (ANSWERABLE, TAKEN_OUT) for cell in (kind, *(f"above {t:.3f}, %" for t in thresholds))]
    return aligned(["file", *named], lines)


def above(probabilities: Scores, least: float, data: Data) -> str:
    """Of each kind, how many have that probability or more; and the Brier score."""
    lines = []
    for name, p_N in probabilities.items():
        shares = [_percent((p_N[_is_kind(data, kind)] >= least).astype(float)) for kind in KINDS]
        lines.append([name, f"{_brier(p_N, data):.3f}", *shares])
    return aligned([f"% with {least:g} or more", "Brier", *KINDS], lines)


def _weighed(scores_N: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of the questions that are of some kind, which are unanswerable, and what each weighs: both classes
    the same."""
    own_N = np.any([_is_kind(data, kind) for kind in KINDS], axis=0)
    is_none_N = data.is_unanswerable[own_N]
    weight_N = np.where(is_none_N, 0.5 / is_none_N.mean(), 0.5 / (1 - is_none_N.mean()))
    return scores_N[own_N], is_none_N, weight_N


def _brier(scores_N: np.ndarray, data: Data) -> float:
    p_N, is_none_N, weight_N = _weighed(scores_N, data)
    return float(np.average((p_N - is_none_N) ** 2, weights=weight_N))


def calibration(scores_N: np.ndarray, data: Data) -> str:
    """Brier score, both classes weighing the same, and how often questions of each fifth are unanswerable."""
    p_N, is_none_N, weight_N = _weighed(scores_N, data)
    lines = []
    for low in np.arange(0, 1, 0.2):
        chosen = (p_N >= low) & (p_N < low + 0.2 + 1e-9)
        if not chosen.any():
            continue
        share = float(np.average(is_none_N[chosen], weights=weight_N[chosen]))
        lines.append([f"{low:.1f} to {low + 0.2:.1f}", f"{p_N[chosen].mean():.2f}", f"{share:.2f}", str(chosen.sum())])
    told = aligned(["said", "mean", "unanswerable", "questions"], lines)
    return f"Brier {_brier(scores_N, data):.3f} (a constant: 0.250)\n\n{told}"
