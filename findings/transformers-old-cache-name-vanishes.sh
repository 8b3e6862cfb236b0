#!/usr/bin/env bash
# transformers 5.24.0: models take the cache as `cache`, and `past_key_values` is promised to work, with a warning, until 5.40. One
# model that is new in this release, Dory, lets the old name vanish among its further arguments: no error and no warning. Its cache
# stays empty, and tokens that are read one after the other see nothing of what was read before them.
#
# Seen with transformers 5.24.0 and torch 2.13.0, the last 4 of 12 tokens read behind the first 8, against all 12 at once:
#   dory, cache: 12 tokens kept, logits off by 0.0
#   dory, past_key_values: 0 tokens kept, logits off by more than 0.001, 0 warnings
#   llama, past_key_values: 12 tokens kept, logits off by 0.0, warned
#
# A loop of one's own that passes past_key_values goes on running and writes text as if each token were the first. Ask the forward's
# signature which name it takes, and count what is in the cache after the first step.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/vanishes.py" <<'PYTHON'
import sys
import warnings

import torch
import transformers
from transformers import DoryConfig, DoryForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
READ, ALL = 8, 12


def made(config_class, model_class, **given):
    torch.manual_seed(0)
    return model_class(config_class(**SIZES, **given)).eval()


@torch.no_grad()
def two_steps(model, name):
    """Tokens in the cache, how far the second step is off one long one, and warnings."""
    ids = torch.arange(ALL)[None] * 7 % SIZES["vocab_size"]
    positions = torch.arange(READ, ALL)[None]
    cache = DynamicCache(config=model.config)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model(input_ids=ids[:, :READ], **{name: cache})
        second = model(input_ids=ids[:, READ:], position_ids=positions, **{name: cache}).logits
    off = float((second - model(input_ids=ids).logits[:, READ:]).abs().max())
    return cache.get_seq_length(), off, len([each for each in told if name in str(each.message)])


print("torch", torch.__version__, "transformers", transformers.__version__)
dory = made(DoryConfig, DoryForCausalLM, num_hidden_layers=8, n_input_layers=2, n_output_layers=2)
llama = made(LlamaConfig, LlamaForCausalLM, num_hidden_layers=4)
found = {
    "dory, cache": two_steps(dory, "cache"),
    "dory, past_key_values": two_steps(dory, "past_key_values"),
    "llama, past_key_values": two_steps(llama, "past_key_values"),
}
for case, (kept, off, told) in found.items():
    print(f"{case}: {kept} tokens kept, logits off by {off:.4f}, {told} warnings")
(kept, off, _), (lost, wrong, silent), (old, right, told) = found.values()
as_described = (kept, lost, old) == (ALL, 0, ALL) and max(off, right) < 1e-5 and wrong > 1e-3 and silent == 0 and told > 0
sys.exit(0 if as_described else 1)
PYTHON
"$folder/venv/bin/python" "$folder/vanishes.py"
