#!/usr/bin/env bash
# peft 0.21.2: where two adapters read for one loss, only the one that was set last is trained; and with gradient checkpointing the gradients
# of the other are wrong, even where it has any.
#
# A retriever with an adapter for questions and one for documents reads each with its own and compares: set_adapter, forward, set_adapter,
# forward, one backward. set_adapter switches requires_grad off for the weights of all others, and torch drops a gradient for such weights
# even if the graph holds them: the first adapter gets none, the optimizer leaves it as it was, and the loss falls by the second alone.
# Switching requires_grad on again before backward() mends that. Not so where layers are checkpointed: they are computed again in
# the backward pass, with the adapter that is set then. Whichever kind of checkpointing, no error and no warning, since shapes agree.
#
# Seen with peft 0.21.2, transformers 5.23.0, torch 2.13.0, gradients of one loss over both, relative distance from the right ones:
#   as set_adapter leaves it: question 1.0 (none), document 0.0
#   requires_grad on again: question 0.0, document 0.0; checkpointed too: question 1.3, document 0.0
#   checkpointed with use_reentrant=True: question 1.0 (none), document 0.3
# Differences of the loss for small steps confirm the gradients that are taken for the right ones.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0
cat > "$folder/two.py" <<'PYTHON'
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, logging

logging.set_verbosity_error()
ADAPTERS = ("question", "document")
draw = torch.Generator().manual_seed(0)
texts = {name: torch.randint(3, 64, (4, 12), generator=draw) for name in ADAPTERS}


def made() -> PeftModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.3)), config, adapter_name="question")
    model.add_adapter("document", config)
    return model.train()


def loss(model: PeftModel, switches_on: bool) -> torch.Tensor:
    """Contrastive, of four questions and their documents."""
    vectors = {}
    for name in ADAPTERS:
        model.set_adapter(name)
        hidden = model(input_ids=texts[name], use_cache=False, output_hidden_states=True).hidden_states[-1]
        vectors[name] = F.normalize(hidden.mean(1), dim=-1)
        for parameter_name, parameter in model.named_parameters():
            if switches_on and "lora_" in parameter_name:
                parameter.requires_grad_(True)
    return F.cross_entropy(vectors["question"] @ vectors["document"].T / 0.05, torch.arange(4))


def gradients(switches_on: bool = True, **checkpointing: bool) -> dict[str, torch.Tensor]:
    model = made()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    loss(model, switches_on).backward()
    found = {name: [] for name in ADAPTERS}
    for parameter_name, parameter in model.named_parameters():
        for name in ADAPTERS:
            if f".{name}." in parameter_name:
                found[name].append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return {name: torch.cat([each.flatten() for each in parts]) for name, parts in found.items()}


def by_differences(name: str, step: float = 1e-2) -> float:
    """The slope of the loss along the gradient that is taken for the right one, relative to what it should be."""
    model, direction = made(), F.normalize(right[name], dim=0)
    parameters = [parameter for key, parameter in model.named_parameters() if f".{name}." in key]
    losses = []
    with torch.no_grad():
        for moved in (step, -2 * step):
            for parameter, part in zip(parameters, direction.split([each.numel() for each in parameters])):
                parameter += moved * part.view_as(parameter)
            losses.append(float(loss(model, False)))
    return (losses[0] - losses[1]) / (2 * step) / float(right[name].norm())


right = gradients()
slopes = [by_differences(name) for name in ADAPTERS]
print("slope of the loss along what is called right: question {:.2f}, document {:.2f} of it".format(*slopes))
off = {}
for what, found in (
    ("as set_adapter leaves it", gradients(switches_on=False)),
    ("checkpointed", gradients(use_reentrant=False)),
    ("checkpointed, reentrant", gradients(use_reentrant=True)),
):
    off[what] = [round(float((found[name] - right[name]).norm() / right[name].norm()), 3) for name in ADAPTERS]
    print(f"{what}: question {off[what][0]}, document {off[what][1]}; question has none: {not found['question'].any()}")
as_described = all(abs(slope - 1) < 0.05 for slope in slopes) and off["as set_adapter leaves it"] == [1, 0]
as_described &= off["checkpointed"][0] > 0.2 and off["checkpointed"][1] < 1e-3
sys.exit(not (as_described and off["checkpointed, reentrant"][0] == 1 and off["checkpointed, reentrant"][1] > 0.2))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/two.py" && echo "as described"
