#!/usr/bin/env bash
# ir_measures 0.4.3: in one call, RR@k breaks ties towards the first document id and everything else towards the last, RR without a cutoff too.
# And ties are more than equal scores: what differs in the eighth digit is one for all but RR@k.
#
# Measures are shared out among programs: reciprocal rank with a cutoff to one, nearly all others to trec_eval's code. The one sorts ties by
# id upwards, the other downwards, so a run with ties is scored as two different rankings. trec_eval keeps scores in single precision,
# where 0.90000002 and 0.90000001 are the same. Ties are common: scores of small integers or rounded ones, reciprocal ranks that are
# fused, sigmoid outputs near 1, the same text stored twice. Ids that sort by relevance, as where the right passages were added first,
# make a constant score perfect by one measure and worthless by the others. Give ranks as scores: float(-rank).
#
# Seen with ir_measures 0.4.3, pytrec_eval-terrier 0.5.11, 100 documents with one score, the first is right:
#   RR@10 1.0, RR@1000 1.0, RR 0.01, Success@10 0.0, nDCG@10 0.0
#   the same with the last one right: RR@10 0.0, RR@1000 0.01, RR 1.0, Success@10 1.0, nDCG@10 1.0
#   0.90000002 for the right a, 0.90000001 for b: RR@10 1.0, RR 0.5
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile ir-measures==0.4.3 pytrec_eval-terrier==0.5.11
cat > "$folder/ties.py" <<'PYTHON'
import sys

import ir_measures
from ir_measures import RR, Success, nDCG

MEASURES = [RR @ 10, RR @ 1000, RR, Success @ 10, nDCG @ 10]
ids = [f"d{number:03}" for number in range(100)]


def scores(run: dict[str, float], right: str) -> list[float]:
    found = ir_measures.calc_aggregate(MEASURES, {"q": {right: 1}}, {"q": run})
    return [round(found[measure], 3) for measure in MEASURES]


same = dict.fromkeys(ids, 1.0)
first, last = scores(same, ids[0]), scores(same, ids[-1])
ranked = scores({id: float(-rank) for rank, id in enumerate(ids)}, ids[0])
close = scores({"a": 0.90000002, "b": 0.90000001}, "a")
print("measures:", *MEASURES)
print("one score, the first right:", *first)
print("one score, the last right: ", *last)
print("scores by rank, the first: ", *ranked)
print("different in the 8th digit:", *close)
as_described = first == [1, 1, 0.01, 0, 0] and last == [0, 0.01, 1, 1, 1] and ranked == [1] * 5
sys.exit(not (as_described and close == [1, 1, 0.5, 1, 0.631]))
PYTHON
"$folder/venv/bin/python" "$folder/ties.py" && echo "as described"
