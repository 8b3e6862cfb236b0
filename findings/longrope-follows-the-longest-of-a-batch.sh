#!/usr/bin/env bash
# transformers 5.23.0: with LongRoPE (Phi-3.5, Phi-4-mini), what a text is read as depends on the longest text of its batch.
#
# LongRoPE has angles for texts of up to original_max_position_embeddings tokens, and others for longer ones. The rotary module
# chooses once per forward, by the greatest position in it. So a short prompt gets other logits when a long one stands in the
# same batch, with position_ids and attention_mask in order; and tokens behind a cache of short angles are given long ones when
# a text grows beyond the point, so that queries and keys are turned by different angles. Phi-3's generate() reads the text
# again at that point, and is right. That is a rule of the Phi-3 class alone: a Llama model with the same rope_parameters
# generates on with keys of one kind and queries of the other, without an error or a warning.
#
# Seen with transformers 5.23.0, torch 2.13.0 (turning point 32, random weights):
#   logits of a prompt of 10 tokens, beside one of 12: off by 6e-7 of the largest; beside one of 40: by 0.4
#   the last of 40 tokens behind a cache of 30: off by 1.1
#   generate from 30 tokens, 12 new ones, as when all is read again for every token: Phi-3 8 prompts of 8, Llama none
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.4 transformers==5.23.0 safetensors==0.8.0
cat > "$folder/longrope.py" <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, logging

logging.set_verbosity_error()
TURN, NEW = 32, 12
SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, original_max_position_embeddings=TURN, initializer_range=0.2, bos_token_id=0, eos_token_id=None,
    pad_token_id=0,
    rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 6.0, 9.0],
        "original_max_position_embeddings": TURN,
    },
)


def made(model, config):
    torch.manual_seed(0)
    return model(config(**SIZES)).eval()


def ids(count, seed=0):
    return torch.randint(3, 64, (1, count), generator=torch.Generator().manual_seed(seed))


def differ(a, b):
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def beside(model, other):
    """How far a prompt of 10 tokens, padded on the right, is off itself alone."""
    short, long = ids(10), ids(other, 1)
    pad = other - short.shape[1]
    both = torch.cat([torch.nn.functional.pad(short, (0, pad)), long])
    seen = torch.ones_like(both)
    seen[0, short.shape[1] :] = 0
    return differ(model(input_ids=both, attention_mask=seen).logits[0, : short.shape[1]], model(input_ids=short).logits[0])


@torch.no_grad()
def behind(model, text):
    cache = model(input_ids=text[:, : TURN - 2], use_cache=True).past_key_values
    return differ(model(input_ids=text[:, TURN - 2 :], past_key_values=cache).logits[:, -1], model(input_ids=text).logits[:, -1])


@torch.no_grad()
def generates_as_read(model, text):
    told = model.generate(text, max_new_tokens=NEW, do_sample=False)
    read = text
    for _ in range(NEW):
        read = torch.cat([read, model(input_ids=read).logits[:, -1:].argmax(-1)], dim=1)
    return torch.equal(told, read)


phi, llama = made(Phi3ForCausalLM, Phi3Config), made(LlamaForCausalLM, LlamaConfig)
near, far, over = beside(phi, 12), beside(phi, 40), behind(phi, ids(40))
same = [sum(generates_as_read(model, ids(TURN - 2, seed)) for seed in range(8)) for model in (phi, llama)]
print(f"a prompt of 10 tokens beside one of 12: off by {near:.0e}; beside one of 40: by {far:.1f}; behind a cache: by {over:.1f}")
print(f"generated as read again, of 8 prompts: Phi-3 {same[0]}, Llama {same[1]}")
if not (near < 1e-4 and far > 0.05 and over > 0.05 and same[0] == 8 and same[1] < 4):
    sys.exit("the behaviour has changed")
PYTHON
"$folder/venv/bin/python" "$folder/longrope.py"
