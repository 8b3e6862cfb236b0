"""What repeated measurements and samples of questions say: medians with quartiles, means with paired bootstrap
intervals.

Resamples are the same for every system that is measured on the same rows, so the difference of two systems is taken
resample by resample, and its interval is a paired one, whatever the score: a mean, a rank correlation, a clustering.

Shape letters: `N` rows, `R` resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from statistics import median, quantiles
from typing import Any

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float], scale: float = 1.0) -> "Spread":
        """Of the values times `scale`: 1e3 makes milliseconds of seconds."""
        scaled = [scale * value for value in values]
        if len(scaled) < 2:
            return cls(scaled[0], scaled[0], scaled[0], len(scaled))
        low, _, high = quantiles(scaled, n=4, method="inclusive")
        return cls(median(scaled), low, high, len(scaled))

    @classmethod
    def of_ratios(cls, above: Sequence[float], below: Sequence[float]) -> "Spread":
        """Of `above / below`, pair by pair: both were measured in the same rounds."""
        return cls.of([a / b for a, b in zip(above, below, strict=True)])

    def show(self, form: str) -> str:
        return f"{self.median:{form}} [{self.low:{form}}, {self.high:{form}}]"


@dataclass(frozen=True)
class Interval:
    """An estimate from `n` rows, and the bounds of its 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    def show(self, form: str = ".1f", scale: float = 100.0) -> str:
        """Times `scale`: in points of 100, where it is not given."""
        mean, low, high = (f"{scale * each:{form}}" for each in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True)
class Sampled:
    """An estimate from `n` rows, and the same estimate on each resample, `[R]`."""

    estimate: float
    resampled: tuple[float, ...]
    n: int

    @classmethod
    def mean(cls, values_N: Sequence[float], seed: int) -> "Sampled":
        """The mean of one number per row."""
        array_N = np.asarray(values_N, np.float64)
        return cls(float(array_N.mean()), tuple(array_N[draws(len(array_N), seed)].mean(1).tolist()), len(array_N))

    def minus(self, other: "Sampled") -> "Sampled":
        """The paired difference.

        Raises:
            ValueError: `other` was not measured on the same rows and resamples.
        """
        if (self.n, len(self.resampled)) != (other.n, len(other.resampled)):
            raise ValueError(
                f"{self.n} rows and {len(self.resampled)} resamples against {other.n} and {len(other.resampled)}: "
                "only scores of the same rows can be compared"
            )
        differences_R = np.subtract(self.resampled, other.resampled)
        return Sampled(self.estimate - other.estimate, tuple(differences_R.tolist()), self.n)

    def interval(self) -> Interval:
        return _interval(self.estimate, np.asarray(self.resampled), self.n)


def draws(rows: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Row numbers `[R, N]`, drawn with replacement."""
    return np.random.default_rng(seed).integers(rows, size=(resamples, rows))


def mean(values_N: Sequence[float], seed: int) -> Interval:
    """The mean over rows."""
    return Sampled.mean(values_N, seed).interval()


def difference(a_N: Sequence[float], b_N: Sequence[float], seed: int) -> Interval:
    """Mean of `a` - `b`, paired: both were scored on the same rows."""
    return mean(np.subtract(a_N, b_N).tolist(), seed)


def ratio(a_N: Sequence[float], b_N: Sequence[float], seed: int) -> Interval | None:
    """Mean of `a` over mean of `b`, paired. Resamples in which `b` is 0 are left out; None if `b` is 0 throughout."""
    if not any(b_N):
        return None
    a, b = Sampled.mean(a_N, seed), Sampled.mean(b_N, seed)
    above_R, below_R = np.asarray(a.resampled), np.asarray(b.resampled)
    is_some_R = below_R > 0
    return _interval(a.estimate / b.estimate, above_R[is_some_R] / below_R[is_some_R], len(a_N))


def percent(share: Interval | None) -> str:
    """A `ratio` in points of 100, for a table; a dash where there is none."""
    return "-" if share is None else share.show()


def quantile(values_N: Sequence[float], q: float, seed: int) -> Interval:
    """The quantile `q` of the values."""
    return _interval(float(np.quantile(values_N, q)), _quantiles(values_N, q, seed), len(values_N))


def quantile_ratio(above_N: Sequence[float], below_N: Sequence[float], q: float, seed: int) -> Interval:
    """The quantile `q` of one sample over that of another, drawn apart, as their rows are not the same."""
    estimate = float(np.quantile(above_N, q) / np.quantile(below_N, q))
    ratios_R = _quantiles(above_N, q, seed) / _quantiles(below_N, q, seed + 1)
    return _interval(estimate, ratios_R, len(above_N))


def _quantiles(values_N: Sequence[float], q: float, seed: int) -> np.ndarray:
    array_N = np.asarray(values_N, np.float64)
    found_R: np.ndarray = np.quantile(array_N[draws(len(array_N), seed)], q, axis=1)
    return found_R


def auc(positive_N: Sequence[float], negative_N: Sequence[float], seed: int) -> Interval:
    """The `area`, with its interval."""
    above_NN = _above(positive_N, negative_N)
    pairs = zip(draws(len(positive_N), seed), draws(len(negative_N), seed + 1), strict=True)
    resampled_R = np.array([above_NN[rows][:, columns].mean() for rows, columns in pairs])
    return _interval(float(above_NN.mean()), resampled_R, len(positive_N) + len(negative_N))


def area(positive_N: Sequence[float] | np.ndarray, negative_N: Sequence[float] | np.ndarray) -> float:
    """How often a value of the one sample is above one of the other, ties half: the area under the ROC curve."""
    return float(_above(positive_N, negative_N).mean())


def _above(positive_N: Sequence[float] | np.ndarray, negative_N: Sequence[float] | np.ndarray) -> np.ndarray:
    """For each pair of values, `[positive, negative]`: 1 where the first is greater, 0.5 where they are equal."""
    positive, negative = np.asarray(positive_N, np.float64)[:, None], np.asarray(negative_N, np.float64)
    above_NN: np.ndarray = (positive > negative) + 0.5 * (positive == negative)
    return above_NN


def _interval(estimate: float, resampled_R: np.ndarray, rows: int) -> Interval:
    """95%, by the percentiles of the resamples (Efron 1979)."""
    low, high = np.quantile(resampled_R, (0.025, 0.975)).tolist()
    return Interval(estimate, low, high, rows)


# --- as JSON ----------------------------------------------------------------------------------------------------------

DIGITS = 6
"""Significant ones of numbers in a file: more than any measurement has."""


def as_json(value: Any) -> Any:
    """Dataclasses inside become objects, and numbers keep `DIGITS` digits."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def from_json(value: Any) -> Any:
    """Intervals and spreads are themselves again."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    for kind, first in ((Interval, "mean"), (Spread, "median")):
        if set(value) == {first, "low", "high", "n"}:
            return kind(**value)
    return {key: from_json(item) for key, item in value.items()}
