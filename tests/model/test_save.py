"""A model that is saved whole is the model that it was: vectors, states, tokens and fingerprint."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import make_lm
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from gritrag import RAG, GritModel, Index
from gritrag.config import CheckpointConfig, PartsConfig
from gritrag.folders import give_usual_rights

MakeModel = Callable[..., GritModel]
TEXTS = ["the river", "a bridge over the river"]


@pytest.fixture
def checkpoint(tokenizer: object, tmp_path: Path) -> Path:
    """An adapter that changes something, over a saved model."""
    torch.manual_seed(1)
    make_lm("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    folder = tmp_path / "checkpoint"
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(make_lm("llama"), lora).save_pretrained(folder / "adapter")
    CheckpointConfig(base=str(tmp_path / "base"), adapter="adapter", pooling="last", instruction="find it").save(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_checkpoint_is_read_back_as_it_was(checkpoint: Path, dtype: str, tmp_path: Path) -> None:
    model = GritModel.from_pretrained(checkpoint, dtype=dtype)
    model.save_pretrained(tmp_path / "whole")
    again = GritModel.from_pretrained(tmp_path / "whole", dtype=dtype)
    assert again.fingerprint == model.fingerprint
    assert (again.dtype, again.device) == (model.dtype, model.device) == (getattr(torch, dtype), torch.device("cpu"))
    assert again.config.instruction == "find it"
    np.testing.assert_array_equal(again.encode_query(TEXTS), model.encode_query(TEXTS))
    for ours, theirs in zip(again.read_documents(TEXTS), model.read_documents(TEXTS), strict=True):
        assert torch.equal(ours.state.keys, theirs.state.keys)
        assert torch.equal(ours.state.values, theirs.state.values)
    assert again.generate(TEXTS, max_new_tokens=12) == model.generate(TEXTS, max_new_tokens=12)
    again.save_pretrained(tmp_path / "twice")
    assert GritModel.from_pretrained(tmp_path / "twice", dtype=dtype).fingerprint == model.fingerprint


def test_it_opens_the_indexes_of_the_model_that_was_saved(checkpoint: Path, tmp_path: Path) -> None:
    model = GritModel.from_pretrained(checkpoint, dtype="float32")
    with Index.create(tmp_path / "index", model=model, states="float32") as index:
        index.add(TEXTS)
        expected = RAG(index, k=1).ask("the river?", max_new_tokens=8)
    model.save_pretrained(tmp_path / "whole")
    again = GritModel.from_pretrained(tmp_path / "whole", dtype="float32")
    with Index.open(tmp_path / "index", model=again) as index:
        answer = RAG(index, k=1).ask("the river?", max_new_tokens=8)
    assert (answer.text, answer.usage) == (expected.text, expected.usage)
    assert answer.usage.cached_tokens > 0


def test_a_weight_that_was_changed_since_is_another_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    model = GritModel.from_pretrained(checkpoint, dtype="float32")
    model.save_pretrained(tmp_path / "whole")
    file = tmp_path / "whole" / "model" / "model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).add_(0.1)
    save_file(tensors, file, metadata={"format": "pt"})
    changed = GritModel.from_pretrained(tmp_path / "whole", dtype="float32").fingerprint.parts
    assert changed["weights"] != model.fingerprint.parts["weights"]
    assert changed["adapter"] == "none"


def test_trained_parts_are_saved_too(tokenizer: object, tmp_path: Path) -> None:
    config = CheckpointConfig(pooling="latent_attention", parts=PartsConfig(latents=4, latent_heads=2, projection=8))
    model = GritModel(make_lm("qwen3"), copy.deepcopy(tokenizer), config)
    with torch.no_grad():
        for weight in model.parts.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model = GritModel(model.lm, model.tokenizer, config)
    model.save_pretrained(tmp_path / "whole")
    again = GritModel.from_pretrained(tmp_path / "whole", dtype="float32")
    assert again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.encode_document(TEXTS), model.encode_document(TEXTS))


def test_others_can_read_weights_as_they_can_read_settings(checkpoint: Path, tmp_path: Path) -> None:
    """safetensors 0.8.0 writes files that only their owner can read."""
    model = GritModel.from_pretrained(checkpoint, dtype="float32")
    model.save_pretrained(tmp_path / "whole")
    settings, weights = tmp_path / "whole" / "gritrag.json", tmp_path / "whole" / "model" / "model.safetensors"
    assert weights.stat().st_mode == settings.stat().st_mode
    weights.chmod(0o640)  # whoever says so keeps it
    give_usual_rights(tmp_path / "whole")
    assert weights.stat().st_mode & 0o777 == 0o640
    assert not list((tmp_path / "whole").glob(".rights*"))
