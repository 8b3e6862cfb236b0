"""Logistic regressions that tell unanswerable questions: over signals, hidden states and attention, and how they are
chosen.

Shape letters: `N` questions, `F` features, `R` axes of these, `W` layers that were watched, `D` hidden, `L` layers, `H`
heads.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.answerability_rows import ANSWERABLE, CUT_OUT, END, GREATEST, KINDS, SUM, WORD, WORDS, Row
from gritrag.evaluate.statistics import area
from gritrag.model.answerability import Answerability

SIGNALS = ("log_odds", "similarity")
SIGNAL_RIDGE = 1.0
RIDGES = (300.0, 1000.0)
LOST = 0.05
DIGITS = 4
"""Of a weight of the probe: more would change no probability by a thousandth."""

STEPS, SMALL = 50, 1e-6
"""Newton's method ends after so many steps, or after one that is so small."""


class Data(NamedTuple):
    """Rows and the arrays that belong to them: hidden states `[N, W, D]` behind some layers, by place, and attention
    `[N, L * H]`."""

    rows: list[Row]
    arrays: Mapping[str, np.ndarray]
    layers: tuple[int, ...]

    def where(self, chosen_N: np.ndarray) -> "Data":
        """Some of the rows."""
        rows = [row for row, is_in in zip(self.rows, chosen_N, strict=True) if is_in]
        return Data(rows, {name: each[chosen_N] for name, each in self.arrays.items()}, self.layers)

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

    def features(self, choice: "Choice") -> np.ndarray:
        """`[N, F]`: the signals, then hidden states of each place, layer behind layer, then attention."""
        numbers = [self.layers.index(each) for each in choice.layers]
        hidden = [self.arrays[place][:, number] for place in choice.places for number in numbers]
        attention = [self.arrays[each] for each in choice.attention]
        return np.column_stack([*map(self.values, SIGNALS), *hidden, *attention]).astype(np.float64)


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
    scale_F = spread_F * np.sqrt(ridge_F)
    held_NF = (values_NF - mean_F) / scale_F
    axes_FR = _axes(held_NF)
    scaled_NR = np.column_stack([held_NF if axes_FR is None else held_NF @ axes_FR, np.ones(len(values_NF))])
    share = unanswerable_N.mean()
    importance_N = np.where(unanswerable_N, 0.5 / share, 0.5 / (1 - share))
    penalty_R = np.append(np.ones(scaled_NR.shape[1] - 1), 0)
    weights_R = np.zeros(scaled_NR.shape[1])
    for _ in range(STEPS):
        p_N = 1 / (1 + np.exp(-(scaled_NR @ weights_R)))
        slope_R = scaled_NR.T @ (importance_N * (p_N - unanswerable_N)) + penalty_R * weights_R
        curve_RR = (scaled_NR.T * (importance_N * p_N * (1 - p_N))) @ scaled_NR + np.diag(penalty_R)
        step_R = np.linalg.solve(curve_RR, slope_R)
        weights_R = weights_R - step_R
        if np.abs(step_R).max() < SMALL:
            break
    own_F = (weights_R[:-1] if axes_FR is None else axes_FR @ weights_R[:-1]) / scale_F
    return Fit(own_F, float(weights_R[-1] - own_F @ mean_F))


def _axes(held_NF: np.ndarray) -> np.ndarray | None:
    """Orthonormal axes `[F, R]` in which all questions lie, where there are fewer than features: what is fitted to them
    has no weight across these, and Newton's method is far cheaper. None where there are not."""
    if held_NF.shape[1] <= len(held_NF):
        return None
    square_R, vectors_NR = np.linalg.eigh(held_NF @ held_NF.T)
    is_real_R = square_R > square_R[-1] * len(held_NF) * np.finfo(np.float64).eps
    axes_FR: np.ndarray = held_NF.T @ (vectors_NR[:, is_real_R] / np.sqrt(square_R[is_real_R]))
    return axes_FR


