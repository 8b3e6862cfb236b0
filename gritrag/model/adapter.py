"""LoRA adapters: put one on a model, or find the one that comes nearest to a change of weights.

Both leave a folder in peft's format, which `load` merges into the base.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import PreTrainedModel

from gritrag.model.weight_change import Extraction, linear_layers

__all__ = ["ADAPTER_WEIGHTS", "PeftModel", "attach", "extract"]

ADAPTER_WEIGHTS = "adapter_model.safetensors"

RIDGE = 1e-3
"""Of the mean second moment: directions that inputs hardly took still count a little."""


def attach(lm: PreTrainedModel, rank: int, alpha: int, init: Path | None = None) -> PeftModel:
    """Put a LoRA adapter on every linear layer, in place, and freeze everything else.

    Args:
        lm: the base. Its layers change in place, so it computes with the adapter.
        rank, alpha: of a new adapter, which starts as no change.
        init: folder of an adapter to go on with instead.

    Returns:
        peft's wrapper, whose `save_pretrained` writes the adapter.
    """
    if init is not None:
        return PeftModel.from_pretrained(lm, str(init), is_trainable=True)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(linear_layers(lm)), task_type="CAUSAL_LM")
    wrapper: PeftModel = get_peft_model(lm, config)
    return wrapper


def extract(
    lm: PreTrainedModel,
    base: Mapping[str, torch.Tensor],
    rank: int,
    folder: Path,
    name: str,
    moments: Mapping[str, torch.Tensor] | None = None,
) -> Extraction:
    """Write the adapter of this rank that is nearest to the change of the linear layers since `base`.

    Nearest in the outputs for the inputs whose `moments` are given: the truncated SVD of the difference times the root
    of the moments is the best there is (Eckart and Young 1936; Wang et al. 2024, SVD-LLM). Without moments, nearest in
    the weights. Factors are stored in float16.

    Args:
        lm: the trained model.
        base: weights it started from, by name, as in its state dict.
        rank: of every layer; less where a layer has not as many dimensions.
        folder: created where it does not exist.
        name: of the base model, for the record.
        moments: from `gritrag.model.weight_change.input_moments`.
    """
    tensors: dict[str, torch.Tensor] = {}
    sums = torch.zeros(4, dtype=torch.float64)  # weights lost, weights changed, outputs lost, outputs changed
    layers = linear_layers(lm)
    for layer, module in layers.items():
        weight = module.weight.detach()
        difference = weight.float() - base[f"{layer}.weight"].to(weight.device).float()
        root, inverse = _roots(moments[layer]) if moments else (None, None)
        up, down = _factors(difference, rank, root, inverse)
        tensors[f"base_model.model.{layer}.lora_A.weight"] = down.cpu().contiguous()
        tensors[f"base_model.model.{layer}.lora_B.weight"] = up.cpu().contiguous()
        lost = difference - up.float() @ down.float()
        seen = (lost, difference) if root is None else (lost @ root, difference @ root)
        sums += torch.tensor([float(part.square().sum()) for part in (lost, difference, *seen)], dtype=torch.float64)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    _write_config(folder, rank, sorted(layers), name)
    errors = [(sums[n] / sums[n + 1]).sqrt().item() if sums[n + 1] else 0.0 for n in (0, 2)]
    return Extraction((folder / ADAPTER_WEIGHTS).stat().st_size, *errors)


def _roots(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric root of a second moment, with a ridge, and its inverse."""
    values, vectors = torch.linalg.eigh(moment / moment.diagonal().mean())
    roots = (values.clamp(min=0) + RIDGE).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def _factors(
    difference: torch.Tensor, rank: int, root: torch.Tensor | None, inverse: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """float16 `[out, rank]` and `[rank, in]`, their product nearest to `difference`; zeros where its rank is lower."""
    u, s, v = torch.linalg.svd(difference if root is None else difference @ root, full_matrices=False)
    kept = min(rank, len(s))
    up = difference.new_zeros(difference.shape[0], rank)
    down = difference.new_zeros(rank, difference.shape[1])
    up[:, :kept], down[:kept] = u[:, :kept] * s[:kept], v[:kept]
    if inverse is not None:
        down = down @ inverse
    # both factors of a component alike in size, so that neither leaves float16's range
    balance = (down.norm(dim=1).clamp(min=1e-12) / up.norm(dim=0).clamp(min=1e-12)).sqrt()
    return (up * balance).half(), (down / balance[:, None]).half()


def _write_config(folder: Path, rank: int, layers: list[str], name: str) -> None:
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # the factors are the change itself, at scale 1
        target_modules=layers,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=name,
    ).to_dict()
    record = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    text = json.dumps(record, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", "utf-8")
