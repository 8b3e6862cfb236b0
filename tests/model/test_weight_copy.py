"""Weights that no file holds are written once; then a model answers as before, and holds them in one form only."""

import copy
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import VOCABULARY, make_lm
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from gritrag.config import CheckpointConfig
from gritrag.model import hardware, pages, weight_copy
from gritrag.model import load as loading
from gritrag.model import packed as packed_module
from gritrag.model.grit import GritModel
from gritrag.model.identity import hash_files
from gritrag.model.packed import can_pack, can_pack_bf16
from gritrag.model.pages import can_give_back, give_back, is_of_file

CPU = torch.device("cpu")
TEXTS = ["the river", "a bridge over the river"]
pytestmark = pytest.mark.skipif(not can_give_back(), reason="this system does not tell whose pages are whose")
Load = Callable[[], GritModel]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(packed_module, "SMALLEST", 0)
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / weight_copy.FOLDER


@pytest.fixture
def checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """An adapter that changes something, over a saved model."""
    make_lm("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(make_lm("llama"), lora).save_pretrained(tmp_path / "checkpoint" / "adapter")
    CheckpointConfig(base=str(tmp_path / "base"), adapter="adapter").save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


BOTH = [
    pytest.param("bfloat16", marks=pytest.mark.skipif(not can_pack_bf16(CPU), reason="no bfloat16 here")),
    pytest.param("auto", marks=pytest.mark.skipif(not can_pack(CPU), reason="no kernel for packed weights")),
]
"""Packed by oneDNN; and by FBGEMM, from float32 that was rounded to half precision."""


@pytest.fixture(params=BOTH)
def load(request: pytest.FixtureRequest, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    if request.param == "auto":
        monkeypatch.setattr(hardware, "has_native_bf16", lambda device: False)
    return lambda: GritModel.from_pretrained(checkpoint, dtype=request.param, device="cpu")


@pytest.fixture
def model(load: Load) -> GritModel:
    """Loaded for the first time."""
    return load()


@pytest.fixture
def plain(load: Load, monkeypatch: pytest.MonkeyPatch) -> GritModel:
    """Loaded where nothing can be given back."""
    with monkeypatch.context() as patch:
        patch.setattr(pages, "can_give_back", lambda: False)
        patch.setattr("gritrag.model.prepared.can_give_back", lambda: False)
        return load()


def packed_weights(model: GritModel) -> list[torch.Tensor]:
    assert model.step is not None
    assert model.step.packed
    return [weight for packed in model.step.packed for weight in packed.weights]


def logits(model: GritModel) -> torch.Tensor:
    """Of the modules of transformers."""
    with torch.no_grad():
        return model.lm(input_ids=torch.arange(3, VOCABULARY)[None, :20]).logits


def alike(one: GritModel, other: GritModel) -> bool:
    return (
        one.fingerprint == other.fingerprint
        and np.array_equal(one.encode_document(TEXTS), other.encode_document(TEXTS))
        and one.generate(TEXTS, max_new_tokens=12) == other.generate(TEXTS, max_new_tokens=12)
        and torch.equal(logits(one), logits(other))
        and one.lm.generation_config.to_dict() == other.lm.generation_config.to_dict()
    )


def test_a_model_is_what_it_was_and_its_weights_are_those_of_a_file(
    plain: GritModel, load: Load, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(map(is_of_file, packed_weights(plain)))
    assert not cache.exists()
    first = load()
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(loading, "_adapted", lambda *given: pytest.fail("the copy has the adapter in it"))
    second = load()
    for model in (first, second):
        assert all(map(is_of_file, packed_weights(model)))
        assert alike(model, plain)
        assert all(map(is_of_file, packed_weights(model)))  # reading them is no reason to keep them


@pytest.mark.parametrize("trained", ["lm_head", "embed_tokens"])
def test_a_copy_opens_the_indexes_of_an_adapter_that_parts_words_in_from_words_out(
    trained: str, checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What was one matrix in the base is two behind such an adapter; newer peft says so in the configuration."""
    config = copy.deepcopy(make_lm("llama").config)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(checkpoint.parent / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[trained], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint.parent / "base"), lora)
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(checkpoint / "adapter")
    monkeypatch.setattr(hardware, "has_native_bf16", lambda device: False)
    with monkeypatch.context() as patch:
        patch.setattr("gritrag.model.prepared.can_give_back", lambda: False)
        plain = GritModel.from_pretrained(checkpoint, device="cpu")
    assert not torch.equal(plain.lm.get_input_embeddings().weight, plain.lm.get_output_embeddings().weight)
    for _ in range(2):
        model = GritModel.from_pretrained(checkpoint, device="cpu")
        assert all(map(is_of_file, packed_weights(model)))
        assert alike(model, plain)
    assert len(list(cache.iterdir())) == 1


def test_a_weight_that_is_changed_is_noticed_and_stays_changed(model: GritModel) -> None:
    before, text = logits(model), model.generate("the river", max_new_tokens=8)
    weight = packed_weights(model)[0]
    with torch.no_grad():
        weight.mul_(-1)
    changed = weight.clone()
    assert model.step is None
    give_back([weight])
    assert torch.equal(weight, changed)
    assert not torch.equal(logits(model), before)
    assert model.generate("the river", max_new_tokens=8) != text


def test_it_can_be_trained_copied_and_saved(model: GritModel, load: Load, tmp_path: Path) -> None:
    twin = copy.deepcopy(model.lm)
    before = [parameter.clone() for parameter in model.lm.parameters()]
    optimizer = torch.optim.SGD(model.lm.parameters(), lr=1.0)
    ids = torch.arange(3, 23)[None]
    model.lm(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.lm.save_pretrained(tmp_path / "trained")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "trained", dtype=model.dtype)
    for trained, old, copied, found in zip(
        model.lm.parameters(), before, twin.parameters(), read.parameters(), strict=True
    ):
        assert not torch.equal(trained, old)
        assert torch.equal(copied, old)
        assert torch.equal(found, trained)
    # what was written here is no part of the file
    for parameter, old in zip(load().lm.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_a_fork_reads_what_was_given_back(model: GritModel) -> None:
    expected = [float(weight.detach().float().sum()) for weight in packed_weights(model)]
    read, write = os.pipe()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # a fork has no pool of threads
        same = [float(weight.detach().float().sum()) for weight in packed_weights(model)] == expected
        os.write(write, b"same" if same else b"other")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 8) == b"same"


def test_a_damaged_copy_is_made_again(
    plain: GritModel, load: Load, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load()
    (file,) = cache.glob("*/*.safetensors")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.unlink()
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert alike(load(), plain)
    assert "damaged" in caplog.text
    (again,) = cache.glob("*/*.safetensors")
    assert again.read_bytes() != data


def test_files_that_go_while_they_are_opened_are_not_missed(
    plain: GritModel, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()

    def another_process_cleans_up(copy: weight_copy.WeightCopy) -> bool:
        shutil.rmtree(copy.folder, ignore_errors=True)
        return True

    monkeypatch.setattr(weight_copy.WeightCopy, "_is_whole", another_process_cleans_up)
    assert alike(load(), plain)


@pytest.mark.parametrize("trouble", ["little room", "disk full", "no folder"])
def test_where_nothing_can_be_kept_it_is_as_before(
    trouble: str, plain: GritModel, load: Load, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble == "no folder":
        cache.parent.mkdir(exist_ok=True)
        cache.write_text("a file where the folder would be")
    elif trouble == "little room":
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 99, 1))
    else:

        def fails(lm: object, folder: Path, **given: object) -> None:
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fails)
    model = load()
    assert alike(model, plain)
    assert not any(map(is_of_file, packed_weights(model)))
    assert cache.is_file() or not list(cache.iterdir())


def test_a_cache_that_is_only_read_is_used(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    load()

    def refuses(*given: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuses)
    monkeypatch.setattr(weight_copy.WeightCopy, "keep", lambda self, lm: pytest.fail("it is there"))
    assert all(map(is_of_file, packed_weights(load())))


def test_a_copy_that_is_somebody_else_s_is_not_written_in_vain(
    plain: GritModel, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()

    def refuses(folder: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(weight_copy, "hash_files", refuses)
    monkeypatch.setattr(weight_copy.WeightCopy, "_write", lambda *given: pytest.fail("it cannot take its place"))
    assert alike(load(), plain)


def test_a_file_that_holds_the_weights_as_they_are_needs_no_copy(model: GritModel, cache: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "whole")
    shutil.rmtree(cache)
    # float32 of rounded weights stays as it is when it is rounded again
    dtype = "bfloat16" if model.dtype == torch.bfloat16 else "auto"
    whole = GritModel.from_pretrained(tmp_path / "whole", dtype=dtype, device="cpu")
    assert all(map(is_of_file, packed_weights(whole)))
    assert not cache.exists()
    assert alike(whole, model)


def test_settings_are_those_of_the_model_whatever_lies_in_the_copy(load: Load, checkpoint: Path, cache: Path) -> None:
    """Which tokens end an answer stands in no file of weights; somebody may change it after the copy was made."""
    load()
    (copied,) = cache.iterdir()
    for name in ("config.json", "generation_config.json"):
        (copied / name).chmod(0o644)
        (copied / name).write_text("{broken")
    settings = checkpoint.parent / "base" / "generation_config.json"
    settings.write_text('{"eos_token_id": [2, 5], "bos_token_id": 0}')
    model = load()
    assert model.lm.generation_config.eos_token_id == [2, 5]
    assert all(map(is_of_file, packed_weights(model)))
    settings.unlink()  # then those of the configuration are meant
    model = load()
    assert model.lm.generation_config.eos_token_id == 2
    assert all(map(is_of_file, packed_weights(model)))


@pytest.mark.parametrize("lost", ["checksum", "model.safetensors"])
def test_a_copy_that_lacks_a_file_is_made_again(lost: str, load: Load, cache: Path) -> None:
    load()
    (copied,) = cache.iterdir()
    (copied / lost).unlink()
    assert all(map(is_of_file, packed_weights(load())))
    assert (copied / lost).is_file()


def test_a_copy_with_other_weights_than_the_model_asks_for_is_made_again(
    plain: GritModel, load: Load, cache: Path
) -> None:
    load()
    (file,) = cache.glob("*/*.safetensors")
    weights = load_file(file)
    del weights["model.norm.weight"]
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})
    (file.parent / weight_copy.CHECKSUM).unlink()
    (file.parent / weight_copy.CHECKSUM).write_text(hash_files(file.parent))
    model = load()
    assert alike(model, plain)
    assert all(map(is_of_file, packed_weights(model)))


def test_another_process_that_was_faster_has_made_the_copy(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there once this one has written its own, or even before; then its copy is mapped here too."""
    written = weight_copy.WeightCopy._write

    def is_beaten(copy: weight_copy.WeightCopy, lm: PreTrainedModel, made: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(weight_copy.WeightCopy, "_write", written)
            assert copy.keep(lm)
        written(copy, lm, made)

    monkeypatch.setattr(weight_copy.WeightCopy, "_write", is_beaten)
    assert all(map(is_of_file, packed_weights(load())))
    keep = weight_copy.WeightCopy.keep
    shutil.rmtree(weight_copy.cache_folder())
    monkeypatch.setattr(weight_copy.WeightCopy, "_write", written)
    monkeypatch.setattr(weight_copy.WeightCopy, "keep", lambda self, lm: keep(self, lm) and keep(self, lm))
    assert all(map(is_of_file, packed_weights(load())))


def test_a_model_that_is_not_saved_is_loaded_all_the_same(
    plain: GritModel, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(lm: object, folder: Path, **given: object) -> None:
        raise RuntimeError("shared tensors")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", refuses)
    assert alike(load(), plain)


def test_nobody_shortens_a_mapped_copy_by_mistake(load: Load, cache: Path) -> None:
    load()
    assert all(file.stat().st_mode & 0o222 == 0 for file in cache.glob("*/*"))


def test_what_a_killed_process_left_goes(load: Load, cache: Path) -> None:
    left, writing = cache / f"{weight_copy.SCRATCH}left", cache / f"{weight_copy.SCRATCH}now"
    for folder in (left, writing):
        (folder / "model").mkdir(parents=True)
    os.utime(left, (1e9, 1e9))
    load()
    assert not left.exists()
    assert writing.exists()


def test_a_few_copies_are_kept(load: Load, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_copy, "KEPT", 2)
    for age, name in enumerate(["used", "old", "older"]):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    load()
    assert "used" in {folder.name for folder in cache.iterdir()}
    assert len(list(cache.iterdir())) == 2
