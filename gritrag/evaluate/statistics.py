"""Sampled: a score of a set, and what it becomes on resamples of the set's rows that all systems share.

Because the resamples are the same, the difference of two systems is taken resample by resample, and its interval is a
paired one, whatever the score: a mean, a rank correlation, a clustering.

Shape letters: `N` rows, `R` resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gritrag.evaluate.scores import RESAMPLES, Interval


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
        """95%, by the percentiles of the resamples (Efron 1979)."""
        low, high = np.quantile(self.resampled, (0.025, 0.975)).tolist()
        return Interval(self.estimate, low, high, self.n)


def draws(rows: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Row numbers `[R, N]`, drawn with replacement."""
    return np.random.default_rng(seed).integers(rows, size=(resamples, rows))
