"""Tiny random models, one of each architecture that matters, all over the vocabulary of the test tokenizer."""

import copy

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 256 + len(SPECIALS)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

ROTARY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # attention of a small range would be nearly uniform, and laws about it empty
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 2,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**ROTARY),
    "llama-yarn": LlamaConfig(
        **ROTARY,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64},
    ),
    "llama-dynamic": LlamaConfig(**ROTARY, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}),
    "qwen2": Qwen2Config(**ROTARY),
    "qwen3": Qwen3Config(**ROTARY, head_dim=8),
    "mistral": MistralConfig(**ROTARY, sliding_window=16),
    "gemma3": Gemma3TextConfig(
        **ROTARY,
        head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=2,
    ),
    "gpt_neox": GPTNeoXConfig(**{k: v for k, v in ROTARY.items() if k != "num_key_value_heads"}),
    "phi": PhiConfig(**ROTARY),
    "stablelm": StableLmConfig(**ROTARY),
    "cohere": CohereConfig(**ROTARY),
    "mamba": MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=2,
    ),
}

WITH_STATES = [name for name in CONFIGS if name != "mamba"]
MOVABLE = [name for name in WITH_STATES if name not in ("gpt2", "cohere", "llama-dynamic")]


def make_lm(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    # a model owns its config: what one test sets on it is no other test's business
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[architecture])).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and ChatML's control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIALS[0],
        eos_token=SPECIALS[2],
        pad_token=SPECIALS[2],
        extra_special_tokens=[SPECIALS[1]],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
