"""Tiny GGUF files, written with the gguf library as llama.cpp's converter writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from architectures import SPECIALS
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt"]
KINDS = [gguf.TokenType.CONTROL] * len(SPECIALS) + [gguf.TokenType.NORMAL] * (len(TOKENS) - len(SPECIALS))


def tiny_llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=2,
        tie_word_embeddings=True,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(
    path: Path,
    lm: LlamaForCausalLM,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    tokens: list[str] | None = None,
    kinds: list[int] | None = None,
    unknown: bool = True,
) -> Path:
    """A Llama of this tokenizer's vocabulary.

    Args:
        keys: further ones of the model, without its name in front.
        tensors: further ones.
        unknown: whether an unknown token is named.
    """
    config = lm.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, value in (keys or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(f"llama.{name}", value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in lm.state_dict().items():
        if name != "lm_head.weight":
            count = next((heads[part] for part in heads if part in name), 0)
            array = weight.numpy() if not count else _interleaved(weight.numpy(), count)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS if tokens is None else tokens)
    writer.add_token_types(KINDS if kinds is None else kinds)
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    if unknown:
        writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection in the order in which llama.cpp rotates them: neighbouring pairs, not halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
