"""Complements: documents behind which other tokens of a question are probable than behind the best one.

A question that needs several documents is improbable behind each of them as a whole: one makes these words of it
probable, another those. Token by token they tell what their means hide.

Shape letters: `N` documents, `S` tokens of a question.
"""

import numpy as np

__all__ = ["complements"]

WINDOW = 5
"""Tokens over which log-probabilities are averaged before documents are compared: of single tokens any document may
guess one better than the rest."""

LEAST_GAIN = 0.4
"""Nats per token of the question that a further document must add. Chosen on validation sets, see
docs/experiments/2026-11-several-documents.md."""


def complements(logs_NS: np.ndarray, best: int, least_gain: float = LEAST_GAIN) -> list[int]:
    """Rows of documents that explain a question better together with the best one than it does alone.

    Args:
        logs_NS: log-probability of each token of the question behind each document, in nats.
        best: row of the document to begin with.
        least_gain: nats per token that each further document must add, above 0.

    Returns:
        the further rows, the one that adds most first; none where the best document is enough.

    Raises:
        ValueError: a gain of 0, which any document adds without end, or less.
    """
    if not least_gain > 0:
        raise ValueError(f"least_gain must be above 0, not {least_gain!r}")
    smooth_NS = _smoothed(logs_NS.astype(np.float64))
    explained_S = smooth_NS[best]
    found: list[int] = []
    while True:
        together_NS = np.maximum(smooth_NS, explained_S)
        gains_N = together_NS.mean(1) - explained_S.mean()
        row = int(gains_N.argmax())
        if not gains_N[row] >= least_gain:  # NaN too
            return found
        found.append(row)
        explained_S = together_NS[row]


def _smoothed(logs_NS: np.ndarray) -> np.ndarray:
    """Means over `WINDOW` neighbours; the first and the last token count for those that are missing beside them."""
    padded = np.pad(logs_NS, ((0, 0), (WINDOW // 2, WINDOW // 2)), "edge")
    smooth_NS: np.ndarray = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1).mean(-1)
    return smooth_NS
