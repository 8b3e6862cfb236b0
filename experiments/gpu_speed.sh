#!/usr/bin/env bash
# How much sooner does the first token come from states on a GPU, for 8 billion weights and for 135 million?
#
#   experiments/gpu_speed.sh OUT.json            at most 8 minutes on one H100; needs what the package needs, but no hub
#   experiments/gpu_speed.sh --smoke OUT.json    the same at the tiny geometry on a processor, under a minute
#
# Weights are random: time does not depend on what they say. States are int4 in host memory. Each measurement is a command
# of its own with its own file, so that one that fails (too little memory, say) costs none of the others; in the end all
# files that there are become one, whose tables `gritrag bench render OUT.json` prints. What has failed is told, and the exit
# status is 1.
set -uo pipefail

device=cuda dtype=bfloat16 storage=memory rounds=7 limit=115
cases=("llama3-8b 10 500" "llama3-8b 32 500" "smollm2-135m 10 500" "smollm2-135m 32 500")
if [ "${1:-}" = "--smoke" ]; then
    shift
    device=cpu dtype=float32 storage=disk rounds=1 limit=600  # a busy processor is slow, not broken
    cases=("tiny 2 50" "tiny 4 50")
fi
out=${1:?usage: experiments/gpu_speed.sh [--smoke] OUT.json}
python=${PYTHON:-python}
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
failed=0

for case in "${cases[@]}"; do
    read -r geometry documents tokens <<<"$case"
    echo "== $geometry, $documents x $tokens tokens" >&2
    # 8 minutes in all: what takes longer than its share is stopped
    timeout "$limit" "$python" -c "from gritrag.cli import app; app()" bench first-token --geometry "$geometry" --documents "$documents" \
        --tokens "$tokens" --states int4 --storage "$storage" --repetitions "$rounds" --device "$device" --dtype "$dtype" \
        --out "$parts/$geometry-$documents.json" || { echo "failed: $case" >&2; failed=1; }
done

"$python" - "$parts" "$out" <<'PYTHON' || failed=1
import json
import sys
from pathlib import Path

parts, out = map(Path, sys.argv[1:])
results = [json.loads(path.read_text("utf-8")) for path in sorted(parts.glob("*.json"))]
if not results:
    sys.exit("nothing was measured")
out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
PYTHON
exit $failed
