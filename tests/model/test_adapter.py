"""Adapters: what is extracted is the nearest of its rank, costs what it says, and loads through peft."""

import math
from pathlib import Path

import pytest
import torch
from architectures import make_lm
from peft import PeftModel
from safetensors.torch import load_file

from gritrag.model.adapter import ADAPTER_WEIGHTS, attach, extract
from gritrag.model.weight_change import input_moments, linear_layers


def changed_by(rank: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model whose linear layers moved by matrices of this rank, and what they were before."""
    lm = make_lm("llama")
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in linear_layers(lm).values():
            rows, columns = layer.weight.shape
            layer.weight += 0.1 * torch.randn(rows, rank) @ torch.randn(rank, columns)
    return lm, before


def test_an_adapter_of_enough_rank_is_the_change(tmp_path: Path) -> None:
    lm, before = changed_by(rank=3)
    cost = extract(lm, before, 4, tmp_path, "tiny")
    assert cost.weight_error < 1e-3, "float16 rounding only"
    assert cost.nbytes == (tmp_path / ADAPTER_WEIGHTS).stat().st_size
    assert {tensor.dtype for tensor in load_file(tmp_path / ADAPTER_WEIGHTS).values()} == {torch.float16}
    merged = PeftModel.from_pretrained(make_lm("llama"), str(tmp_path)).merge_and_unload()
    ids = torch.randint(0, 250, (2, 9))
    torch.testing.assert_close(merged(ids).logits, lm(ids).logits, atol=2e-2, rtol=1e-2)
    assert not torch.allclose(make_lm("llama")(ids).logits, lm(ids).logits, atol=0.1)


def test_the_error_of_a_low_rank_is_that_of_the_singular_values_it_drops(tmp_path: Path) -> None:
    lm, before = changed_by(rank=8)
    dropped = whole = 0.0
    for name, layer in linear_layers(lm).items():
        values = torch.linalg.svdvals(layer.weight - before[f"{name}.weight"])
        dropped += values[2:].square().sum().item()
        whole += values.square().sum().item()
    assert extract(lm, before, 2, tmp_path, "tiny").weight_error == pytest.approx(math.sqrt(dropped / whole), rel=1e-3)


def test_no_change_costs_nothing(tmp_path: Path) -> None:
    lm = make_lm("llama")
    assert extract(lm, lm.state_dict(), 2, tmp_path, "tiny").weight_error == 0


def test_attached_adapters_begin_as_no_change_and_alone_are_trained() -> None:
    lm, ids = make_lm("llama"), torch.randint(0, 250, (1, 9))
    before = lm(ids).logits
    attach(lm, 4, 8)
    torch.testing.assert_close(lm(ids).logits, before)
    trained = [name for name, parameter in lm.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len([n for n, _ in lm.named_modules() if n.endswith(".base_layer")]) > 0
    assert all("lora_" in name for name in trained)


def test_moments_are_of_the_inputs_and_make_the_outputs_right(tmp_path: Path) -> None:
    """Outputs for text like that which was measured come nearer than with the SVD of the weights alone."""
    lm, before = changed_by(rank=8)
    ids = torch.randint(0, 250, (4, 6))
    name = "model.layers.0.mlp.down_proj"
    seen: list[torch.Tensor] = []
    handle = linear_layers(lm)[name].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad(), input_moments(lm) as moments:
        lm(ids)
        lm(ids.flip(1))
    rows = torch.cat(seen)
    torch.testing.assert_close(moments[name], rows.T @ rows, atol=1e-3, rtol=1e-3)
    lm(ids)
    torch.testing.assert_close(moments[name], rows.T @ rows, atol=1e-3, rtol=1e-3)
    handle.remove()

    plain = extract(lm, before, 2, tmp_path / "plain", "tiny")
    nearer = extract(lm, before, 2, tmp_path / "nearer", "tiny", moments)
    assert plain.output_error == plain.weight_error < nearer.weight_error
    errors = {}
    for kind in ("plain", "nearer"):
        tensors = load_file(tmp_path / kind / ADAPTER_WEIGHTS)
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
        change = lm.get_submodule(name).weight - before[f"{name}.weight"]
        errors[kind] = ((rows @ (change - b @ a).T).norm() / (rows @ change.T).norm()).item()
    assert errors["nearer"] < 0.9 * errors["plain"]


def test_an_adapter_is_gone_on_with(tmp_path: Path) -> None:
    lm, before = changed_by(rank=3)
    extract(lm, before, 4, tmp_path, "tiny")
    again, ids = make_lm("llama"), torch.randint(0, 250, (2, 9))
    attach(again, 1, 1, init=tmp_path)
    torch.testing.assert_close(again(ids).logits, lm(ids).logits, atol=2e-2, rtol=1e-2)
    trained = [p for p in again.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert max(p.shape[0] for p in trained if p.shape[0] < 9) == 4
