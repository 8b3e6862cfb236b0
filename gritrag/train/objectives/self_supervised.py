"""Losses that need texts only: masked next token prediction, and two views of a text under dropout.

Shape letters: `A` masked tokens of a chunk, `V` vocabulary.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from gritrag.model.grit import GritModel
from gritrag.tokens import length_sorted_batches
from gritrag.train.config import TrainConfig
from gritrag.train.contexts import Contexts
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.objectives.losses import MaskedNextToken, Views
from gritrag.train.ranks import Ranks
from gritrag.train.readings import Readings


class SelfSupervised:
    """Takes these losses on the documents of a step; gradients are left in the parameters.

    Args:
        model: in training.
        config: the recipe.
        ranks: other processes, whose texts are negatives too.
    """

    def __init__(self, model: GritModel, config: TrainConfig, ranks: Ranks) -> None:
        self._model, self._config, self._peers = model, config, ranks
        self._contexts = Contexts(model)
        self._masked, self._views = MaskedNextToken(config.masked), Views(config.views)

    def __call__(self, step: RetrievalStep) -> tuple[dict[str, float], int]:
        """Losses by name (`masked`, `views`), and the tokens that were read for them."""
        losses: dict[str, float] = {}
        if self._config.masked.weight:
            losses["masked"] = self._mask(step)
        if self._config.views.weight:
            losses["views"] = self._compare_views(step)
        readings = bool(self._config.masked.weight) + 2 * bool(self._config.views.weight)
        return losses, readings * sum(len(document.ids) for document in step.documents)

    def _mask(self, step: RetrievalStep) -> float:
        model, rng = self._model, random.Random(step.seed)
        mask_id = model.prompts.encoder.content_ids(self._config.masked.mask)[0]
        hidden = [self._masked.mask(document, mask_id, rng) for document in step.documents]
        share = self._peers.share(sum(len(columns) for _, columns in hidden))
        total, value = sum(len(columns) for _, columns in hidden), 0.0
        lengths = [len(prompt.ids) for prompt, _ in hidden]
        for rows in length_sorted_batches(lengths, len(lengths), self._config.chunk_tokens):
            batch = model.prompts.encoder.pad([hidden[row][0] for row in rows]).to(model.lm.device)
            where = [(place, column - 1) for place, row in enumerate(rows) for column in hidden[row][1]]
            target = [step.documents[row].ids[column] for row in rows for column in hidden[row][1]]
            logits_AV = self._contexts.logits(model.reader.hidden_states(batch), where)
            loss = self._masked(logits_AV, torch.tensor(target, device=logits_AV.device)) * share / total
            (loss * self._config.masked.weight).backward()
            value += loss.item()
        return value

    def _compare_views(self, step: RetrievalStep) -> float:
        views = [self._view(step, number) for number in range(2)]
        contents = [content for own in self._peers.lists(step.contents) for content in own]
        first_ND, second_ND = (self._peers.vectors(view.vectors) for view in views)
        loss = self._views(first_ND, second_ND, contents)
        (loss * self._config.views.weight).backward()
        for view in views:
            view.backward()
        return loss.item()

    def _view(self, step: RetrievalStep, number: int) -> Readings:
        """A reading whose dropout depends on step, view and chunk only: read anew, a chunk is the same again."""

        def dropout(rows: Sequence[int]) -> AbstractContextManager[None]:
            seed = random.Random(f"{step.seed}/{number}/{rows[0]}").getrandbits(48)
            return dropping(self._model.lm, self._config.views.dropout, seed)

        config = self._config
        return Readings(self._model, step.documents, config.chunk_tokens, config.recompute, around=dropout)


@contextmanager
def dropping(lm: PreTrainedModel, share: float, seed: int) -> Iterator[None]:
    """Drop this share of the numbers of all input embeddings, and scale up the rest."""
    generator = torch.Generator().manual_seed(seed)

    def drop(layer: nn.Module, inputs: object, embeddings: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(embeddings.shape, generator=generator) >= share
        return embeddings * kept.to(embeddings.device) / (1 - share)

    handle = lm.get_input_embeddings().register_forward_hook(drop)
    try:
        yield
    finally:
        handle.remove()
