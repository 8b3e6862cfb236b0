"""What an encoder is asked to do with rows: cluster, classify, compare and search them.

Shape letters: `N` rows, `D` length of a vector, `R` resamples.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gritrag.evaluate.rows import Labelled, Pair, QuestionSet
from gritrag.evaluate.scores import rank
from gritrag.evaluate.statistics import Sampled, draws
from gritrag.index.index import Index
from gritrag.index.protocol import Reader

try:
    from scipy.stats import rankdata
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import v_measure_score
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"evaluation needs {error.name}, which is not installed; run: pip install 'gritrag[eval]'", name=error.name
    ) from error

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts to float32 `[N, D]`, normalised."""

Found = dict[tuple[str, str], Sampled]
"""By the way it was done (empty where there is only one) and the name of the score."""

KMEANS_BATCH = 512
PROBE_ITERATIONS = 1000
WORDS = "BM25"
"""The way to search that needs no vectors, and so is the same for every encoder."""


class Task(Protocol):
    """A set that scores an encoder."""

    name: str

    def score(self, encoder: Reader, embed: Embed) -> Found:
        """Scores from 0 to 1 (STS: -1 to 1), higher is better.

        Args:
            encoder: for the task that has two sides, queries and documents.
            embed: the encoder, for tasks that have one.
        """


@dataclass(frozen=True)
class Clustering:
    """V-measure (Rosenberg and Hirschberg 2007) of mini-batch k-means against the labels.

    As in MTEB's fast clustering, each of `repetitions` clusterings is of a sample of the rows drawn with replacement,
    and the score is the mean over them; the interval covers both the rows and the starts of k-means.
    """

    rows: Sequence[Labelled]
    seed: int = 0
    repetitions: int = 20
    name = "clustering"

    def score(self, encoder: Reader, embed: Embed) -> Found:
        vectors_ND, labels_N = embed([row.text for row in self.rows]), np.array([row.label for row in self.rows])
        kinds, found = len(set(labels_N)), []
        for number, sample_N in enumerate(draws(len(self.rows), self.seed, self.repetitions)):
            means = MiniBatchKMeans(kinds, batch_size=KMEANS_BATCH, n_init="auto", random_state=self.seed + number)
            found.append(float(v_measure_score(labels_N[sample_N], means.fit_predict(vectors_ND[sample_N]))))
        return {("", "V-measure"): Sampled(float(np.mean(found)), tuple(found), len(self.rows))}


@dataclass(frozen=True)
class Classification:
    """Accuracy of a logistic regression that is fitted to the vectors of `train` and asked for the labels of `test`."""

    train: Sequence[Labelled]
    test: Sequence[Labelled]
    seed: int = 0
    name = "classification"

    def score(self, encoder: Reader, embed: Embed) -> Found:
        probe = LogisticRegression(max_iter=PROBE_ITERATIONS)
        probe.fit(embed([row.text for row in self.train]), [row.label for row in self.train])
        said_N = probe.predict(embed([row.text for row in self.test]))
        right_N = [float(said == row.label) for said, row in zip(said_N, self.test, strict=True)]
        return {("", "accuracy"): Sampled.mean(right_N, self.seed)}


@dataclass(frozen=True)
class Similarity:
    """Spearman's rank correlation of cosine similarities with the scores that people gave."""

    pairs: Sequence[Pair]
    seed: int = 0
    name = "STS"

    def score(self, encoder: Reader, embed: Embed) -> Found:
        first_ND, second_ND = embed([pair.first for pair in self.pairs]), embed([pair.second for pair in self.pairs])
        cosine_N, given_N = (first_ND * second_ND).sum(1), np.array([pair.score for pair in self.pairs])
        rows_RN = draws(len(self.pairs), self.seed)
        whole = float(spearman(cosine_N[None], given_N[None])[0])
        found_R = spearman(cosine_N[rows_RN], given_N[rows_RN])
        return {("", "Spearman"): Sampled(whole, tuple(found_R.tolist()), len(self.pairs))}


def spearman(a_RN: np.ndarray, b_RN: np.ndarray) -> np.ndarray:
    """Rank correlation of each row, `[R]`: Pearson's, of ranks, ties sharing their mean rank. 0 where all ranks tie."""
    a_RN, b_RN = (rankdata(values_RN, axis=1) for values_RN in (a_RN, b_RN))
    a_RN, b_RN = (ranks_RN - ranks_RN.mean(1, keepdims=True) for ranks_RN in (a_RN, b_RN))
    scale_R = np.sqrt((a_RN**2).sum(1) * (b_RN**2).sum(1))
    return (a_RN * b_RN).sum(1) / np.where(scale_R > 0, scale_R, 1.0)


@dataclass(frozen=True)
class Retrieval:
    """Each question's own passage among all passages, by vectors (dense), by words (BM25) and by both (hybrid)."""

    chosen: QuestionSet
    seed: int = 0
    name = "retrieval"
    scores = ("nDCG@10", "recall@1", "recall@5")

    def score(self, encoder: Reader, embed: Embed) -> Found:
        with (
            tempfile.TemporaryDirectory(prefix="gritrag-eval-") as folder,
            Index.create(Path(folder) / "index", model=encoder, states="none") as index,
        ):
            index.add(self.chosen.documents, show_progress_bar=True)
            ranked = rank(index, self.chosen.questions)
        return {
            (WORDS if way == "sparse" else way, name): Sampled.mean(found[name], self.seed)
            for way, found in ranked.items()
            for name in self.scores
        }
