"""Signals that tell unanswerable questions, judged: by kind of question, by file, and as probabilities.

Shape letters: `N` questions, `F` signals.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from gritrag.evaluate.report import aligned
from gritrag.evaluate.statistics import Interval, auc, draws
from gritrag.evaluate.statistics import mean as interval

LOST = 0.05
ANSWERABLE, MARKED, TAKEN_OUT = "answerable", "marked", "taken out"
FEATURES = ("log_odds", "similarity")
"""Signals of the product."""

BEFORE = (
    "entropy",
    "whole of it",
    "likeliest first token",
    "question in context",
    "question behind best",
    "its margin",
    "its margin of similarity",
    "hybrid margin",
    "words of the question",
)
"""Signals beside those of the product that are known before the first token."""

OF_THE_ANSWER = ("whole answer against it", "mean of the answer", "least of the answer")

RISING = ("log_odds", "entropy", "whole of it", "whole answer against it")
"""Higher where there is no answer; the others are lower."""


class Fit(NamedTuple):
    """A logistic regression on standardised signals, as weights of the signals as they are."""

    weights: list[float]
    bias: float

    def probabilities(self, values_NF: np.ndarray) -> np.ndarray:
        """Of being unanswerable."""
        found_N: np.ndarray = 1 / (1 + np.exp(-(values_NF @ np.array(self.weights) + self.bias)))
        return found_N


def fit(values_NF: np.ndarray, unanswerable_N: np.ndarray, ridge: float = 1.0) -> Fit:
    """By Newton's method. Both classes weigh the same, however many questions each has."""
    mean_F, spread_F = values_NF.mean(0), values_NF.std(0)
    spread_F[spread_F == 0] = 1  # of a signal that is the same throughout
    scaled_NF = np.column_stack([(values_NF - mean_F) / spread_F, np.ones(len(values_NF))])
    share = unanswerable_N.mean()
    importance_N = np.where(unanswerable_N, 0.5 / share, 0.5 / (1 - share))
    penalty_F = np.full(scaled_NF.shape[1], ridge)
    penalty_F[-1] = 0
    weights_F = np.zeros(scaled_NF.shape[1])
    for _ in range(30):
        p_N = 1 / (1 + np.exp(-(scaled_NF @ weights_F)))
        slope_F = scaled_NF.T @ (importance_N * (p_N - unanswerable_N)) + penalty_F * weights_F
        curve_FF = (scaled_NF.T * (importance_N * p_N * (1 - p_N))) @ scaled_NF + np.diag(penalty_F)
        weights_F = weights_F - np.linalg.solve(curve_FF, slope_F)
    own_F = weights_F[:-1] / spread_F
    return Fit(own_F.tolist(), float(weights_F[-1] - own_F @ mean_F))


class Judged(NamedTuple):
    """How one signal tells unanswerable questions of a kind from answerable ones, with its bootstrap intervals."""

    auc: Interval
    told: Interval
    """Share of the unanswerable ones above what 5% of the answerable ones are above."""


def judge(unanswerable_N: np.ndarray, answerable_N: np.ndarray, seed: int) -> Judged:
    """Of a signal that is higher where there is no answer."""
    lines = zip(draws(len(unanswerable_N), seed), draws(len(answerable_N), seed + 1), strict=True)
    resampled = [told_at(unanswerable_N[ours], answerable_N[theirs]) for ours, theirs in lines]
    low, high = np.quantile(resampled, (0.025, 0.975)).tolist()
    told = Interval(told_at(unanswerable_N, answerable_N), low, high, len(unanswerable_N))
    return Judged(auc(unanswerable_N.tolist(), answerable_N.tolist(), seed), told)


def told_at(unanswerable_N: np.ndarray, answerable_N: np.ndarray) -> float:
    return float((unanswerable_N > np.quantile(answerable_N, 1 - LOST, method="higher")).mean())


