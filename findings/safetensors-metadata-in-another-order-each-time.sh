#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors with the same metadata, saved twice, are two different files.
#
# `save` and `save_file` write the tensors in one fixed order, whatever the order of the dict. The entries of `metadata` they write
# in the order of a hash map with a random seed: where there are two or more, the same call gives other bytes each time, within
# one process too. The files mean the same, but caches, builds and stores that go by the checksum of the file take them for
# different ones. transformers writes one entry (`format`), so that its files do not show it.
#
# Seen with safetensors 0.8.0, each saved 200 times:
#   no metadata: 1 file; one entry: 1 file; three entries: 6 files, all of 192 bytes
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 safetensors==0.8.0
"$folder/venv/bin/python" - <<'PYTHON'
import struct, json
import numpy as np
from safetensors.numpy import load, save

tensors = {"b": np.ones(2, np.float32), "a": np.zeros(2, np.float32)}


def files(metadata):
    return {save(tensors, metadata) for _ in range(200)}


none, one, three = files(None), files({"format": "np"}), files({"format": "np", "model": "tiny", "step": "3"})
same_meaning = all(np.array_equal(load(each)["b"], tensors["b"]) for each in three)
headers = {json.dumps(json.loads(each[8 : 8 + struct.unpack("<Q", each[:8])[0]]), sort_keys=True) for each in three}
sizes = sorted({len(each) for each in three})
assert same_meaning and len(headers) == len(sizes) == 1
print(f"no metadata: {len(none)} file; one entry: {len(one)} file; three entries: {len(three)} files, all of {sizes[0]} bytes")
assert save(tensors) == save(dict(reversed(tensors.items()))), "tensors are in one order"
raise SystemExit(not (len(none) == len(one) == 1 and len(three) > 1))
PYTHON
