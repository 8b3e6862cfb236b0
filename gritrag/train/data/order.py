"""An order of texts in which like ones follow each other."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"\w+")

COMMON = 0.1
"""Words in a larger share of the texts than this say nothing, unless they are in few texts."""

FEW = 8


def by_words(texts: Sequence[str]) -> list[int]:
    """Rows of `texts`, each followed by the one among those left that shares most with it in rare words.

    The first text comes first. Texts are compared by the cosine of the words in them, which count once each, and the
    more the fewer texts have them (inverse document frequency). Time grows with the number of texts squared.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        for word in sorted(set(WORD.findall(text.lower()))):
            rows_of[word].append(row)
    most = max(COMMON * len(texts), FEW)
    shared = [np.array(rows) for rows in rows_of.values() if 1 < len(rows) <= most]
    squares = [math.log(len(texts) / len(rows)) ** 2 for rows in shared]
    words_of: list[list[int]] = [[] for _ in texts]
    norm_N = np.full(len(texts), 1e-9)
    for word, (rows, square) in enumerate(zip(shared, squares, strict=True)):
        norm_N[rows] += square
        for row in rows:
            words_of[row].append(word)
    left_N = np.ones(len(texts), dtype=bool)
    order: list[int] = []
    while len(order) < len(texts):
        near_N = np.zeros(len(texts))
        for word in words_of[order[-1]] if order else ():
            near_N[shared[word]] += squares[word]
        order.append(int(np.where(left_N, near_N / np.sqrt(norm_N), -1.0).argmax()))
        left_N[order[-1]] = False
    return order
