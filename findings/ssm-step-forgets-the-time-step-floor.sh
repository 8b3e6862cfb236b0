#!/usr/bin/env bash
# Zamba 2 in transformers 5.23.0 goes on from its cache otherwise than it reads: only reading knows time_step_min.
#
# In a Mamba 2 layer of Zamba 2 (and of Nemotron-H, which has the same lines) the step of the recurrence is not to fall below
# time_step_min of the config, 0.001 by default. The scan over a text raises smaller steps to it (dt_limit); the update by one
# token, with which every token behind a prompt is generated, gets no limit. So logits after a cache are off those of one
# forward over the same tokens. It is no rounding: in float64 it is just as much, and with steps that never fall so low it is
# gone. Mamba 2 itself, whose default limit is 0, agrees in both.
#
# Seen with transformers 5.23.0, torch 2.13.0, in float64, largest difference of the logits relative to the largest one:
#   Zamba 2, time_step_min 0.001 (its default): 4e-4
#   Zamba 2, time_step_min 0.05: 9e-3
#   Zamba 2, time_step_min 1e-9: below 1e-6
#   Mamba 2: below 1e-6
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.4 transformers==5.23.0 safetensors==0.8.0
cat > "$folder/step.py" <<'PYTHON'
import sys

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, Zamba2Config, Zamba2ForCausalLM, logging

logging.set_verbosity_error()
IDS = torch.randint(3, 64, (1, 60), generator=torch.Generator().manual_seed(1))
READ = 20


def zamba(floor):
    return Zamba2ForCausalLM(
        Zamba2Config(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=4, attention_hidden_size=64, attention_head_dim=16, mamba_d_state=8, mamba_ngroups=1,
            n_mamba_heads=8, mamba_headdim=8, chunk_size=16, adapter_rank=4, num_mem_blocks=1, initializer_range=0.2,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], hybrid_layer_ids=[1, 3],
            max_position_embeddings=128, time_step_min=floor,
        )
    )


def mamba():
    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=64, hidden_size=32, num_hidden_layers=4, num_heads=8, head_dim=8, state_size=8, n_groups=1,
            chunk_size=16, expand=2, initializer_range=0.2,
        )
    )


@torch.no_grad()
def off(made, *given, kept_as="past_key_values"):
    """Of logits behind a cache, token by token, from those of one forward."""
    torch.manual_seed(0)
    model = made(*given).eval()
    whole = model(input_ids=IDS).logits
    output = model(input_ids=IDS[:, :READ], use_cache=True)
    worst = 0.0
    for place in range(READ, IDS.shape[1]):
        where = {} if kept_as == "cache_params" else {"position_ids": torch.tensor([[place]])}
        kept = {kept_as: getattr(output, kept_as)}
        output = model(input_ids=IDS[:, place : place + 1], use_cache=True, **kept, **where)
        worst = max(worst, float((output.logits[0, 0] - whole[0, place]).abs().max() / whole.abs().max()))
    return worst


default = Zamba2Config().time_step_min
found = [off(zamba, floor) for floor in (default, 0.05, 1e-9)] + [off(mamba, kept_as="cache_params")]
print(f"Zamba 2, time_step_min {default}: off by {found[0]:.0e}; 0.05: {found[1]:.0e}; 1e-9: {found[2]:.0e}; Mamba 2: {found[3]:.0e}")
if not (default == 0.001 and found[0] > 1e-4 and found[1] > 1e-2 and max(found[2:]) < 2e-5):
    sys.exit("the behaviour has changed")
PYTHON
"$folder/venv/bin/python" "$folder/step.py"
