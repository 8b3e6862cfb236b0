"""What time is measured on without data or a hub: documents of an exact length, and random weights of a known geometry.

How long a forward takes does not depend on what its weights say, so a model of any size can be measured before it is
there.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from gritrag.config import DEFAULT_MODEL, CheckpointConfig
from gritrag.corpus import documents, questions
from gritrag.model.grit import GritModel
from gritrag.model.hardware import pick_device, pick_dtype
from gritrag.records import Document

FILLERS = (" a", "a", ".", "7")
"""Some tokenizer makes two tokens of each of these, or joins it to what stands before, but none does so with all."""

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 4096
"""Tokens that the tokenizer of random weights knows, at most: as many as the package's small corpus can teach."""

POSITIONS = 32768
"""That every geometry takes: weights that are random know no text, so no length is too long for them."""

HEADROOM = 1.25
"""Memory that is needed, over what the weights take."""

SHARED: dict[str, Any] = {
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 2,
}

GEOMETRIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "tiny": (
        LlamaConfig,
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": VOCABULARY}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "smollm2-135m": (
        LlamaConfig,
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
        | {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    "qwen3-0.6b": (
        Qwen3Config,
        {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "vocab_size": 151936}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    ),
    "qwen3-1.7b": (
        Qwen3Config,
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "vocab_size": 151936}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    ),
    "llama3-8b": (
        LlamaConfig,
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
        | {"num_attention_heads": 32, "num_key_value_heads": 8},
    ),
    "mistral-7b": (
        MistralConfig,
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32768}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None},
    ),
}
"""The shapes of models that are known; their other settings are the defaults of their architecture."""


def documents_of(model: GritModel, tokens: int, count: int, seed: int) -> list[Document]:
    """`count` different documents of real text, each exactly `tokens` tokens with its scaffold.

    Raises:
        ValueError: fewer tokens than the scaffold of a document needs, or more documents than there are words.
    """
    words = " ".join(document.content for document in documents()).split()
    if count > len(words):
        raise ValueError(f"the package's text has {len(words)} words to begin a document with; ask for fewer documents")
    starts = random.Random(seed).sample(range(len(words)), count)
    return [_exactly(model, tokens, words, start, f"d{n}") for n, start in enumerate(starts)]


def _exactly(model: GritModel, tokens: int, words: Sequence[str], start: int, id: str) -> Document:
    """Words are added while they fit, then single characters: a document of a given length in tokens."""
    text, number = words[start], start
    if len(model.document_token_ids(text)) > tokens:
        raise ValueError(f"a document of {tokens} tokens has no room for text beside its scaffold")
    while len(model.document_token_ids(longer := f"{text} {words[(number + 1) % len(words)]}")) <= tokens:
        text, number = longer, number + 1
    while (length := len(model.document_token_ids(text))) < tokens:
        text += next(filler for filler in FILLERS if length < len(model.document_token_ids(text + filler)) <= tokens)
    return Document(text, id=id)


@dataclass(frozen=True)
class Subject:
    """Whom a suite measures: a model by its name, or random weights of a geometry where one is given.

    Args:
        model, dtype, device: see `GritModel.from_pretrained`.
        geometry: one of `GEOMETRIES`; empty for the model.
    """

    model: str = DEFAULT_MODEL
    dtype: str = "auto"
    device: str = "auto"
    geometry: str = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"random weights of {self.geometry}" if self.geometry else self.model

    def load(self) -> GritModel:
        """
        Raises:
            ValueError: no such model or geometry, or weights that do not fit into memory.
        """
        if self.geometry:
            return random_model(self.geometry, self.dtype, self.device)
        return GritModel.from_pretrained(self.model, dtype=self.dtype, device=self.device)

    def load_movable(self) -> GritModel:
        """A model whose states can be placed.

        Raises:
            ValueError: as `load`; or its keys cannot be moved to where a document stands.
        """
        model = self.load()
        if model.rotation is None:
            raise ValueError(f"{self.name} cannot be measured: {model.probes[1].detail}")
        return model


def random_model(geometry: str, dtype: str = "auto", device: str = "auto") -> GritModel:
    """Random weights of a geometry, made where they are used.

    Raises:
        ValueError: no such geometry, or weights that do not fit into memory; nothing was made then.
    """
    config = config_of(geometry)
    where = pick_device(device)
    number = pick_dtype(dtype, where)
    needed = int(HEADROOM * parameters(config) * number.itemsize)
    free = free_memory(where)
    if needed > free:
        raise ValueError(
            f"{geometry} in {str(number).removeprefix('torch.')} needs {needed / 1e9:.1f} GB on {where}, of which "
            f"{free / 1e9:.1f} GB are free; take a smaller geometry ({', '.join(GEOMETRIES)}), "
            "bfloat16, or another device"
        )
    torch.manual_seed(0)
    with torch.device(where):
        lm = AutoModelForCausalLM.from_config(config, dtype=number).eval()
    return GritModel(lm, tokenizer(), CheckpointConfig(base=geometry, template="gritrag"), weights=f"random-{geometry}")


def config_of(geometry: str) -> PreTrainedConfig:
    """Raises:
    ValueError: no such geometry.
    """
    if geometry not in GEOMETRIES:
        raise ValueError(f"no geometry {geometry!r}; there are: {', '.join(GEOMETRIES)}")
    kind, fields = GEOMETRIES[geometry]
    return kind(**SHARED, **fields)


def parameters(config: PreTrainedConfig) -> int:
    """How many a model of this configuration has; none is allocated."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in lm.parameters())


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return free[0] if free else 1 << 62  # a system that does not tell is believed to have enough


def tokenizer() -> PreTrainedTokenizerFast:
    """Learnt from the package's own corpus, with ChatML's control tokens: text has about as many tokens as in use."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*(document.content for document in documents()), *(each.question for each in questions())]
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIALS[0],
        eos_token=SPECIALS[2],
        pad_token=SPECIALS[2],
        extra_special_tokens=[SPECIALS[1]],
    )
