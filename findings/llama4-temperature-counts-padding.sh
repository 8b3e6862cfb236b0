#!/usr/bin/env bash
# Llama 4 in transformers 5.23.0 counts padding: a prompt padded on the left gets other logits, whatever position_ids say.
#
# Layers without rotary embeddings scale their queries by the position of a token (attn_temperature_tuning, on by default: one
# step of temperature for every floor_scale tokens, 8,192 by default). The attention counts columns for that, from the length of
# the cache, and looks neither at position_ids nor at attention_mask. So every batch of prompts of several lengths, as generate()
# pads it, reads the shorter ones with the temperature of a later place. Masks and rotary embeddings are right, so a model whose
# texts stay below floor_scale shows nothing.
#
# Seen with transformers 5.23.0, torch 2.13.0 (floor_scale 16, random weights), of a prompt of 20 tokens behind 30 of padding:
#   logits off by 4e-2 of the largest; with attn_temperature_tuning=False: by 5e-7
#   position_ids and attention_mask are given each time, and what lies in the padding changes nothing
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.4 transformers==5.23.0 safetensors==0.8.0
cat > "$folder/padding.py" <<'PYTHON'
import sys

import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig, logging

logging.set_verbosity_error()
TOKENS, PADDING = 20, 30
SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=64, intermediate_size_mlp=64, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=256,
    no_rope_layers=[1, 0, 1, 0], attention_chunk_size=128, floor_scale=16, initializer_range=0.2, pad_token_id=0,
)
ids = torch.randint(3, 64, (1, TOKENS), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def off(tuning, filler=0):
    torch.manual_seed(0)
    model = Llama4ForCausalLM(Llama4TextConfig(**SIZES, attn_temperature_tuning=tuning)).eval()
    alone = model(input_ids=ids).logits
    padded = torch.cat([torch.full((1, PADDING), filler), ids], dim=1)
    seen = torch.cat([torch.zeros(1, PADDING, dtype=torch.long), torch.ones_like(ids)], dim=1)
    positions = (seen.cumsum(-1) - 1).clamp_min(0)
    logits = model(input_ids=padded, attention_mask=seen, position_ids=positions).logits[:, PADDING:]
    return float((logits - alone).abs().max() / alone.abs().max()), logits


default = Llama4TextConfig()
(tuned, one), (other, two), (plain, _) = off(True), off(True, filler=5), off(False)
same = float((one - two).abs().max()) < 1e-4
print(f"off by {tuned:.0e}; without attn_temperature_tuning: {plain:.0e}; the padding itself is seen: {not same}")
if not (default.attn_temperature_tuning and tuned > 5e-3 and plain < 1e-5 and same):
    sys.exit("the behaviour has changed")
PYTHON
"$folder/venv/bin/python" "$folder/padding.py"
