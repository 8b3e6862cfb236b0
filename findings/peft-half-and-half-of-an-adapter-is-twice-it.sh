#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter with combination_type="linear" and weights 0.5 and 0.5 makes of two equal adapters one that changes the
# model twice as much as each, and of different ones nothing like their mean.
#
# The factors are summed, not the changes: (√w1 A1 + √w2 A2) and (√w1 B1 + √w2 B2) are multiplied, which adds A1 with B2 and A2 with B1.
# "dare_linear" and "magnitude_prune" do the same, and "ties" halves two equal adapters. With one adapter the product is right, so trying
# the call with a single adapter shows nothing. Checkpoints of one run are nearly equal: their average by this call is nearly double.
# "cat" gives the exact mean, at the sum of both ranks; "svd", the default, the mean as far as the rank allows.
#
# Seen with peft 0.21.2, torch 2.13.0, distance from the mean of the changes, relative to it, and size of what comes out:
#   equal adapters: linear 1.0, size 2.0; ties 0.5, size 0.5; cat 0.0, size 1.0; svd 0.0, size 1.0
#   different adapters: linear 1.0, size 1.6; ties 0.9; cat 0.0; svd 0.5
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0
cat > "$folder/half.py" <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

WEIGHTS = [0.5, 0.5]


@torch.no_grad()
def combined(are_equal: bool) -> dict[str, tuple[float, float]]:
    """By the way to combine: distance from the mean, and size, both relative to the size of the mean."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Linear(32, 32)), config, adapter_name="first")
    model.add_adapter("second", config)
    layer = model.base_model.model[0]
    for factors in (layer.lora_A, layer.lora_B):
        for factor in factors.values():
            factor.weight.normal_()
        if are_equal:
            factors["second"].weight.copy_(factors["first"].weight)
    mean = sum(weight * layer.get_delta_weight(name) for weight, name in zip(WEIGHTS, ("first", "second")))
    found = {}
    for way in ("linear", "ties", "cat", "svd"):
        options = {"density": 1.0} if way == "ties" else {}
        model.add_weighted_adapter(["first", "second"], WEIGHTS, way, combination_type=way, **options)
        change = layer.get_delta_weight(way)
        found[way] = float((change - mean).norm() / mean.norm()), float(change.norm() / mean.norm())
    return found


equal, different = combined(True), combined(False)
for name, found in (("equal", equal), ("different", different)):
    print(f"{name} adapters:", *(f"{way} {off:.1f}, size {size:.1f};" for way, (off, size) in found.items()))
rounded = {way: (round(off, 3), round(size, 3)) for way, (off, size) in equal.items()}
as_described = rounded == {"linear": (1, 2), "ties": (0.5, 0.5), "cat": (0, 1), "svd": (0, 1)}
sys.exit(not (as_described and different["linear"][0] > 0.7 and different["cat"][0] < 1e-4))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/half.py" && echo "as described"
