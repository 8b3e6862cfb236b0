#!/usr/bin/env bash
# torch 2.13.0: on a processor with bfloat16 instructions torch.bmm copies a factor whose matrices do not follow one another in
# memory, such as the filled columns of a cache that is longer; it does so in bfloat16 only. In float32 and float16 the same view is
# multiplied as it lies, and so is a bfloat16 cache that is used as a whole.
#
# Seen with torch 2.13.0, copies in one product with a view of [3, columns, 64] of a buffer [3, 2304, 64]:
#   torch.float32 all columns: 0, the first 2112: 0
#   torch.float16 all columns: 0, the first 2112: 0
#   torch.bfloat16 all columns: 0, the first 2112: 1
#
# Attention over a cache with room for an answer copies all keys and all values in every layer for every token: a tenth of a step of
# decoding with a small model and 2,000 tokens of context. Give attention the whole cache and hide the rest with a mask.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.4
cat > "$folder/copies.py" <<'PYTHON'
import sys

import torch
from torch.profiler import ProfilerActivity, profile


def copies(dtype: torch.dtype, columns: int) -> int:
    keys = torch.zeros(3, 2304, 64, dtype=dtype)[:, :columns]
    rows = torch.zeros(3, 12, 64, dtype=dtype)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.bmm(rows, keys.transpose(1, 2))
    return sum(event.count for event in seen.key_averages() if event.key == "aten::copy_")


print("torch", torch.__version__)
if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    print("this processor has no bfloat16 instructions: nothing can be seen on it")
    sys.exit(0)
found = {}
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    found[dtype] = copies(dtype, 2304), copies(dtype, 2112)
    print(f"{dtype} all columns: {found[dtype][0]}, the first 2112: {found[dtype][1]}")
sys.exit(0 if found == {torch.float32: (0, 0), torch.float16: (0, 0), torch.bfloat16: (0, 1)} else 1)
PYTHON
"$folder/venv/bin/python" "$folder/copies.py"
