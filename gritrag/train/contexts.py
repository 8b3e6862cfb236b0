"""Logits of answers in their contexts, with gradients: over placed states, or with everything read anew.

Shape letters: `B` answers of a chunk, `T` tokens, `L` layers, `H` key/value heads, `K` head dim, `D` hidden, `A` answer
tokens of a chunk, `V` vocabulary.
"""

from collections.abc import Sequence

import torch
from transformers import Cache

from gritrag.model.attention import decoder_stack
from gritrag.model.context import Context, Part, added, column_biases
from gritrag.model.grit import GritModel
from gritrag.model.kernels import without_cudnn
from gritrag.model.state import DocumentState
from gritrag.train import gathering
from gritrag.train.data.steps import Prompted
from gritrag.train.gathering import Pool
from gritrag.train.placing import place


class Contexts:
    """Runs the decoder over answers in their contexts.

    Args:
        model: its keys can be moved.
    """

    def __init__(self, model: GritModel) -> None:
        self._model = model
        self._decoder = decoder_stack(model.lm)
        self._head = model.lm.get_output_embeddings()

    def placed(
        self, states: Sequence[DocumentState], answers: Sequence[Prompted], pool: Pool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[A, V]` of answer tokens over placed states, and the tokens `[A]`. Documents are not read again.

        Args:
            states: of all documents of the step, with gradients.
            answers: their contexts name rows of `states`.
            pool: of the same states: contexts are gathered from it, which gathers their gradients.
        """
        contexts = [_context(states, answer) for answer in answers]
        rotation, room = self._model.rotation, max(len(context.fresh_ids) for context in contexts)
        assert rotation is not None, "the loop refuses models whose keys cannot be moved"
        cache = place(contexts, rotation, room) if pool is None else gathering.place(contexts, rotation, room, pool)
        hidden = self.run(
            [context.fresh_ids for context in contexts],
            [context.fresh_positions[0] for context in contexts],
            cache,
            [context.cached_tokens for context in contexts],
            column_biases(contexts),
        )
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
        input_ids = torch.full((len(ids), width), self._model.prompts.encoder.pad_id, dtype=torch.long)
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
                seen,
                width,
                cached + width,
                torch.empty(0, dtype=self._model.lm.dtype, device=device),
                bias_BC.to(device),
            )
        with without_cudnn(device):
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


def _context(states: Sequence[DocumentState], answer: Prompted) -> Context:
    """States of the context, and the tokens behind them: all of the answer but its last, which predicts nothing."""
    rows = len(answer.context)
    biases, shared = answer.biases or (0.0,) * rows, answer.shares_positions or (False,) * rows
    placed = zip(answer.context, biases, shared, strict=True)
    parts = [Part(states[row], bias, shares_positions) for row, bias, shares_positions in placed]
    return Context((*parts, Part((*answer.question_ids, *answer.answer_ids[:-1]))), answer.start)
