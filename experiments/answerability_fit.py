"""Logistic regressions that tell unanswerable questions: over signals and hidden states, and how they are chosen.

Shape letters: `N` questions, `F` features, `W` layers that were watched, `D` hidden.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.answerability_rows import ANSWERABLE, CUT_OUT, KINDS, Row
from gritrag.model.answerability import Answerability

SIGNALS = ("log_odds", "similarity")
SIGNAL_RIDGE = 1.0
RIDGES = (100.0, 300.0, 1000.0)
LOST = 0.05
DIGITS = 4
"""Of a weight of the probe: more would change no probability by a thousandth."""

STEPS, SMALL = 50, 1e-6
"""Newton's method ends after so many steps, or after one that is so small."""


class Data(NamedTuple):
    """Rows, and the hidden states `[N, W, D]` behind some layers that belong to them."""

    rows: list[Row]
    hidden: np.ndarray
    layers: tuple[int, ...]

    def where(self, chosen_N: np.ndarray) -> "Data":
        """Some of the rows."""
        rows = [row for row, is_in in zip(self.rows, chosen_N, strict=True) if is_in]
        return Data(rows, self.hidden[chosen_N], self.layers)

    def of_kind(self, *kinds: str) -> "Data":
        """Rows of some kinds. Answerable ones, and those that lack the sentence, only where their passage was found."""
        needs = (ANSWERABLE, CUT_OUT)
        rows = [row["kind"] in kinds and (row["found"] or row["kind"] not in needs) for row in self.rows]
        return self.where(np.array(rows, bool))

    def of_file(self, *files: str) -> "Data":
        """Rows of some files."""
        return self.where(np.array([row["file"] in files for row in self.rows], bool))

    @property
    def files(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(row["file"] for row in self.rows))

    @property
    def is_unanswerable(self) -> np.ndarray:
        """bool `[N]`."""
        return np.array([row["kind"] != ANSWERABLE for row in self.rows], bool)

    def values(self, name: str) -> np.ndarray:
        """`[N]` of one signal or score."""
        return np.array([row[name] for row in self.rows], np.float64)

    def features(self, layers: Sequence[int]) -> np.ndarray:
        """`[N, F]`: the signals, then the hidden states behind these layers."""
        hidden = [self.hidden[:, self.layers.index(each)] for each in layers]
        return np.column_stack([*map(self.values, SIGNALS), *hidden]).astype(np.float64)


class Fit(NamedTuple):
    """A logistic regression on standardised features, as weights of the features as they are."""

    weights: np.ndarray
    bias: float

    def probabilities(self, values_NF: np.ndarray) -> np.ndarray:
        """Of being unanswerable."""
        found_N: np.ndarray = 1 / (1 + np.exp(-(values_NF @ self.weights + self.bias)))
        return found_N


def fit(values_NF: np.ndarray, unanswerable_N: np.ndarray, ridge_F: np.ndarray) -> Fit:
    """By Newton's method. Both classes weigh the same, however many questions each has.

    Args:
        ridge_F: of each standardised feature.
    """
    mean_F, spread_F = values_NF.mean(0), values_NF.std(0)
    spread_F[spread_F == 0] = 1  # of a feature that is the same throughout
    scaled_NF = np.column_stack([(values_NF - mean_F) / spread_F, np.ones(len(values_NF))])
    share = unanswerable_N.mean()
    importance_N = np.where(unanswerable_N, 0.5 / share, 0.5 / (1 - share))
    penalty_F = np.append(ridge_F, 0)
    weights_F = np.zeros(scaled_NF.shape[1])
    for _ in range(STEPS):
        p_N = 1 / (1 + np.exp(-(scaled_NF @ weights_F)))
        slope_F = scaled_NF.T @ (importance_N * (p_N - unanswerable_N)) + penalty_F * weights_F
        curve_FF = (scaled_NF.T * (importance_N * p_N * (1 - p_N))) @ scaled_NF + np.diag(penalty_F)
        step_F = np.linalg.solve(curve_FF, slope_F)
        weights_F = weights_F - step_F
        if np.abs(step_F).max() < SMALL:
            break
    own_F = weights_F[:-1] / spread_F
    return Fit(own_F, float(weights_F[-1] - own_F @ mean_F))