def values(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
    """`[N, F]` of some signals."""
    return np.array([[row[name] for name in names] for row in rows], np.float64)


def of_kind(rows: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    """Answerable questions only where what answers them was found."""
    return [row for row in rows if row["kind"] == kind and (kind != ANSWERABLE or row["found"])]


def regressions(train: Sequence[Mapping[str, Any]]) -> dict[str, tuple[tuple[str, ...], Fit]]:
    """Over the features of the product, and over all that is known before the first token."""
    chosen = [row for kind in (ANSWERABLE, MARKED, TAKEN_OUT) for row in of_kind(train, kind)]
    unanswerable_N = np.array([row["kind"] != ANSWERABLE for row in chosen])
    names = {"product": FEATURES, "all": (*FEATURES, *BEFORE)}
    return {which: (used, fit(values(chosen, used), unanswerable_N)) for which, used in names.items()}


def scores(train: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Every signal of some rows `[N]`, turned so that it is higher where there is no answer, and the regressions."""
    names = (*FEATURES, *BEFORE, *OF_THE_ANSWER)
    found = {name: values(rows, [name])[:, 0] * (1 if name in RISING else -1) for name in names}
    for which, (used, fitted) in regressions(train).items():
        found[f"regression, {which}"] = fitted.probabilities(values(rows, used))
    return found


def report(train: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], seed: int) -> str:
    """Signals by both kinds of unanswerable questions, then the regression of the product by file."""
    answerable = of_kind(rows, ANSWERABLE)
    by_kind = {kind: of_kind(rows, kind) for kind in (MARKED, TAKEN_OUT)}
    lines = []
    of_answerable = scores(train, answerable)
    found = {kind: scores(train, ours) for kind, ours in by_kind.items() if ours}
    for name, own_N in of_answerable.items():
        judged = [judge(of_kind[name], own_N, seed) for of_kind in found.values()]
        lines.append([name, *(cell for each in judged for cell in (each.auc.show(), each.told.show()))])
    columns = ["signal", *(f"{kind}: {what}" for kind in found for what in ("AUC", "told at 5% lost, %"))]
    parts = [aligned(columns, lines), by_file(train, rows, seed), calibration(train, rows)]
    return "\n\n".join(parts)


def by_file(train: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], seed: int) -> str:
    """What is told above the threshold that loses 5% of the answerable training questions, and by greedy decoding."""
    used, fitted = regressions(train)["product"]
    above = threshold(train)
    lines = []
    for file in (*sorted({row["file"] for row in rows}), ""):
        line = [file.removesuffix(".validation") or "all"]
        for kind in (ANSWERABLE, MARKED, TAKEN_OUT):
            ours = [row for row in of_kind(rows, kind) if file in ("", row["file"])]
            now = [row["told"] for row in ours]
            above_N = fitted.probabilities(values(ours, used)) > above if ours else np.zeros(0)
            told = [float(is_above or said) for is_above, said in zip(above_N, now, strict=True)]
            line += [f"{100 * mean(now):.0f}" if now else "-", interval(told, seed).show(".0f") if told else "-"]
            line += [str(len(ours))] if kind != ANSWERABLE else []
        ours = [row for row in of_kind(rows, ANSWERABLE) if file in ("", row["file"])]
        kept = fitted.probabilities(values(ours, used)) <= above
        before = [row["F1"] for row in ours]
        line += [str(len(ours)), f"{100 * mean(before):.1f}", f"{100 * mean((np.array(before) * kept).tolist()):.1f}"]
        lines.append(line)
    columns = ["file, % told", "answerable now", "then", "marked now", "then", "of", "taken out now", "then", "of"]
    columns += ["answerable", "F1 now", "then"]
    return f"above {above:.3f}\n\n" + aligned(columns, lines)


def threshold(train: Sequence[Mapping[str, Any]]) -> float:
    """Above which 5% of the answerable training questions are, whether their passage was found or not."""
    used, fitted = regressions(train)["product"]
    answerable = [row for row in train if row["kind"] == ANSWERABLE]
    return float(np.quantile(fitted.probabilities(values(answerable, used)), 1 - LOST, method="higher"))


def calibration(train: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """Brier scores, both classes weighing the same, and how often questions of each fifth are unanswerable."""
    used, fitted = regressions(train)["product"]
    ours = [row for kind in (ANSWERABLE, MARKED, TAKEN_OUT) for row in of_kind(rows, kind)]
    p_N, is_none_N = fitted.probabilities(values(ours, used)), np.array([row["kind"] != ANSWERABLE for row in ours])
    weight_N = np.where(is_none_N, 0.5 / is_none_N.mean(), 0.5 / (1 - is_none_N.mean()))
    lines = []
    for low in np.arange(0, 1, 0.2):
        chosen = (p_N >= low) & (p_N < low + 0.2 + 1e-9)
        if not chosen.any():
            continue
        share = float(np.average(is_none_N[chosen], weights=weight_N[chosen]))
        lines.append([f"{low:.1f} to {low + 0.2:.1f}", f"{p_N[chosen].mean():.2f}", f"{share:.2f}", str(chosen.sum())])
    brier = float(np.average((p_N - is_none_N) ** 2, weights=weight_N))
    return f"Brier {brier:.3f} (a constant: 0.250)\n\n" + aligned(["said", "mean", "unanswerable", "questions"], lines)