class Choice(NamedTuple):
    """What a regression sees beside the signals: hidden states behind these layers at these places, attention, and how
    both are held down."""

    layers: tuple[int, ...]
    ridge: float
    places: tuple[str, ...] = (END,)
    attention: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For a table."""
        hidden = [f"{' + '.join(self.places)}: {' + '.join(map(str, self.layers))}"] if self.layers else []
        return ", ".join([*hidden, *(f"attention: {each}" for each in self.attention)]) or "none"

    @property
    def is_of_product(self) -> bool:
        """Whether an `Answerability` can hold it."""
        return self.places == (END,) and not self.attention

    def fit(self, data: Data) -> Fit:
        """To all its questions that have an answer which was found, and to all that have none."""
        chosen = data.of_kind(*KINDS)
        values_NF = chosen.features(self)
        ridge_F = np.full(values_NF.shape[1], self.ridge)
        ridge_F[: len(SIGNALS)] = SIGNAL_RIDGE
        return fit(values_NF, chosen.is_unanswerable, ridge_F)

    def left_out(self, data: Data) -> np.ndarray:
        """Probabilities `[N]` of the questions of each file by a fit to the other files."""
        found_N = np.zeros(len(data.rows))
        for file in data.files:
            is_own_N = np.array([row["file"] == file for row in data.rows])
            own = data.where(is_own_N)
            found_N[is_own_N] = self.fit(data.where(~is_own_N)).probabilities(own.features(self))
        return found_N

    def fitted(self, data: Data, adapter: str) -> Answerability:
        """For a checkpoint; whether to refuse is for users to say."""
        assert self.is_of_product, "the product sees the last token before the answer"
        found = self.fit(data)
        odds, similarity, *hidden = (float(f"{weight:.{DIGITS}g}") for weight in found.weights)
        return Answerability(odds, similarity, round(found.bias, DIGITS), 1.0, adapter, self.layers, tuple(hidden))


NO_PROBE = Choice((), 0.0)


def probabilities(answerability: Answerability, data: Data) -> np.ndarray:
    """`[N]`, by what a checkpoint holds."""
    weights = [answerability.log_odds, answerability.similarity, *answerability.hidden]
    return Fit(np.array(weights), answerability.bias).probabilities(data.features(Choice(answerability.layers, 0.0)))


def areas(scores_N: np.ndarray, data: Data) -> dict[str, float]:
    """For each kind without an answer: how often one of it has a higher score than one with an answer, ties half."""
    kinds_N, found_N = (np.array([row[name] for row in data.rows]) for name in ("kind", "found"))
    answerable_N = scores_N[(kinds_N == ANSWERABLE) & found_N]
    found = {}
    for kind in KINDS[1:]:
        own_N = scores_N[(kinds_N == kind) & (found_N | (kind != CUT_OUT))]
        if len(own_N):
            found[kind] = area(own_N, answerable_N)
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
    """Each file by a fit to the others: no probe, one behind each layer, and one behind all but the first and the last
    of them, with every ridge; and what the product does not see: other places, and attention."""
    middle = data.layers[1:-1] if len(data.layers) > 3 else data.layers
    probed = [*((each,) for each in data.layers), *([middle] if len(data.layers) > 3 else [])]
    choices = [NO_PROBE, *(Choice(layers, ridge) for layers in probed for ridge in RIDGES)]
    for places in ((WORD,), (WORDS,), (END, WORD)):
        choices += [Choice(middle, ridge, places) for ridge in RIDGES]
    for attention in ((GREATEST,), (SUM,), (GREATEST, SUM)):
        choices += [Choice((), ridge, (), attention) for ridge in RIDGES]
    choices += [Choice(middle, ridge, (END,), (GREATEST, SUM)) for ridge in RIDGES]
    found = [(choice, choice.left_out(data)) for choice in choices]
    return [Judged(choice, scores_N, areas(scores_N, data)) for choice, scores_N in found]


def best_of(found: list[Judged]) -> Judged:
    """Of what the product can hold, that which tells best."""
    return max((each for each in found if each.choice.is_of_product), key=lambda each: each.mean)


def _is_answered(data: Data) -> np.ndarray:
    return np.array([row["kind"] == ANSWERABLE and row["found"] for row in data.rows])


def threshold(scores_N: np.ndarray, data: Data) -> float:
    """What 5% of the answerable questions are above."""
    return float(np.quantile(scores_N[_is_answered(data)], 1 - LOST, method="higher"))


def strictest(scores_N: np.ndarray, data: Data) -> float:
    """What at most 5% of the answerable questions of any file are above: the greatest threshold of all files."""
    files = [np.array([row["file"] == file for row in data.rows]) for file in data.files]
    return max(threshold(scores_N[own_N], data.where(own_N)) for own_N in files if (own_N & _is_answered(data)).any())
