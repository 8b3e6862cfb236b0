"""LoRA adapters: put one on a model, or find the one that comes nearest to a change of weights.

Both leave a folder in peft's format, which `load` merges into the base.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Extraction(NamedTuple):
    """What an extracted adapter is: file size in bytes, and the norm of what it lost over the norm of the change."""

    nbytes: int
    relative_error: float


def linear_layers(lm: PreTrainedModel) -> dict[str, nn.Linear]:
    """Every linear layer but the LM head, by name."""
    head = lm.get_output_embeddings()
    return {name: m for name, m in lm.named_modules() if isinstance(m, nn.Linear) and m is not head}


def attach(lm: PreTrainedModel, rank: int, alpha: float) -> nn.Module:
    """Put a LoRA adapter on every linear layer, in place, and freeze everything else; it starts as no change.

    Returns:
        peft's wrapper, whose `save_pretrained` writes the adapter. The layers are changed in place, so `lm` computes with it.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(linear_layers(lm)), task_type="CAUSAL_LM")
    return get_peft_model(lm, config)


def extract(lm: PreTrainedModel, base: Mapping[str, torch.Tensor], rank: int, folder: Path, name: str) -> Extraction:
    """Write the adapter of this rank that is nearest to the change of the linear layers since `base`.

    The truncated SVD of each difference is the best there is in the Frobenius norm (Eckart and Young 1936). Singular values
    are shared evenly between the two factors, which are stored in float16.

    Args:
        lm: the trained model.
        base: weights it started from, by name, as in its state dict.
        rank: of every layer; less where a layer has not as many dimensions.
        folder: created where it does not exist.
        name: of the base model, for the record.
    """
    tensors: dict[str, torch.Tensor] = {}
    lost = changed = 0.0
    layers = linear_layers(lm)
    for layer, module in layers.items():
        weight = module.weight.detach()
        difference = weight.float() - base[f"{layer}.weight"].to(weight.device).float()
        up, down = _factors(difference, rank)
        tensors[f"base_model.model.{layer}.lora_A.weight"] = down.cpu()
        tensors[f"base_model.model.{layer}.lora_B.weight"] = up.cpu()
        lost += float((difference - up.float() @ down.float()).square().sum())
        changed += float(difference.square().sum())
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(layers), task_type="CAUSAL_LM", inference_mode=True,
        base_model_name_or_path=name,
    ).to_dict()
    record = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(record, indent=2, sort_keys=True, default=str) + "\n", "utf-8")
    return Extraction((folder / ADAPTER_WEIGHTS).stat().st_size, (lost / changed) ** 0.5 if changed else 0.0)


def _factors(difference: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float16 `[out, rank]` and `[rank, in]` whose product is nearest to `difference`; zeros where it has a lower rank."""
    u, s, v = torch.linalg.svd(difference, full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    up = difference.new_zeros(difference.shape[0], rank)
    down = difference.new_zeros(rank, difference.shape[1])
    up[:, :kept], down[:kept] = u[:, :kept] * root, root[:, None] * v[:kept]
    return up.half(), down.half()
