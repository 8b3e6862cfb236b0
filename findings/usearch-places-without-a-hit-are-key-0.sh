#!/usr/bin/env bash
# usearch 2.26.6: where a search of several queries finds fewer than asked for, the places that are left in `keys` hold 0, which is the key of
# the first document in most indexes; and recall as the library measures it counts them as found.
#
# add(None, vectors) numbers from 0, so 0 is a document, and often the first id of a table too. `keys` has a column for every hit that was
# asked for; an index with fewer vectors than that, a small shard or what is left after remove(), fills the rest with 0 and the
# distances with NaN. There is no -1 as FAISS has, a single query gives a short array instead, and to_list() leaves the places out:
# so code that was tried with one query reads document 0 into answers once it asks in batches. mean_recall() and count_matches() look
# through all columns: an index without anything in it finds document 0 always. matches[i] and matches.counts tell how many are real.
#
# Seen with usearch 2.26.6, numpy 2.4.6, documents 0, 1 and 2, of which 0 was removed, 4 hits asked for:
#   three queries: keys [1 2 0 0] for each in some order, counts 2; one query: 2 keys
#   FAISS 1.15.1, the same vectors 1 and 2: [1 2 -1 -1]
#   recall of the documents 0, 1, 2 by mean_recall: 1.0, counted from matches[i]: 0.67; of document 0 in an empty index: 1.0
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile usearch==2.26.6 faiss-cpu==1.15.1 numpy==2.4.6
cat > "$folder/keys.py" <<'PYTHON'
import sys

import faiss
import numpy as np
from usearch.index import Index

WANTED = 4
vectors = np.random.default_rng(0).standard_normal((3, 16)).astype("float32")
right = np.arange(3, dtype=np.uint64)

index = Index(ndim=16, metric="l2sq")
numbered = index.add(None, vectors)
index.remove(0)
matches = index.search(vectors, WANTED)
alone = index.search(vectors[0], WANTED)
real = [set(matches[row].keys.tolist()) for row in range(len(matches))]
by_library = matches.mean_recall(right), Index(ndim=16).search(vectors, WANTED).mean_recall(np.zeros(3, np.uint64))
counted = sum(int(key) in found for key, found in zip(right, real)) / len(right)

flat = faiss.IndexIDMap2(faiss.IndexFlatL2(16))
flat.add_with_ids(vectors[1:], np.array([1, 2]))
by_faiss = flat.search(vectors, WANTED)[1]

print("keys that add(None, ...) gives:", numbered, "; in the index now:", sorted(map(int, index.keys)))
print("three queries: keys", matches.keys.tolist(), "counts", matches.counts, "; one query:", alone.keys)
print("FAISS:", by_faiss.tolist())
print(f"recall by mean_recall: {by_library[0]:.2f}, counted: {counted:.2f}; of document 0 in an empty index: {by_library[1]:.2f}")
as_described = list(numbered) == [0, 1, 2] and 0 not in index and real == [{1, 2}] * 3 and len(alone.keys) == 2
as_described &= (matches.keys[:, 2:] == 0).all() and bool(np.isnan(matches.distances[:, 2:]).all()) and (by_faiss[:, 2:] == -1).all()
sys.exit(not (as_described and by_library == (1, 1) and round(counted, 2) == 0.67))
PYTHON
"$folder/venv/bin/python" "$folder/keys.py" && echo "as described"