class Choice(NamedTuple):
    """What a regression sees: hidden states behind these layers, and how they are held down."""

    layers: tuple[int, ...]
    ridge: float

    @property
    def name(self) -> str:
        """For a table."""
        return " + ".join(map(str, self.layers)) or "none"

    def fit(self, data: Data) -> Fit:
        """To all its questions that have an answer which was found, and to all that have none."""
        chosen = data.of_kind(*KINDS)
        values_NF = chosen.features(self.layers)
        ridge_F = np.full(values_NF.shape[1], self.ridge)
        ridge_F[: len(SIGNALS)] = SIGNAL_RIDGE
        return fit(values_NF, chosen.is_unanswerable, ridge_F)

    def left_out(self, data: Data) -> np.ndarray:
        """Probabilities `[N]` of the questions of each file by a fit to the other files."""
        found_N = np.zeros(len(data.rows))
        for file in data.files:
            is_own_N = np.array([row["file"] == file for row in data.rows])
            own = data.where(is_own_N)
            found_N[is_own_N] = self.fit(data.where(~is_own_N)).probabilities(own.features(self.layers))
        return found_N

    def fitted(self, data: Data, adapter: str) -> Answerability:
        """For a checkpoint; whether to refuse is for users to say."""
        found = self.fit(data)
        odds, similarity, *hidden = (float(f"{weight:.{DIGITS}g}") for weight in found.weights)
        return Answerability(odds, similarity, round(found.bias, DIGITS), 1.0, adapter, self.layers, tuple(hidden))


NO_PROBE = Choice((), 0.0)


def probabilities(answerability: Answerability, data: Data) -> np.ndarray:
    """`[N]`, by what a checkpoint holds."""
    weights = [answerability.log_odds, answerability.similarity, *answerability.hidden]
    return Fit(np.array(weights), answerability.bias).probabilities(data.features(answerability.layers))


def areas(scores_N: np.ndarray, data: Data) -> dict[str, float]:
    """For each kind without an answer: how often one of it has a higher score than one with an answer, ties half."""
    kinds_N, found_N = (np.array([row[name] for row in data.rows]) for name in ("kind", "found"))
    answerable_N = scores_N[(kinds_N == ANSWERABLE) & found_N]
    found = {}
    for kind in KINDS[1:]:
        own_N = scores_N[(kinds_N == kind) & (found_N | (kind != CUT_OUT))]
        if len(own_N):
            found[kind] = float((own_N[:, None] > answerable_N).mean() + 0.5 * (own_N[:, None] == answerable_N).mean())
    return found


def told_at(unanswerable_N: np.ndarray, answerable_N: np.ndarray) -> float:
    """Share of the unanswerable ones above what 5% of the answerable ones are above."""
    return float((unanswerable_N > np.quantile(answerable_N, 1 - LOST, method="higher")).mean())


class Judged(NamedTuple):
    """A choice, and how it tells questions of files that it was not fitted to."""

    choice: Choice
    scores: np.ndarray
    areas: dict[str, float]

    @property
    def mean(self) -> float:
        """Of all kinds."""
        return sum(self.areas.values()) / len(self.areas)


def judged(data: Data) -> list[Judged]:
    """No probe, one behind each layer, and one behind all but the first and the last of them, with every ridge; each
    file by a fit to the others."""
    probed = [*((each,) for each in data.layers), *([data.layers[1:-1]] if len(data.layers) > 3 else [])]
    choices = [NO_PROBE, *(Choice(layers, ridge) for layers in probed for ridge in RIDGES)]
    found = [(choice, choice.left_out(data)) for choice in choices]
    return [Judged(choice, scores_N, areas(scores_N, data)) for choice, scores_N in found]


def threshold(scores_N: np.ndarray, data: Data) -> float:
    """What 5% of the answerable questions are above."""
    is_answered_N = np.array([row["kind"] == ANSWERABLE and row["found"] for row in data.rows])
    return float(np.quantile(scores_N[is_answered_N], 1 - LOST, method="higher"))
