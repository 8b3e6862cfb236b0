"""Complements: documents that explain other tokens of a question than the best one does.

Of a question that needs several documents, one explains these words and another those: token by token their scores
tell what their means hide. Scores are log-probabilities of the tokens behind each document (`gritrag.index.rerank`), or
what attention finds in it (`gritrag.model.lifting`).

Shape letters: `N` documents, `S` tokens of a question.
"""

import numpy as np

__all__ = ["complements", "gains"]

WINDOW = 5
"""Tokens over which scores are averaged before documents are compared: of single tokens any document may guess one
better than the rest."""

LEAST_GAIN = 0.4
"""Nats per token of the question that a further document must add, where scores are log-probabilities. Chosen on
validation sets, see docs/experiments/2026-11-several-documents.md."""


def complements(scores_NS: np.ndarray, best: int, least_gain: float = LEAST_GAIN) -> list[int]:
    """Rows of documents that explain a question better together with the best one than it does alone.

    Args:
        scores_NS: of each token of the question by each document.
        best: row of the document to begin with.
        least_gain: what each further document must add to the mean over tokens, above 0.

    Returns:
        the further rows, the one that adds most first; none where the best document is enough.

    Raises:
        ValueError: a gain of 0, which any document adds without end, or less.
    """
    if not least_gain > 0:
        raise ValueError(f"least_gain must be above 0, not {least_gain!r}")
    smooth_NS = _smoothed(scores_NS)
    explained_S = smooth_NS[best]
    found: list[int] = []
    while True:
        gains_N = _gains(smooth_NS, explained_S)
        row = int(gains_N.argmax())
        if not gains_N[row] >= least_gain:  # NaN too
            return found
        found.append(row)
        explained_S = np.maximum(smooth_NS[row], explained_S)


def gains(scores_NS: np.ndarray, best: int) -> np.ndarray:
    """What each document adds to the mean score of the best one, float64 `[N]`; see `complements` for arguments."""
    smooth_NS = _smoothed(scores_NS)
    return _gains(smooth_NS, smooth_NS[best])


def _gains(smooth_NS: np.ndarray, explained_S: np.ndarray) -> np.ndarray:
    found_N: np.ndarray = np.maximum(smooth_NS, explained_S).mean(1) - explained_S.mean()
    return found_N


def _smoothed(scores_NS: np.ndarray) -> np.ndarray:
    """Means over `WINDOW` neighbours; the first and the last token count for those that are missing beside them."""
    padded = np.pad(scores_NS.astype(np.float64), ((0, 0), (WINDOW // 2, WINDOW // 2)), "edge")
    smooth_NS: np.ndarray = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1).mean(-1)
    return smooth_NS
