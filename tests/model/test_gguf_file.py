"""GGUF files load to the model that was written, or are refused with a word that says why."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import _type_traits
from gguf_files import KINDS, TOKENS, tiny_llama, write_gguf
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gritrag import GritModel
from gritrag.model import gguf_copy
from gritrag.model.gguf_file import PLAIN, GgufFile, _is_read

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path / "cache"))


def llama3_factors(config: LlamaConfig) -> np.ndarray:
    """As llama.cpp's converter writes them: plain frequencies over scaled ones."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
    steps = torch.arange(0, config.head_dim, 2) / config.head_dim
    return (config.rope_parameters["rope_theta"] ** -steps / scaled).numpy().astype(np.float32)


SCALED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({"rope_type": "default"}, {}),
    "linear": (
        {"rope_type": "linear", "factor": 4.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "linear of old files": ({"rope_type": "linear", "factor": 2.0}, {"rope.scale_linear": 2.0}),
    "yarn": (
        YARN,
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128},
    ),
    "yarn with settings": (
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 0.5 * (0.1 * math.log(4) + 1)},
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 128,
            "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.yarn_beta_slow": 2.0,
            "rope.scaling.attn_factor": 0.5,
        },
    ),
    "llama3": ({**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 5e5}, {}),
}


@pytest.mark.parametrize("kind", SCALED)
def test_a_file_loads_to_the_model_that_was_written(kind: str, tmp_path: Path) -> None:
    scaling, keys = SCALED[kind]
    lm = tiny_llama(rope_parameters={"rope_theta": 1e4, **scaling})
    factors = {"rope_freqs.weight": llama3_factors(lm.config)} if kind == "llama3" else {}
    model = GritModel.from_pretrained(write_gguf(tmp_path / "tiny.gguf", lm, keys, factors), dtype="float32")
    ids = torch.arange(300)[None] % len(TOKENS)
    with torch.inference_mode():
        torch.testing.assert_close(model.lm(ids).logits, lm(ids).logits, atol=1e-4, rtol=1e-4)
        unscaled = tiny_llama()(ids).logits
        assert kind == "none" or (unscaled - lm(ids).logits).abs().max() > 0.1  # it matters


@pytest.mark.parametrize(
    ("head_dim", "factor", "original", "high"),
    [(128, 8.0, 8192, 4.0), (64, 32.0, 8192, 4.0), (128, 8.0, 4096, 4.0), (128, 16.0, 8192, 2.0), (16, 8.0, 8192, 4.0)],
)
def test_settings_of_llama_3_are_found_from_its_factors(
    head_dim: int, factor: float, original: int, high: float, tmp_path: Path
) -> None:
    scaling = {**LLAMA3, "factor": factor, "original_max_position_embeddings": original, "high_freq_factor": high}
    config = LlamaConfig(head_dim=head_dim, rope_parameters={"rope_theta": 5e5, **scaling})
    file = GgufFile(header(tmp_path, {"rope.freq_base": 5e5}, {"rope_freqs.weight": llama3_factors(config)}))
    found = file.rope_scaling
    again = LlamaConfig(head_dim=head_dim, rope_parameters={"rope_theta": 5e5, **found})
    np.testing.assert_allclose(llama3_factors(again), llama3_factors(config), rtol=1e-3)
    if head_dim > 16:  # of few frequencies, several settings give the same factors
        assert found == scaling


def header(
    folder: Path, keys: dict[str, Any], tensors: dict[str, np.ndarray], kinds: dict[str, Any] | None = None
) -> Path:
    """A file with some keys and tensors only."""
    path = folder / "header.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in keys.items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(f"llama.{name}", value)
    for name, array in tensors.items():
        writer.add_tensor(name, array, raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("keys", "tensors", "what"),
    [
        ({"rope.scaling.type": "longrope"}, {}, "by longrope"),
        ({}, {"rope_factors_long.weight": np.ones(4, np.float32)}, "by longrope"),
        ({"rope.scaling.type": "spiral", "rope.scaling.factor": 2.0}, {}, "by spiral"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, {}, "yarn without the context length"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_ext_factor": 0.5},
            {},
            "another share",
        ),
        ({}, {"rope_freqs.weight": np.array([1, 9, 2, 7], np.float32)}, "not those of Llama 3"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0},
            {"rope_freqs.weight": np.array([1, 8, 8, 8], np.float32)},
            "yarn beside factors per frequency",
        ),
    ],
)
def test_scaling_that_cannot_be_told_is_refused(
    keys: dict[str, Any], tensors: dict[str, np.ndarray], what: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"header\.gguf scales its rotary angles.*{what}.*Take the same model as saf"):
        _ = GgufFile(header(tmp_path, keys, tensors)).rope_scaling


