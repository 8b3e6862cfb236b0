"""Ternary changes: what was written is what is added, nothing else is; broken files are refused."""

from pathlib import Path

import pytest
import torch
from architectures import make_lm
from safetensors.torch import load_file, save_file

from gritrag.config import CheckpointConfig
from gritrag.model.grit import GritModel
from gritrag.model.ternary import FORMAT, TERNARY, add, write
from gritrag.model.weight_change import linear_layers


def changed(size: float = 0.01) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model whose linear layers have moved by noise, and what they were before."""
    lm = make_lm("llama")
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in linear_layers(lm).values():
            layer.weight += size * torch.randn(layer.weight.shape, generator=generator)
    return lm, before


def test_a_change_of_three_values_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    lm = make_lm("llama")
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    with torch.no_grad():
        for number, layer in enumerate(linear_layers(lm).values()):
            generator = torch.Generator().manual_seed(number)
            values = torch.randint(-1, 2, layer.weight.shape, generator=generator)
            layer.weight += values * 2.0 ** -torch.arange(1, layer.weight.shape[0] + 1).clamp(max=9)[:, None]
    cost = write(lm, before, tmp_path)
    assert cost.weight_error < 1e-6
    again = make_lm("llama")
    add(again, tmp_path / TERNARY)
    for name, tensor in lm.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_noise_keeps_most_of_itself_in_few_bits(tmp_path: Path) -> None:
    lm, before = changed()
    cost = write(lm, before, tmp_path)
    numbers = sum(layer.weight.numel() for layer in linear_layers(lm).values())
    assert cost.weight_error == pytest.approx(0.45, abs=0.03)  # a fifth of the variance
    assert cost.output_error == pytest.approx(cost.weight_error, rel=1e-3)  # no inputs were looked at
    coded = sum(t.numel() for name, t in load_file(tmp_path / TERNARY).items() if name.endswith(".codes"))
    assert 8 * coded / numbers < 2.2  # small layers pay for their tables
    assert cost.nbytes == (tmp_path / TERNARY).stat().st_size


def test_no_change_is_none(tmp_path: Path) -> None:
    lm = make_lm("llama")
    assert write(lm, lm.state_dict(), tmp_path).weight_error == 0
    again = make_lm("llama")
    add(again, tmp_path / TERNARY)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in lm.state_dict().items())


def test_a_checkpoint_may_hold_one(tmp_path: Path, tokenizer: object) -> None:
    lm, before = changed()
    make_lm("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")  # type: ignore[attr-defined]
    write(lm, before, tmp_path / "adapter")
    CheckpointConfig(base="base", adapter="adapter").save(tmp_path)
    model = GritModel.from_pretrained(tmp_path, dtype="float32")
    bare = GritModel.from_pretrained(tmp_path / "base", dtype="float32")
    assert model.fingerprint != bare.fingerprint
    ids = torch.randint(3, 200, (1, 9))
    off, moved = ((lm(ids).logits - other.lm(ids).logits).norm() for other in (model, bare))
    assert off < 0.8 * moved


def test_broken_files_are_refused(tmp_path: Path) -> None:
    lm, before = changed()
    write(lm, before, tmp_path)
    whole = (tmp_path / TERNARY).read_bytes()
    tensors = {key: tensor.clone() for key, tensor in load_file(tmp_path / TERNARY).items()}  # the file is mapped
    name = next(key for key in tensors if key.endswith(".codes"))
    broken = {
        "cut off": whole[: len(whole) // 2],
        "no file of this kind": b"x" * 100,
    }
    for content in broken.values():
        (tmp_path / TERNARY).write_bytes(content)
        with pytest.raises(ValueError, match=TERNARY):
            add(make_lm("llama"), tmp_path / TERNARY)
    for altered, told in (
        ({**tensors, name: tensors[name][:-9]}, "broken|bytes"),
        ({**tensors, name: tensors[name].flip(0)}, "broken"),
        ({key: tensor for key, tensor in tensors.items() if key != name}, "another model"),
    ):
        save_file(altered, tmp_path / TERNARY, metadata={"format": FORMAT})
        with pytest.raises(ValueError, match=told):
            add(make_lm("llama"), tmp_path / TERNARY)
    save_file(tensors, tmp_path / TERNARY, metadata={"format": "gritrag-ternary-9"})
    with pytest.raises(ValueError, match="later gritrag"):
        add(make_lm("llama"), tmp_path / TERNARY)
