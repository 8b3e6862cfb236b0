"""Logits of answers in their contexts, with gradients: over placed states, or with everything read anew.

Shape letters: `B` answers of a chunk, `T` tokens, `L` layers, `H` key/value heads, `K` head dim, `D` hidden, `A` answer
tokens of a chunk, `V` vocabulary.
"""

from collections.abc import Sequence

import torch
from transformers import Cache

from gritrag.model.attention import decoder_stack
from gritrag.model.cache_names import given_cache
from gritrag.model.context import Context, Part
from gritrag.model.grit import GritModel
from gritrag.model.inputs import mask_by_position
from gritrag.model.kernels import without_cudnn
from gritrag.model.masks import added
from gritrag.model.placing import column_biases
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
        hidden = self._behind(contexts, cache)
        return self._answer_logits(hidden, answers, [answer.tokens_before for answer in answers])

    def full(
        self, documents: Sequence[Sequence[int]], answers: Sequence[Prompted]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `placed`, but each context is read anew with its question, with ordinary causal attention.

        Args:
            documents: token ids of all documents of the step.
            answers: their contexts name rows of `documents`.
        """
        contexts = [answer.context_ids(documents) for answer in answers]
        ids = [c + a.question_ids + a.answer_ids[:-1] for c, a in zip(contexts, answers, strict=True)]
        hidden = self.run(ids, [answer.start for answer in answers])
        return self._answer_logits(hidden, answers, list(map(len, contexts)))

    def run(self, ids: Sequence[Sequence[int]], starts: Sequence[int] | None = None) -> torch.Tensor:
        """Last hidden states `[B, T, D]` of right-padded rows, causal.

        Args:
            ids: the rows.
            starts: position of the first token of each; 0 where None.
        """
        firsts = starts or [0] * len(ids)
        return self._forward(ids, [range(start, start + len(row)) for start, row in zip(firsts, ids, strict=True)])

    def _behind(self, contexts: Sequence[Context], cache: Cache) -> torch.Tensor:
        """As `run`, of what is still to be read of contexts whose states are in the cache, aligned at its right end."""
        ids, cached = [context.fresh_ids for context in contexts], cache.get_seq_length()
        width, device = max(map(len, ids)), self._model.lm.device
        is_real = torch.ones(len(contexts), cached + width, dtype=torch.bool)
        for row, context in enumerate(contexts):
            is_real[row, : cached - context.cached_tokens] = False
        # nothing sees what pads a row on the right, as that comes after it: only the gap before a context is masked
        mask = None if bool(is_real.all()) else is_real
        positions = [context.fresh_positions for context in contexts]
        is_interleaved = any(context.is_interleaved for context in contexts)
        if is_interleaved:
            mask = mask_by_position(contexts, cached, _padded_positions(positions, width), is_real)
        mask, bias_BC = None if mask is None else mask.to(device), column_biases(contexts)
        if bias_BC is not None or is_interleaved:
            like = torch.empty(0, dtype=self._model.lm.dtype, device=device)
            mask = added(mask, width, cached + width, like, None if bias_BC is None else bias_BC.to(device))
        return self._forward(ids, positions, cache, mask)

    def _forward(
        self,
        ids: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        cache: Cache | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        width, device = max(map(len, ids)), self._model.lm.device
        input_ids = torch.full((len(ids), width), self._model.prompts.encoder.pad_id, dtype=torch.long)
        for row, new in enumerate(ids):
            input_ids[row, : len(new)] = torch.tensor(new)
        with without_cudnn(device):
            output = self._decoder(
                input_ids=input_ids.to(device),
                attention_mask=mask,
                position_ids=_padded_positions(positions, width).to(device),
                **given_cache(self._decoder, cache),
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


def _padded_positions(positions: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """Int64 `[B, T]`; what pads a row goes on from its last token."""
    rows = [(*own, *range(own[-1] + 1, own[-1] + 1 + width - len(own))) for own in positions]
    return torch.tensor(rows)


def _context(states: Sequence[DocumentState], answer: Prompted) -> Context:
    """States of the context with the tokens before them, and the tokens behind: all of the answer but its last, which
    predicts nothing."""
    rows = len(answer.context)
    biases, shared = answer.biases or (0.0,) * rows, answer.shares_positions or (False,) * rows
    before = answer.before_ids or ((),) * rows
    parts: list[Part] = []
    for row, bias, shares_positions, ids in zip(answer.context, biases, shared, before, strict=True):
        parts += [Part(ids)] if ids else []
        parts.append(Part(states[row], bias, shares_positions))
    return Context((*parts, Part((*answer.question_ids, *answer.answer_ids[:-1]))), answer.start)
