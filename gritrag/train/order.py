"""An order of texts in which like ones follow each other."""

from collections.abc import Sequence

import numpy as np


def by_words(texts: Sequence[str]) -> list[int]:
    """Rows of `texts`, each followed by the one among those left that shares most with it in rare words.

    The first text comes first. Texts are compared by the cosine of their TF-IDF vectors; time grows with their number
    squared (10,000 take a minute or so).

    Raises:
        ValueError: scikit-learn is not installed.
    """
    if len(texts) < 3:
        return list(range(len(texts)))
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise ValueError("order: words needs scikit-learn; pip install 'gritrag[train]'") from None
    vectors_NW = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\w+").fit_transform(texts)
    left_N = np.ones(len(texts), dtype=bool)
    order = [0]
    left_N[0] = False
    while len(order) < len(texts):
        near_N = (vectors_NW @ vectors_NW[order[-1]].T).toarray()[:, 0]
        order.append(int(np.where(left_N, near_N, -1.0).argmax()))
        left_N[order[-1]] = False
    return order
