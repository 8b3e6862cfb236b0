"""Passages and vectors for an index of any size, drawn from a real distribution: real texts, embedded, and resampled.

A new vector is a real one plus a part of the difference between two real neighbours, normalised. So vectors lie as
those of the model do, in the same narrow cone and with the same spread in each direction; noise that is alike in all
directions would be far easier or far harder to search. A text is words drawn from the real ones, as often as they occur
there.

Shape letters: `N` passages, `Q` questions, `D` length of a vector, `R` real passages.
"""

import pydoc
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gritrag import Document, GritModel
from gritrag.model.state import Reading
from gritrag.records import Fingerprint

PASSAGE_WORDS = 70
QUESTION_WORDS = 12
NEIGHBOURS = 10
STEP = 0.7
"""Of the difference between neighbours that is added to a real vector."""

SAMPLED_WORDS = 60
"""Of a sampled text."""


def real_texts(folder: Path | None, most: int) -> list[str]:
    """Passages of some 70 words: of the text files below `folder`, or of what Python's standard library says."""
    if folder is None:
        texts = [_topics(), *_docstrings()]
    else:
        texts = [path.read_text("utf-8", errors="replace") for path in sorted(folder.rglob("*")) if path.is_file()]
    words = " ".join(texts).split()
    passages = [" ".join(words[start : start + PASSAGE_WORDS]) for start in range(0, len(words), PASSAGE_WORDS)]
    step = max(1, len(passages) // most)
    return passages[::step][:most]


def _topics() -> str:
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return " ".join(topics.values())


def _docstrings() -> Iterator[str]:
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in ("antigravity", "this", "idlelib", "turtledemo"):
            continue
        try:
            module = import_module(name)
        except ImportError:  # of another system
            continue
        yield pydoc.getdoc(module)
        for member in vars(module).values():
            if getattr(member, "__module__", None) == name:
                yield pydoc.getdoc(member)


@dataclass(frozen=True)
class Sample:
    """What is drawn from: vectors of real passages `[R, D]` and questions `[Q, D]`, and how often each word occurs."""

    real: np.ndarray
    queries: np.ndarray
    words: list[str]
    weights: np.ndarray

    @classmethod
    def make(cls, model: GritModel, texts: Sequence[str], questions: int) -> "Sample":
        """Embed texts; of every few of them some words in the middle are asked for, and that text is not indexed."""
        held_out = set(range(0, len(texts), max(2, len(texts) // questions)))
        documents = [text for number, text in enumerate(texts) if number not in held_out]
        asked = [_middle(texts[number]) for number in sorted(held_out)][:questions]
        counts = Counter(re.findall(r"[A-Za-z]{2,}", " ".join(texts).lower()))
        words = sorted(counts)
        weights = np.array([counts[word] for word in words], np.float64)
        vectors = model.encode_document(documents, show_progress_bar=True)
        return cls(vectors, model.encode_query(asked), words, weights / weights.sum())

    def save(self, path: Path) -> None:
        """Write a .npz file."""
        np.savez(path, real=self.real, queries=self.queries, words=np.array(self.words), weights=self.weights)

    @classmethod
    def load(cls, path: Path) -> "Sample":
        """Read what `save` wrote."""
        with np.load(path) as held:
            return cls(held["real"], held["queries"], held["words"].tolist(), held["weights"])

    def vectors(self, count: int, seed: int) -> np.ndarray:
        """float32 `[N, D]`, normalised."""
        random = np.random.default_rng(seed)
        near = _neighbours(self.real)
        vectors_ND = np.empty((count, self.real.shape[1]), np.float32)
        for start in range(0, count, 10_000):
            size = min(10_000, count - start)
            base, other = random.integers(0, len(self.real), (2, size))
            beside = near[other, random.integers(0, near.shape[1], size)]
            moved = self.real[base] + STEP * (self.real[other] - self.real[beside])
            vectors_ND[start : start + size] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        return vectors_ND

    def texts(self, count: int, seed: int) -> Iterator[str]:
        """Sampled texts, every one with its number in it."""
        random = np.random.default_rng(seed)
        for start in range(0, count, 10_000):
            size = min(10_000, count - start)
            drawn = random.choice(len(self.words), (size, SAMPLED_WORDS), p=self.weights)
            for number, row in enumerate(drawn.tolist(), start):
                yield f"passage{number} " + " ".join(self.words[word] for word in row)


def _middle(text: str) -> str:
    words = text.split()
    start = max(0, len(words) // 2 - QUESTION_WORDS // 2)
    return " ".join(words[start : start + QUESTION_WORDS])


def _neighbours(real: np.ndarray) -> np.ndarray:
    """Places of the nearest real vectors of each, int64 `[R, 10]`."""
    scores = real @ real.T
    np.fill_diagonal(scores, -np.inf)
    count = min(NEIGHBOURS, len(real) - 1)
    return np.argpartition(-scores, count - 1, axis=1)[:, :count]


class SampledReader:
    """A reader, as an index sees a model, whose vectors are looked up by the number of a passage: nothing is computed,
    so what is measured is the index."""

    max_document_tokens = 1 << 20
    state_elements_per_token = 2
    loaded_as: Mapping[str, Any] = {}

    def __init__(self, vectors_ND: np.ndarray, first: int = 0) -> None:
        self._vectors_ND = vectors_ND
        self.first = first
        self.dim = vectors_ND.shape[1]
        self.fingerprint = Fingerprint({"weights": "sampled", "reading": "causal"})

    def document_token_ids(self, document: str | Document) -> list[int]:
        """As many as a text has words; the first is the passage's number, so that no two are alike."""
        text = document if isinstance(document, str) else document.text
        name, *words = text.split()
        return [int(name.removeprefix("passage")), *(len(word) for word in words)]

    def encode_document(self, texts: Sequence[str | Document], *, show_progress_bar: bool = False) -> np.ndarray:
        """The vectors of these passages."""
        return self._vectors_ND[[self.document_token_ids(text)[0] - self.first for text in texts]]

    def encode_query(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Never asked: questions are given as vectors."""
        raise NotImplementedError

    def read_documents(self, texts: Sequence[str | Document], *, show_progress_bar: bool = False) -> list[Reading]:
        """Never asked: no states are stored."""
        raise NotImplementedError
