#!/usr/bin/env bash
# torch 2.13.0: on a processor, in bfloat16, the gradient of LayerNorm's weight and bias is a sum in bfloat16 per thread. It stops growing
# once a term is less than half a step of it, at 256 for terms of 1, and is larger the more threads there are.
#
# Every token of a batch adds to these two vectors, so a batch of 4,096 tokens gives a sixteenth of the bias's gradient with one thread and an
# eighth with two. nn.Embedding (a token that is frequent) and indexing with a list of ids do the same with any number of threads.
# Linear, RMSNorm, GroupNorm and index_select sum in float32, so most layers of a model are right, the loss falls, and nothing warns: the
# norms learn too slowly, and not alike on two machines. Neither float16 nor small batches show it as plainly. Keep such weights in
# float32; torch.autocast does.
#
# Seen with torch 2.13.0, gradients of 4,096 tokens that add 1 each, of terms of mean 0.5 and deviation 1 (distance from float64, relative):
#   LayerNorm bias, 1 thread: 256, 0.5; 2 threads: 512, 0.26; 4 threads: 1024, 0.03
#   GroupNorm bias, Linear bias, index_select: 4096, 0.002
#   Embedding, 1024 of each of 4 ids: 256 instead of 1024; index_select: 1024
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6
cat > "$folder/gradients.py" <<'PYTHON'
import sys

import torch
from torch.nn import functional as F

TOKENS, WIDTH, IDS = 4096, 64, 4
torch.manual_seed(0)
x = torch.randn(TOKENS, WIDTH)
noisy = torch.randn(TOKENS, WIDTH) + 0.5
ids = torch.arange(TOKENS) % IDS
LAYERS = {
    "LayerNorm bias": (WIDTH, lambda x, bias: F.layer_norm(x, (WIDTH,), torch.ones_like(bias), bias)),
    "GroupNorm bias": (WIDTH, lambda x, bias: F.group_norm(x, 1, torch.ones_like(bias), bias)),
    "Linear bias": (WIDTH, lambda x, bias: F.linear(x, torch.eye(WIDTH, dtype=x.dtype), bias)),
    "Embedding": ((IDS, WIDTH), lambda x, table: F.embedding(ids, table)),
    "table[ids]": ((IDS, WIDTH), lambda x, table: table[ids]),
    "index_select": ((IDS, WIDTH), lambda x, table: table.index_select(0, ids)),
}


def gradient(layer: str, upstream: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    size, forward = LAYERS[layer]
    parameter = torch.zeros(size, dtype=dtype, requires_grad=True)
    forward(x.to(dtype), parameter).backward(upstream.to(dtype))
    return parameter.grad.double()


found = {}
for threads in (1, 2, 4):
    torch.set_num_threads(threads)
    for layer in LAYERS:
        exact = gradient(layer, noisy, torch.float64)
        of_ones = float(gradient(layer, torch.ones_like(noisy), torch.bfloat16).mean())
        off = float((gradient(layer, noisy, torch.bfloat16) - exact).norm() / exact.norm())
        found[layer, threads] = of_ones, round(off, 3)
        print(f"{threads} threads, {layer}: {of_ones:.0f}, {off:.3f}")
ones = {key: of_ones for key, (of_ones, _) in found.items()}
off = {key: off for key, (_, off) in found.items()}
as_described = [ones["LayerNorm bias", threads] for threads in (1, 2, 4)] == [256, 512, 1024]
as_described &= off["LayerNorm bias", 1] > 0.3 and off["LayerNorm bias", 1] > off["LayerNorm bias", 2] > off["LayerNorm bias", 4]
for threads in (1, 2, 4):
    as_described &= ones["Embedding", threads] == ones["table[ids]", threads] == 256 and ones["index_select", threads] == 1024
    as_described &= ones["GroupNorm bias", threads] == ones["Linear bias", threads] == 4096
    as_described &= max(off[layer, threads] for layer in ("GroupNorm bias", "Linear bias", "index_select")) < 0.01
sys.exit(not as_described)
PYTHON
"$folder/venv/bin/python" "$folder/gradients.py" && echo "as described"
