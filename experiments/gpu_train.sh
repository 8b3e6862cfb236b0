#!/usr/bin/env bash
# Trains a recipe for a few minutes on a machine with one GPU that reaches no network and takes and gives little at a time.
#
#   python -m experiments.gpu_pack configs/default.yaml data.data_dir=FOLDER     here: build/gpu/manifest.json and part-0, part-1 ...
#   bash experiments/gpu_train.sh                                                there, after each part that has arrived
#
# While parts are missing it says which, and ends. With all of them it trains, and leaves the checkpoint's files below
# $OUT in pieces of at most 15 MiB (cat NAME.piece-* > NAME puts one together). A second call with the same $RUN goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=${PACK:-build/gpu}
out=${OUT:-$pack/out}
run=${RUN:-$pack/runs}
python=${PYTHON:-python3}
recipe=${RECIPE:-configs/default.yaml}
# large steps: a GPU is idle in small ones; validation is for a machine with time
gpu="data.tokens_per_step=32000 data.answers_per_step=420 data.workers=14 chunk_tokens=20000 answer_chunk_tokens=100000
     contrastive.cross_batch_memory=2048 lr=3e-4 warmup_steps=40 generative.p_quantise=0.15 adapter.quantisation_aware=0.4
     adapter.calibration_steps=0 validation.paths=[] checkpoint_seconds=10000 steps=100000 seconds=${TRAIN_SECONDS:-430}"
settings=${SETTINGS:-$gpu}

export PYTHONPATH="$PWD:$pack/stage/site:$pack/stage${PYTHONPATH:+:$PYTHONPATH}"
"$python" experiments/gpu_parts.py "$pack" || exit 0
mkdir -p "$out"
# shellcheck disable=SC2086  # settings are words
"$python" -m gritrag.train.loop "$recipe" "data.data_dir=$pack/stage/data" "runs_dir=$run" name=gpu $settings
cp "$run/gpu/metrics.jsonl" "$out/"
for file in $(cd "$run/gpu/checkpoint" && find . -type f | sed 's|^\./||'); do
    split -b 15M -d -a 1 "$run/gpu/checkpoint/$file" "$out/$(echo "$file" | tr / -).piece-"
done
ls -l "$out"