def test_the_width_of_heads_is_that_of_the_file(tmp_path: Path) -> None:
    lm = tiny_llama(head_dim=32)
    file = GgufFile(write_gguf(tmp_path / "wide.gguf", lm, {"attention.key_length": 32}))
    config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    file.correct(config)
    assert config.head_dim == 32


# --- files that cannot be read ----------------------------------------------------------------------------------------


def test_a_quantisation_that_cannot_be_unpacked_is_named(tmp_path: Path) -> None:
    block = np.zeros((1, 292), np.uint8)  # one block of 256
    path = header(tmp_path, {}, {"x": block}, {"x": gguf.GGMLQuantizationType.Q8_K})
    with pytest.raises(ValueError, match=r"header\.gguf holds weights in Q8_K.*such as Q8_0, Q4_K_M or F16"):
        GritModel.from_pretrained(path)


def test_whether_a_quantisation_can_be_unpacked_is_asked_of_the_library() -> None:
    asked = [kind for kind in gguf.GGMLQuantizationType if kind.name not in PLAIN]
    assert {kind for kind in asked if _is_read(kind)} == set(_type_traits)


def test_a_file_that_is_cut_off_or_something_else_is_named(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", tiny_llama())
    for name, data in (("cut", whole.read_bytes()[:4000]), ("text", b"no model at all, but long enough to look at")):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.gguf cannot be read as a GGUF file.*download it again"):
            GritModel.from_pretrained(path)


def test_where_it_cannot_be_kept_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").write_text("a file where the folder would be")
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    with pytest.raises(ValueError, match=r"tiny\.gguf cannot be kept in .*cache.*let GRITRAG_CACHE name a folder"):
        GritModel.from_pretrained(file, dtype="float32")


def test_another_process_that_was_faster_has_converted_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy is taken, and nothing is left of this one."""
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    read = gguf_copy._read

    def is_beaten(*given: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(gguf_copy, "_read", read)
            GritModel.from_pretrained(file, dtype="float32")
        return read(*given)

    monkeypatch.setattr(gguf_copy, "_read", is_beaten)
    GritModel.from_pretrained(file, dtype="float32")
    (copied,) = (tmp_path / "cache" / gguf_copy.GGUF_COPIES).iterdir()
    assert not [each for each in copied.iterdir() if each.is_dir()]
    assert len({each.stat().st_mode for each in copied.iterdir()}) == 1  # whoever shares the cache can read all of it


def test_an_architecture_that_transformers_does_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "dream")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"other\.gguf cannot be converted.*dream.*as safetensors"):
        GritModel.from_pretrained(path)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_a_special_token_that_transformers_adds_behind_the_table_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its tokenizers have an unknown token by default, which this file does not hold."""
    tokens = ["<s>", *TOKENS[1:]]
    path = write_gguf(tmp_path / "short.gguf", tiny_llama(), tokens=tokens, unknown=False)
    model = GritModel.from_pretrained(path, dtype="float32")
    assert len(model.tokenizer) == len(tokens) + 1
    assert "no embedding for '<|endoftext|>'; not used" in caplog.text
    assert model.tokenizer.unk_token is None
    vectors = model.encode_document(["a <|endoftext|> in a document", "the river"])  # no index out of range
    assert np.isfinite(vectors).all()
    assert isinstance(model.generate("<|endoftext|> the river", max_new_tokens=3), str)


def test_user_defined_tokens_that_are_cut_into_pieces_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = list(KINDS)
    lm, tokens = tiny_llama(), list(TOKENS)
    tokens[100], kinds[100] = "<think>", gguf.TokenType.USER_DEFINED
    tokens[101], kinds[101] = "two words", gguf.TokenType.USER_DEFINED
    path = write_gguf(tmp_path / "marked.gguf", lm, tokens=tokens, kinds=kinds)
    tokenizer = GritModel.from_pretrained(path, dtype="float32").tokenizer
    assert tokenizer.encode("<think>", add_special_tokens=False) == [100]
    assert (
        "1 tokens that its file calls whole are cut into pieces here, unlike in llama.cpp: 'two words'" in caplog.text
    )
