#!/usr/bin/env bash
# rank-bm25 0.2.2 and bm25s 0.3.16: BM25+ ranks all documents alike whatever delta is, 0 too: as BM25 with the same weights of words.
#
# BM25+ (Lv and Zhai 2011) adds delta to each word of the question that a document holds, so that a long document which holds the word beats
# one that does not. Both libraries add it for every word of the question, also where the document does not hold it. Then each document
# gets the same sum more, and no order changes; the only trace is that documents with no word of the question score above 0. So tuning
# delta finds nothing, and long documents are as badly off as before. Where such a search ranks otherwise than Okapi's, the other weights
# of words do it. The formula of surveys sums over the words of the question; the paper's over those that question and document share.
#
# Seen with rank-bm25 0.2.2, bm25s 0.3.16, numpy 2.4.6, 300 documents, 50 questions, how often the ten best are those of delta 0:
#   rank-bm25, delta 1: 100%, delta 5: 100%
#   bm25s, delta 1: 100%, delta 5: 100%
#   as in the paper, delta 1: 14%, delta 5: 4%
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q rank-bm25==0.2.2 bm25s==0.3.16 numpy==2.4.6
cat > "$folder/delta.py" <<'PYTHON'
import sys

import bm25s
import numpy as np
from rank_bm25 import BM25Plus

K1, B, BEST = 1.5, 0.75, 10
draw = np.random.default_rng(0)
share = 1 / np.arange(1, 501)
share /= share.sum()
documents = [[f"w{word}" for word in draw.choice(500, draw.integers(5, 200), p=share)] for _ in range(300)]
questions = [[f"w{word}" for word in draw.choice(500, 5)] for _ in range(50)]
lengths = np.array([len(document) for document in documents])
counts = {word: np.array([document.count(word) for document in documents]) for word in {w for q in questions for w in q}}


def rank_bm25(delta: float) -> np.ndarray:
    index = BM25Plus(documents, k1=K1, b=B, delta=delta)
    return np.stack([index.get_scores(question) for question in questions])


def bm25_s(delta: float) -> np.ndarray:
    index = bm25s.BM25(method="bm25+", k1=K1, b=B, delta=delta, dtype="float64")
    index.index(documents, show_progress=False)
    return np.stack([index.get_scores(question) for question in questions])


def paper(delta: float) -> np.ndarray:
    scores = np.zeros((len(questions), len(documents)))
    for row, question in zip(scores, questions):
        for count in (counts[word] for word in question if counts[word].any()):
            weight = np.log((len(documents) + 1) / (count > 0).sum())
            part = count * (K1 + 1) / (count + K1 * (1 - B + B * lengths / lengths.mean()))
            row += np.where(count > 0, weight * (part + delta), 0)
    return scores


def best(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores.round(6), axis=1, kind="stable")[:, :BEST]


found = {}
for scorer in (rank_bm25, bm25_s, paper):
    without = best(scorer(0))
    found[scorer] = [np.mean([set(a) == set(b) for a, b in zip(best(scorer(delta)), without)]) for delta in (1, 5)]
    print(f"{scorer.__name__}: delta 1 finds the ten best of delta 0 for {found[scorer][0]:.0%}, delta 5 for {found[scorer][1]:.0%}")
rises = {scorer: float((scorer(1) - scorer(0)).std(axis=1).max()) for scorer in (rank_bm25, bm25_s)}
print("what delta adds differs between documents by", *(f"{rise:.0e}" for rise in rises.values()))
sys.exit(not (found[rank_bm25] == found[bm25_s] == [1, 1] and max(found[paper]) < 0.8 and max(rises.values()) < 1e-6))
PYTHON
"$folder/venv/bin/python" "$folder/delta.py" && echo "as described"
