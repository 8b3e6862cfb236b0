#!/usr/bin/env bash
# Bamba in transformers 5.23.0 counts positions from 0 again for tokens that follow a cache, unless position_ids are given.
#
# Every other decoder of the library takes the length of past_key_values as the position of the first new token where the
# caller gives no position_ids; Jamba and Granite 4, built alike, do so too. Bamba takes 0. generate() passes position_ids and
# is right, so only those who call the model themselves get other logits, without an error or a warning.
#
# Seen with transformers 5.23.0, torch 2.13.0:
#   without position_ids: off by 0.4 of the largest logit; with them: off by less than 1e-5
#   Jamba without position_ids: off by less than 1e-5
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.4 transformers==5.23.0 safetensors==0.8.0
cat > "$folder/positions.py" <<'PYTHON'
import sys

import torch
from transformers import BambaConfig, BambaForCausalLM, JambaConfig, JambaForCausalLM, logging

logging.set_verbosity_error()

SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=64,
)
IDS, READ = torch.arange(10, 20)[None], 6


@torch.no_grad()
def off(model, gives_positions):
    """Largest difference of the logits after a cache from those of one forward, relative to the largest."""
    whole = model(input_ids=IDS).logits
    cache = model(input_ids=IDS[:, :READ], use_cache=True).past_key_values
    worst = 0.0
    for position in range(READ, IDS.shape[1]):
        given = {"position_ids": torch.tensor([[position]])} if gives_positions else {}
        step = model(input_ids=IDS[:, position : position + 1], past_key_values=cache, use_cache=True, **given)
        worst = max(worst, float((step.logits[0, 0] - whole[0, position]).abs().max() / whole.abs().max()))
    return worst


torch.manual_seed(0)
bamba = BambaForCausalLM(
    BambaConfig(**SIZES, attn_layer_indices=[1, 3], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=16)
).eval()
jamba = JambaForCausalLM(
    JambaConfig(
        **SIZES, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_dt_rank=4,
        mamba_d_state=8,
    )
).eval()
without, given, other = off(bamba, False), off(bamba, True), off(jamba, False)
print(f"Bamba without position_ids: off by {without:.1e}; with them: {given:.0e}; Jamba without: {other:.0e}")
if not (without > 0.05 and given < 1e-4 and other < 1e-4):
    sys.exit("the behaviour has changed")
PYTHON
"$folder/venv/bin/python" "$folder/positions.py"
