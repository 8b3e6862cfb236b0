"""Soft tokens: embeddings that stand in a prompt beside those of words, under ids behind the vocabulary.

A contextual token is the summary of one text by a small bidirectional encoder (Causal2Vec). It is a function of the
tokens that follow it up to the end token, so the embedding layer itself resolves it: whatever runs over the ids of a
prompt, reading, training or an uncached answer, sees the same token.

Demonstrations are pairs of vectors of a query and its document (EPIC). They are given to one call, for queries only:
no document depends on them, so states serve any task.

Shape letters: `B` batch, `T` tokens, `D` hidden, `E` size of the encoder, `S` soft tokens of a batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import gelu
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gritrag.tokens import TokenIds

SAMPLE = 4096
"""Token embeddings that their size is measured on."""

NO_DEMONSTRATIONS = (
    "this model reads no demonstrations; train one that does (configs/recipes/epic.yaml), or leave demonstrations out"
)


class Demonstrations(NamedTuple):
    """What `GritModel.fit_demonstrations` returns: a task by its instruction and some pairs of query and document.

    `vectors` is float32 `[2 * pairs, dim]`: query, document, query, document ...
    """

    instruction: str
    vectors: np.ndarray


def check_pairs(pairs: int, most: int) -> None:
    """Refuse so many pairs where a model has learnt to read at most `most`.

    Raises:
        ValueError: none or too many of them, or a model that reads no demonstrations.
    """
    if not most:
        raise ValueError(NO_DEMONSTRATIONS)
    if not 1 <= pairs <= most:
        raise ValueError(f"this model reads 1 to {most} demonstrations, got {pairs}")


class Slots:
    """The ids of soft tokens, which follow those of the vocabulary, and where they go into a prompt."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self.words = _vocabulary(lm)
        self.contextual, self.demonstration = self.words, self.words + 1

    def with_contextual(self, prompt: TokenIds) -> TokenIds:
        """The contextual token comes first, and is pooled."""
        return TokenIds([self.contextual, *prompt.ids], [True, *prompt.is_pooled])

    def with_demonstrations(self, prompt: TokenIds, pairs: int) -> TokenIds:
        """Two soft tokens for each pair behind the first token, which stays the attention sink; not pooled."""
        ids, is_pooled = prompt
        count = 2 * pairs
        return TokenIds(
            [*ids[:1], *[self.demonstration] * count, *ids[1:]], [*is_pooled[:1], *[False] * count, *is_pooled[1:]]
        )


class SoftToken(nn.Module):
    """Vectors of any kind become input embeddings as large as those of words (root mean square).

    Args:
        inputs: size of the vectors.
        hidden: size of the embeddings.
        scale: root mean square of word embeddings; kept with the weights, for these may be trained too.
    """

    scale: torch.Tensor

    def __init__(self, inputs: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """`[S, inputs]` to float32 `[S, D]`."""
        embeddings = self.leave(gelu(self.enter(vectors.float()))).float()
        size = embeddings.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        return embeddings * (self.scale / size)


class TextEncoder:
    """A frozen BERT-style encoder: texts to the mean of their last hidden states. Longer texts are cut.

    Raises:
        ValueError: the folder holds no encoder.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot load a text encoder from {folder}: {error}") from None
        self._encoder = encoder.to(device).eval().requires_grad_(False)
        self.dim = int(self._encoder.config.hidden_size)
        self._limit = min(int(self._encoder.config.max_position_embeddings), self._tokenizer.model_max_length)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 `[B, E]`."""
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._limit, return_tensors="pt"
        ).to(self._encoder.device)
        with torch.autocast(self._encoder.device.type, enabled=False):
            hidden_BTE = self._encoder(**batch).last_hidden_state
        weight_BT1 = batch["attention_mask"][..., None].float()
        return (hidden_BTE * weight_BT1).sum(1) / weight_BT1.sum(1)


class ContextualToken(nn.Module):
    """A text's encoding as one embedding (Causal2Vec, Lin et al. 2025, abstract).

    Args:
        encoder: stays as it is; only what follows it is trained.
        tokenizer: of the language model.
        end_id: the token that ends every text.
        hidden, scale: of the language model's embeddings.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        tokenizer: PreTrainedTokenizerBase,
        end_id: int,
        hidden: int,
        scale: float,
    ) -> None:
        super().__init__()
        self._encode, self._tokenizer, self._end_id = encoder, tokenizer, end_id
        self.project = SoftToken(encoder.dim, hidden, scale)

    def forward(self, input_ids: torch.Tensor, is_slot_BT: torch.Tensor) -> torch.Tensor:
        """Embeddings `[S, D]` of the contextual tokens among `input_ids` `[B, T]`, row by row."""
        texts = [self._text(input_ids[row, column:].tolist()) for row, column in is_slot_BT.nonzero().tolist()]
        return self.project(self._encode(texts))

    def _text(self, ids: list[int]) -> str:
        """What stands between a contextual token and the end token of its text."""
        assert self._end_id in ids, "a text that begins with a contextual token must be read to its end at once"
        return str(self._tokenizer.decode(ids[1 : ids.index(self._end_id)], skip_special_tokens=True))


def resolve(lm: PreTrainedModel, contextual: ContextualToken, slots: Slots) -> None:
    """Let the embedding layer of `lm` know contextual tokens. It stays the module that it was, under its name."""
    layer = lm.get_input_embeddings()
    words = type(layer).forward

    def forward(input_ids: torch.Tensor) -> torch.Tensor:
        is_word_BT = input_ids < slots.words
        if bool(is_word_BT.all()):
            return words(layer, input_ids)
        embeddings_BTD = words(layer, input_ids.where(is_word_BT, 0))
        is_slot_BT = input_ids == slots.contextual
        soft_SD = contextual(input_ids, is_slot_BT)
        return embeddings_BTD.masked_scatter(is_slot_BT[..., None], soft_SD.to(embeddings_BTD.dtype))

    layer.forward = forward


@torch.no_grad()
def embedding_scale(lm: PreTrainedModel) -> float:
    """Root mean square of the input embeddings of words, over a sample of the vocabulary."""
    layer = lm.get_input_embeddings()
    words = _vocabulary(lm)
    ids = torch.linspace(0, words - 1, min(SAMPLE, words)).long().to(lm.device)
    return float(layer(ids[None]).float().square().mean().sqrt())


def _vocabulary(lm: PreTrainedModel) -> int:
    """Rows of the embedding layer."""
    weight = lm.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]
