#!/usr/bin/env bash
# transformers 5.23.0: position_ids with a gap cut the attention, but only where no cache is made. The same ids and positions give other
# logits with use_cache=False than by default, and so does one and the same model once gradient checkpointing is on.
#
# Where neither a mask nor a cache is given, the library looks whether several sequences lie behind one another, and takes every step of
# position_ids that is not exactly 1 for the beginning of a new one: not only a return to 0, also a gap. What stands behind the gap then
# sees nothing of what stands before it. Positions with gaps are what prompt compression, states of documents at places of their own, and
# reserved room between documents give. A cache, which is made by default, turns the search off; gradient checkpointing turns the
# cache off. So a model is trained with one attention and answers with another, without an error.
#
# Seen with transformers 5.23.0, torch 2.13.0 on a tiny random Llama, positions 0..4 and 20..24, differences relative to the largest logit:
#   use_cache=False: 1.1; training: 0; training with gradient checkpointing: 1.1; use_cache=False with a mask of ones: 0
#   what use_cache=False gives behind the gap is what these five tokens give alone
# Give a mask of ones wherever positions are not consecutive.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.23.0 safetensors==0.8.0
cat > "$folder/gap.py" <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, logging

logging.set_verbosity_error()
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3,
    )
).eval()
ids = torch.arange(10, 20)[None]
positions = torch.tensor([[0, 1, 2, 3, 4, 20, 21, 22, 23, 24]])


@torch.no_grad()
def logits(**options):
    return model(input_ids=ids, position_ids=positions, **options).logits


def off(found, expected):
    """Largest difference, relative to the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


whole, cut = logits(), logits(use_cache=False)
masked = logits(use_cache=False, attention_mask=torch.ones_like(ids))
with torch.no_grad():
    alone = model(input_ids=ids[:, 5:], position_ids=positions[:, 5:]).logits
model.train()
trained = logits()
model.gradient_checkpointing_enable()
checkpointed = logits()
print(f"without a cache: {off(cut, whole):.1f}; with a mask of ones: {off(masked, whole):.0e}")
print(f"training: {off(trained, whole):.0e}; with gradient checkpointing: {off(checkpointed, whole):.1f}")
print(f"behind the gap, from what stands there alone: {off(cut[:, 5:], alone):.0e}")
same = max(off(masked, whole), off(trained, whole), off(cut[:, 5:], alone), off(cut[:, :5], whole[:, :5]))
if not (same < 1e-4 and min(off(cut, whole), off(checkpointed, whole)) > 0.1):
    sys.exit("the behaviour has changed")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/gap.py" && echo "as described"
