"""Retrieval heads: attention heads by which tokens of a question find what answers them in documents.

A few heads in the middle of a model look for that and little else (Wu et al. 2024, arXiv 2404.15574). What their
queries find in each document, before keys are rotated, tells token by token which document answers which part of a
question: so a document that answers what the best one does not is seen while the question is read, at no cost.

Shape letters: `N` documents, `S` tokens of a question, `D` hidden size, `H` retrieval heads, `K` head dim, `T` tokens
of a document.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gritrag.model.attention import decoder_stack

RETRIEVAL_HEADS_FILE = "retrieval_heads.json"
"""Name of the file inside a checkpoint."""

FORMAT = "gritrag-retrieval-heads-1"

SINK = 4
"""So many first tokens of a document are passed over: heads that find nothing look at them."""


@dataclass(frozen=True)
class RetrievalHeads:
    """Those of one checkpoint.

    Args:
        heads: layer and number among the query heads of that layer, both from 0.
        least_gain: how much higher the mean score of a question's tokens must be for a further document; scores are
            products of queries and keys as attention scales them. See `gritrag.complements`.
    """

    heads: tuple[tuple[int, int], ...]
    least_gain: float

    @property
    def layers(self) -> tuple[int, ...]:
        """In which they are, each once."""
        return tuple(sorted({layer for layer, _ in self.heads}))

    def save(self, path: Path) -> None:
        """Write them, as `load` reads them."""
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> "RetrievalHeads":
        """Read what `save` wrote.

        Raises:
            ValueError: no such file, a broken one, or one of another format.
        """
        try:
            fields = json.loads(path.read_text("utf-8"))
            if fields["format"] != FORMAT:
                raise ValueError(f"format {fields['format']!r}, this version reads {FORMAT!r}")
            heads = tuple((int(layer), int(head)) for layer, head in fields["heads"])
            least_gain = float(fields["least_gain"])
            if not heads or not least_gain > 0:
                raise ValueError("at least one head and a gain above 0 are needed")
            return cls(heads, least_gain)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cannot read retrieval heads from {path}: {error}") from None


class HeadScores:
    """What the retrieval heads of one model find.

    Args:
        lm: a causal language model whose layers are like those of Llama.
        heads: of it.

    Raises:
        ValueError: it has no such heads, or its layers are built otherwise.
    """

    def __init__(self, lm: PreTrainedModel, heads: RetrievalHeads) -> None:
        self.heads = heads
        layers: Any = getattr(decoder_stack(lm), "layers", ())
        for layer, head in heads.heads:
            has = lm.config.get_text_config().num_hidden_layers
            if not 0 <= layer < has:
                raise ValueError(f"retrieval heads are in layer {layer}, this model has {has}")
            if not layers or not _is_like_llama(layers[layer]):
                raise ValueError("retrieval heads are for models whose layers are like those of Llama")
            has = _query_heads(layers[layer].self_attn)
            if not 0 <= head < has:
                raise ValueError(f"retrieval heads: head {head} of layer {layer}, this model has {has}")
        self._layers = layers
        key_heads = lm.config.get_text_config().num_key_value_heads
        self._keys_of = {
            (layer, head): (layer, head // (_query_heads(layers[layer].self_attn) // key_heads))
            for layer, head in heads.heads
        }

    @property
    def keys(self) -> tuple[tuple[int, int], ...]:
        """Layer and number of the key heads that they look at, each once."""
        return tuple(sorted(set(self._keys_of.values())))

    def queries(self, hidden: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """Of each head, float32 `[S, K]`, not rotated.

        Args:
            hidden: by layer, what is handed to it, `[S, D]`.
        """
        of_layer = {layer: self._queries(layer, hidden[layer]) for layer in self.heads.layers}
        return [of_layer[layer][:, head].float() for layer, head in self.heads.heads]

    def _queries(self, layer: int, hidden_SD: torch.Tensor) -> torch.Tensor:
        """Of all heads of a layer, `[S, heads, K]`."""
        module = self._layers[layer]
        attention = module.self_attn
        found: torch.Tensor = attention.q_proj(module.input_layernorm(hidden_SD))
        found = found.unflatten(-1, (-1, attention.head_dim))
        return attention.q_norm(found) if hasattr(attention, "q_norm") else found

    def scores(
        self, queries: Sequence[torch.Tensor], keys: Mapping[tuple[int, int], torch.Tensor], lengths: Sequence[int]
    ) -> torch.Tensor:
        """How well each token of a question finds something in each document, float32 `[N, S]`.

        The mean over heads of the greatest product with a key.

        Args:
            queries: of each head, `[S, K]`.
            keys: of all documents one behind the other, un-rotated, by layer and key head, `[T, K]`.
            lengths: tokens of each document.
        """
        found = []
        for head, query_SK in zip(self.heads.heads, queries, strict=True):
            products_TS = keys[self._keys_of[head]].float() @ query_SK.T * self._layers[head[0]].self_attn.scaling
            parts = products_TS.split(list(lengths))
            found.append(torch.stack([own[min(SINK, len(own) - 1) :].amax(0) for own in parts]))
        return torch.stack(found).mean(0)


def _is_like_llama(layer: Any) -> bool:
    """Whether queries are made of what a layer is given as in Llama, perhaps normalised as in Qwen 3."""
    attention = getattr(layer, "self_attn", None)
    modules = getattr(layer, "input_layernorm", None), getattr(attention, "q_proj", None)
    return all(isinstance(each, nn.Module) for each in modules) and {"head_dim", "scaling"} <= set(vars(attention))


def _query_heads(attention: Any) -> int:
    """How many there are."""
    found: int = attention.q_proj.out_features // attention.head_dim
    return found
