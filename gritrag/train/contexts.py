"""Logits of answers in their contexts, with gradients: over placed states, or with everything read anew.

Shape letters: `B` answers of a chunk, `T` tokens, `L` layers, `H` key/value heads, `K` head dim, `D` hidden, `A` answer
tokens of a chunk, `V` vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from gritrag.model.attention import decoder_stack
from gritrag.model.context import added, first_positions
from gritrag.model.grit import GritModel
from gritrag.train.data.steps import Prompted


class StateTensors(NamedTuple):
    """Un-rotated keys and values `[L, H, T, K]` of one document, with gradients."""

    keys: torch.Tensor
    values: torch.Tensor


class GrowingLayer(CacheLayerMixin):
    """One layer of a cache that is joined with new tokens out of place, so that gradients flow into what it holds."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The states are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # under autocast new keys may come in another dtype than those of the reading
        self.keys = torch.cat([self.keys.to(key_states.dtype), key_states], dim=2)
        self.values = torch.cat([self.values.to(value_states.dtype), value_states], dim=2)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2] + query_length, 0

    def get_seq_length(self) -> int:
        return self.keys.shape[2]

    def get_max_length(self) -> int:
        return -1


class Contexts:
    """Runs the decoder over answers in their contexts.

    Args:
        model: its keys can be moved.
    """

    def __init__(self, model: GritModel) -> None:
        self._model = model
        self._decoder = decoder_stack(model.lm)
        self._head = model.lm.get_output_embeddings()

    def placed(self, states: Sequence[StateTensors], answers: Sequence[Prompted]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[A, V]` of answer tokens over placed states, and the tokens `[A]`. Documents are not read again.

        Args:
            states: of all documents of the step.
            answers: their contexts name rows of `states`.
        """
        cache, lengths, starts = self._place(states, answers)
        ids = [answer.question_ids + answer.answer_ids[:-1] for answer in answers]
        hidden = self.run(ids, starts, cache, lengths, self._biases(states, answers, max(lengths)))
        return self._answer_logits(hidden, answers, [0] * len(answers))

    def full(
        self, documents: Sequence[Sequence[int]], answers: Sequence[Prompted]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `placed`, but each context is read anew with its question, with ordinary causal attention.

        Args:
            documents: token ids of all documents of the step.
            answers: their contexts name rows of `documents`.
        """
        contexts = [[i for row in answer.context for i in documents[row]] for answer in answers]
        ids = [c + a.question_ids + a.answer_ids[:-1] for c, a in zip(contexts, answers, strict=True)]
        hidden = self.run(ids, [answer.start for answer in answers])
        return self._answer_logits(hidden, answers, list(map(len, contexts)))

    def run(
        self,
        ids: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
        bias_BC: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states `[B, T, D]` of right-padded rows, causal.

        Args:
            ids: the rows.
            starts: position of the first token of each; 0 where None.
            cache: contexts that come before, aligned at the right end.
            lengths: tokens of each context that are in the cache.
            bias_BC: added to the attention scores of its columns.
        """
        width, device = max(map(len, ids)), self._model.lm.device
        input_ids = torch.full((len(ids), width), self._model.encoder.pad_id, dtype=torch.long)
        positions = torch.arange(width).repeat(len(ids), 1) + torch.tensor(starts or [0] * len(ids))[:, None]
        cached = cache.get_seq_length() if cache is not None else 0
        mask = torch.ones(len(ids), cached + width, dtype=torch.bool)
        for row, new in enumerate(ids):
            input_ids[row, : len(new)] = torch.tensor(new)
            if lengths is not None:
                mask[row, : cached - lengths[row]] = False
        # nothing sees what pads a row on the right, as that comes after it: only the gap before a context is masked
        seen = None if bool(mask.all()) else mask.to(device)
        if bias_BC is not None:
            seen = added(
                seen, width, cached + width, torch.empty(0, dtype=self._model.lm.dtype, device=device), bias_BC
            )
        output = self._decoder(
            input_ids=input_ids.to(device),
            attention_mask=seen,
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def logits(self, hidden_BTD: torch.Tensor, picked: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Logits of some (row, column) only: the LM head is a fifth of a small model's work."""
        rows, columns = zip(*picked, strict=True)
        logits: torch.Tensor = self._head(hidden_BTD[list(rows), list(columns)])
        return logits

    def _place(self, states: Sequence[StateTensors], answers: Sequence[Prompted]) -> tuple[Cache, list[int], list[int]]:
        """A cache with each answer's context placed, aligned at the right end; the contexts' lengths; and the positions
        behind them."""
        parts_of = [_lengths(states, answer) for answer in answers]
        lengths, starts = list(map(sum, parts_of)), []
        width, device = max(lengths), self._model.lm.device
        positions_BT = torch.zeros(len(answers), width, dtype=torch.long)
        for row, (answer, parts) in enumerate(zip(answers, parts_of, strict=True)):
            firsts, start = first_positions(parts, answer.abreast, answer.start)
            starts.append(start)
            own = [torch.arange(first, first + length) for first, length in zip(firsts, parts, strict=True)]
            positions_BT[row, width - lengths[row] :] = torch.cat(own)
        positions_BT = positions_BT.to(device)
        keys_LBHTK, values_LBHTK = (
            torch.stack([_joined([states[r][part] for r in a.context], width) for a in answers], dim=1)
            for part in (0, 1)
        )
        assert self._model.rotation is not None, "the loop refuses models whose keys cannot be moved"
        keys_LBHTK = self._model.rotation.rotate(keys_LBHTK, positions_BT)
        return (
            Cache(layers=[GrowingLayer(k, v) for k, v in zip(keys_LBHTK, values_LBHTK, strict=True)]),
            lengths,
            starts,
        )

    def _biases(self, states: Sequence[StateTensors], answers: Sequence[Prompted], width: int) -> torch.Tensor | None:
        """Of all columns of placed contexts, float32 `[B, C]`; None where no answer has any."""
        if not any(any(answer.biases) for answer in answers):
            return None
        bias_BC = torch.zeros(len(answers), width)
        for row, answer in enumerate(answers):
            if answer.biases:
                lengths = _lengths(states, answer)
                own = [torch.full((n,), bias) for n, bias in zip(lengths, answer.biases, strict=True)]
                bias_BC[row, width - sum(lengths) :] = torch.cat(own)
        return bias_BC.to(self._model.lm.device)

    def _answer_logits(
        self, hidden_BTD: torch.Tensor, answers: Sequence[Prompted], offsets: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer tokens are predicted from the last token of the question on, `offsets` columns further right."""
        picked = [
            (row, offset + len(answer.question_ids) - 1 + token)
            for row, (answer, offset) in enumerate(zip(answers, offsets, strict=True))
            for token in range(len(answer.answer_ids))
        ]
        target_A = torch.tensor([i for answer in answers for i in answer.answer_ids], device=hidden_BTD.device)
        return self.logits(hidden_BTD, picked), target_A


def _lengths(states: Sequence[StateTensors], answer: Prompted) -> list[int]:
    return [states[row].keys.shape[2] for row in answer.context]


def _joined(parts: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Join `[L, H, T, K]` along tokens and pad on the left to `width`."""
    layers, heads, _, head_dim = parts[0].shape
    gap = width - sum(part.shape[2] for part in parts)
    return torch.cat([parts[0].new_zeros(layers, heads, gap, head_dim), *parts], dim=2)
