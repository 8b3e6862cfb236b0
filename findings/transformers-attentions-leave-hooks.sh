#!/usr/bin/env bash
# transformers 5.23.0: one forward with output_attentions=True or output_hidden_states=True leaves forward hooks in the model's
# modules for good. They are not taken out when that forward ends, nor by later forwards that ask for nothing, nor by
# set_attn_implementation, and copy.deepcopy copies them.
#
# Seen with transformers 5.23.0 and torch 2.13.0 on a tiny random Llama of two layers, hooks of all its modules:
#   before 0, after a forward 0, after output_attentions 4, after a forward 4, in a copy 4
#
# Whoever replaces or compiles layers that have no hooks, and looks at _forward_hooks to know (as fast paths in torch.nn
# itself do), is slower for the rest of the process because somebody looked at an attention matrix once.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.4
cat > "$folder/hooks.py" <<'PYTHON'
import copy
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
lm = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="eager")).eval()
ids = torch.arange(8)[None]


def hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


seen = [hooks(lm)]
lm(input_ids=ids)
seen.append(hooks(lm))
assert lm(input_ids=ids, output_attentions=True).attentions is not None
seen.append(hooks(lm))
lm(input_ids=ids)
lm.set_attn_implementation("sdpa")
seen.append(hooks(lm))
seen.append(hooks(copy.deepcopy(lm)))
print("transformers", transformers.__version__, "torch", torch.__version__)
print("before {}, after a forward {}, after output_attentions {}, after a forward {}, in a copy {}".format(*seen))
sys.exit(0 if seen == [0, 0, 4, 4, 4] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/hooks.py"
