#!/usr/bin/env bash
# transformers 5.23.0: generate(encoder_repetition_penalty=...) takes padding for words of the prompt. In a batch it favours the padding
# token, which most decoders share with the end of the text: what a short prompt is answered depends on the longest one beside it.
#
# The penalty makes words of the prompt more probable, against invented ones. For a decoder the prompt is input_ids with its padding; the
# attention mask is not looked at. So every row but the longest also makes the end more probable, or, with a penalty below 1, hardly
# lets the answer end. repetition_penalty, its opposite, leaves padding out, and is the same in a batch and alone; one sees no
# difference where all prompts are as long, or one at a time. Give a padding token that no answer holds.
#
# Seen with transformers 5.23.0, torch 2.13.0 on a tiny random Llama, 40 prompts of 6 tokens, each alone and beside one of 30 tokens:
#   no penalty: 0 of 40 answers differ, repetition_penalty 1.3: 0
#   encoder_repetition_penalty 1.3: 20 differ; tokens of an answer 28.1 alone, 19.8 beside the long one
#   encoder_repetition_penalty 1.3, a padding token of its own: 0 differ
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.23.0 safetensors==0.8.0
cat > "$folder/padding.py" <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, logging

logging.set_verbosity_error()
SHORT, LONG, NEW, END, SPARE = 6, 30, 40, 2, 0
torch.manual_seed(1)
sizes = dict(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.25, bos_token_id=1, eos_token_id=END)).eval()
prompts = torch.randint(3, 32, (40, SHORT))
long = torch.randint(3, 32, (1, LONG))


def answer(prompt: torch.Tensor, beside_a_long_one: bool, padding: int, **options: float) -> list[int]:
    """Of greedy decoding, up to the end of the text."""
    ids = prompt[None]
    if beside_a_long_one:
        ids = torch.cat([torch.cat([torch.full((1, LONG - SHORT), padding), ids], dim=1), long])
    seen = torch.ones_like(ids)
    if beside_a_long_one:
        seen[0, : LONG - SHORT] = 0
    told = model.generate(
        ids, attention_mask=seen, pad_token_id=padding, do_sample=False, max_new_tokens=NEW, bad_words_ids=[[SPARE], [1]], **options
    )
    new = told[0, ids.shape[1] :].tolist()
    return new[: new.index(END)] if END in new else new


def compared(padding: int = END, **options: float) -> tuple[int, float, float]:
    """How many answers differ, and mean tokens of one alone and in a batch."""
    alone, batched = ([answer(prompt, beside, padding, **options) for prompt in prompts] for beside in (False, True))
    lengths = (sum(map(len, answers)) / len(answers) for answers in (alone, batched))
    return sum(a != b for a, b in zip(alone, batched)), *lengths


none, repetition, encoder = compared(), compared(repetition_penalty=1.3), compared(encoder_repetition_penalty=1.3)
own = compared(padding=SPARE, encoder_repetition_penalty=1.3)
for what, (differ, alone, batched) in {
    "no penalty": none,
    "repetition_penalty": repetition,
    "encoder_repetition_penalty": encoder,
    "the same, a padding token of its own": own,
}.items():
    print(f"{what}: {differ} of {len(prompts)} answers differ; tokens alone {alone:.1f}, beside the long one {batched:.1f}")
sys.exit(not (none[0] == repetition[0] == own[0] == 0 and encoder[0] > 10 and encoder[2] < 0.8 * encoder[1]))
PYTHON
"$folder/venv/bin/python" "$folder/padding.py" && echo "as described"
