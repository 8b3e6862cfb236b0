"""Every architecture that transformers has for causal language models, tiny and random.

A config is that of the architecture with small numbers in the place of its own. What an architecture needs beside that
is in `SETTINGS`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from architectures import VOCABULARY
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, DogeForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

CAUSAL_LMS: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

LAYERS, CONTEXT = 4, 512


def here(*architectures: str) -> list[str]:
    """Those that this release of transformers has. Before it knew that Doge has to be given a mask, Doge's tokens saw
    those behind them, and we refuse it."""
    masks_doge = "create_masks_for_generate" in vars(DogeForCausalLM)
    return [name for name in architectures if name in CAUSAL_LMS and (masks_doge or name != "doge")]


KINDS: dict[float, str] = {
    VOCABULARY: "vocab_size unpadded_vocab_size vocab_size_per_layer_input",
    CONTEXT: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length seq_length max_sequence_length "
    "max_target_positions index_topk local_attention_window_len",
    32: "hidden_size d_model n_embd dim_model embed_dim emb_dim embedding_size embedding_dim attention_hidden_size "
    "lru_width image_size adapter_in_dim adapter_input_size "
    "hidden_size_global",
    64: "intermediate_size ffn_dim dim_ff dff d_inner n_inner decoder_ffn_dim encoder_ffn_dim ffn_hidden_size mlp_dim "
    "intermediate_size_mlp mamba_d_ssm dense_intermediate_size prefix_dense_intermediate_size ffn_size block_size "
    "max_source_positions",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers num_blocks num_attention_heads n_head n_heads num_heads decoder_attention_heads "
    "encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads "
    "linear_num_value_heads linear_num_heads mamba_dt_rank time_step_rank laurel_rank num_experts num_local_experts "
    "n_routed_experts moe_num_experts",
    2: "num_key_value_heads num_global_key_value_heads swa_num_key_value_heads linear_num_key_heads index_n_heads "
    "n_mamba_heads num_experts_per_tok num_experts_per_token moe_k moe_topk top_k_experts zero_expert_num "
    "eos_token_id pad_token_id sep_token_id",
    1000: "encoder_hash_byte_group_vocab",
    1: "mamba_ngroups n_groups mamba_n_groups n_group topk_group num_expert_group num_shared_experts n_shared_experts "
    "first_k_dense_replace num_dense_layers",
    0: "bos_token_id decoder_start_token_id num_kv_shared_layers",
    8: "head_dim dim_head d_kv attention_head_size attention_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim "
    "rotary_dim swa_head_dim swa_v_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim mamba_n_heads "
    "mamba_d_head mamba_d_state mamba_num_heads mamba_head_dim ssm_state_size state_size mamba_headdim "
    "hidden_size_per_layer_input",
    16: "global_head_dim qk_head_dim kv_lora_rank q_lora_rank index_head_dim mamba_chunk_size chunk_size "
    "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size moe_ffn_hidden_size "
    "expert_ffn_hidden_size moe_shared_expert_intermediate_size sliding_window attention_window_size window_size "
    "attention_chunk_size patch_size",
    3: "num_channels",
    0.2: "initializer_range init_std emb_init_std",  # attention of a small range would be nearly uniform
}
SIZES = {name: size for size, names in KINDS.items() for name in names.split()}

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")

MIXED = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
CONVOLUTIONS = ["conv", "full_attention", "conv", "full_attention"]
ALL_HEADS = {"num_key_value_heads": 4}
ZAMBA = {**ALL_HEADS, "attention_hidden_size": 64, "attention_head_dim": 16}
DRAFTS = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": LAYERS}
KINDS_OF_ROTATION = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 64,
    "indexer_compress_ratio": 2,
    "hc_lowrank": 8,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": KINDS_OF_ROTATION},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dory": {"n_input_layers": 2, "n_output_layers": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma4_assistant": {"text_config": DRAFTS},
    "gemma4_unified_assistant": {"text_config": DRAFTS},
    "granitemoehybrid": {"layer_types": MIXED},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": CONVOLUTIONS},
    "lfm2_moe": {"layer_types": CONVOLUTIONS},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "reformer": {
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 16],
    },
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**ZAMBA, "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"]},
    "zamba2": {
        **ZAMBA,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "n_mamba_heads": 8,
        "adapter_rank": 4,
        "num_query_groups": 4,
        "kv_channels": 8,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def tiny_lm(architecture: str) -> PreTrainedModel:
    """A random model of under a few million parameters.

    Raises whatever transformers does where it cannot build one.
    """
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(architecture)).eval()


def tiny_config(architecture: str) -> PreTrainedConfig:
    made = CONFIG_MAPPING[architecture]
    try:
        given = made().to_dict()
    except (ValueError, StrictDataclassError):  # it has no defaults that it would accept itself
        given = {"text_config": CONFIG_MAPPING["gemma4_text"]().to_dict()}
    return made(**_merged(_shrunk(given), SETTINGS.get(architecture, {})))


def _merged(small: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over what was found, nested ones too."""
    both = [name for name in settings if isinstance(small.get(name), dict)]
    return {**small, **settings, **{name: _merged(small[name], settings[name]) for name in both}}


def _shrunk(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a config: small numbers where the default ones are large, and its nested configs likewise."""
    layers = next((given[name] for name in COUNTS if isinstance(given.get(name), int)), 0)
    small: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping) and "model_type" in value:
            small[name] = {"model_type": value["model_type"], **_shrunk(value)}
        elif isinstance(value, list | tuple) and LAYERS < layers == len(value):
            small[name] = _of_few_layers(value)
        elif name in SIZES and isinstance(value, int | float) and not isinstance(value, bool):
            small[name] = SIZES[name]
    if "kv_lora_rank" in given:  # latent attention has keys for every query head
        small |= ALL_HEADS | ({"swa_num_key_value_heads": 4} if "swa_num_key_value_heads" in given else {})
    if "is_decoder" in given:  # as a checkpoint of an encoder says that is to generate
        small["is_decoder"] = True
    return small


def _of_few_layers(values: Sequence[Any]) -> list[Any]:
    """Of a list with a value for each layer, those of `LAYERS` layers, every kind among them."""
    first = [number for number, value in enumerate(values) if value not in values[:number]][:LAYERS]
    others = [number for number in range(len(values)) if number not in first]
    chosen = [values[number] for number in sorted([*first, *others[: LAYERS - len(first)]])]
    return [64 if type(value) is int and value > 64 else value for value in chosen]
