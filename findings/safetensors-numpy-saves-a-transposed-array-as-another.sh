#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy saves an array that is not in C order with its numbers in other places, and says nothing.
#
# save and save_file hand over the address where the array's numbers lie and its shape; strides are not looked at. What is written is memory
# as it lies, what is read has the right shape, dtype and size. Transposed arrays, columns of a larger one and arrays of Fortran's order are
# such, as in every conversion of a checkpoint that splits a fused projection or turns [inputs, outputs] into [outputs, inputs]: the
# model loads without complaint and computes noise. Up to 0.7 the numbers were copied out in order; safetensors.torch refuses such
# tensors. The docstring asks for contiguous arrays and nothing looks, and Fortran's order is contiguous. np.ascontiguousarray mends it.
#
# Seen with safetensors 0.8.0, numpy 2.4.6, [[0, 1, 2], [3, 4, 5]] saved and read:
#   as it is: [[0, 1, 2], [3, 4, 5]]; in Fortran's order: [[0, 3, 1], [4, 2, 5]]
#   its transpose [[0, 3], [1, 4], [2, 5]]: [[0, 1], [2, 3], [4, 5]]; its first two columns [[0, 1], [3, 4]]: [[0, 1], [2, 3]]
#   a fused projection [32, 96], split into three and each transposed, from the file: products off by 1.4 of their size
# and with safetensors 0.7.0: all as they were, products off by 0
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
for version in 0.8.0 0.7.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q --no-compile safetensors==$version numpy==2.4.6
done
cat > "$folder/order.py" <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, save


def again(array: np.ndarray) -> np.ndarray:
    return load(save({"array": array}))["array"]


rows = np.arange(6, dtype=np.float32).reshape(2, 3)
cases = {"as it is": rows, "in Fortran's order": np.asfortranarray(rows), "its transpose": rows.T, "its columns": rows[:, :2]}
kept = {}
print("safetensors", version("safetensors"))
for name, array in cases.items():
    kept[name] = np.array_equal(again(array), array)
    print(f"  {name} {array.tolist()}: {again(array).tolist()}")
fused = np.random.default_rng(0).standard_normal((32, 96)).astype(np.float32)
x = np.random.default_rng(1).standard_normal((8, 32)).astype(np.float32)
read = np.concatenate([again(part.T).T for part in np.split(fused, 3, axis=1)], axis=1)
off = float(np.linalg.norm(x @ read - x @ fused) / np.linalg.norm(x @ fused))
print(f"  a fused projection, split and transposed: products off by {off:.1f} of their size")
is_old = version("safetensors") == "0.7.0"
expected = dict.fromkeys(cases, is_old) | {"as it is": True}
sys.exit(not (kept == expected and (off < 1e-5) == is_old and (off > 1) != is_old))
PYTHON
"$folder/0.8.0/bin/python" "$folder/order.py" && "$folder/0.7.0/bin/python" "$folder/order.py" && echo "as described"
