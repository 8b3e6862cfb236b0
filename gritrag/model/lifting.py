"""Lifting: documents that a question turns out to need beside the best one get nearly its weight.

The scores of a search say how much each document counts in an answer, and the best one counts far more than the others:
what a question needs that needs one document, and half of what it needs that needs two. While the question is read,
retrieval heads find what answers each of its tokens. Where other documents answer what the best one does not, their
bias is raised, and the question is read once more; else nothing is lost.

Shape letters: `B` contexts, `C` columns of a cache, `T` tokens, `D` hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from gritrag.complements import complements
from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context
from gritrag.model.placing import Cell, cells
from gritrag.model.retrieval_heads import HeadScores, RetrievalHeads
from gritrag.model.rotation import Rotation
from gritrag.model.watched import Watched

LIFTED = -0.8
"""Relevance bias of a complement, in attention scores: that of a document whose score is a tenth below the best one's,
see docs/experiments/2026-11-several-documents.md."""

TOO_LOW = LIFTED - 0.5
"""Documents with a bias below this are lifted: of others, such as those that ranking has lifted, an answer would change
little, and its question would be read once more."""


class Lifter:
    """Finds what questions need beside the best document, and lifts it.

    Args:
        lm: the causal model.
        heads: its retrieval heads.
        rotation: of its keys.

    Raises:
        ValueError: the model has no such heads, or rotates keys of some layers otherwise.
    """

    def __init__(self, lm: PreTrainedModel, heads: RetrievalHeads, rotation: Rotation) -> None:
        if rotation.is_per_type:
            raise ValueError("retrieval heads are for models that rotate keys alike in all layers")
        self._lm, self._scores, self._rotation = lm, HeadScores(lm, heads), rotation

    def demanding(self, least_gain: float) -> "Lifter":
        """The same with another gain that documents must add."""
        return Lifter(self._lm, replace(self._scores.heads, least_gain=least_gain), self._rotation)

    @property
    def layers(self) -> tuple[int, ...]:
        """Behind how many layers all tokens of the question are to be kept; see `Watched`."""
        return self._scores.heads.layers

    @staticmethod
    def is_due(context: Context) -> bool:
        """Whether a context may gain: it has a question behind several documents, of which one counts most."""
        biases = [part.relevance_bias for part in context.parts if part.shares_positions]
        return context.seeks_complements and len(biases) > 1 and min(biases) < TOO_LOW

    def lift(self, cache: PlacedCache, contexts: Sequence[Context], watched: Watched | None) -> list[tuple[int, ...]]:
        """Raise the biases of complements in a cache, for what is read from now on.

        Args:
            cache: one row for each context.
            contexts: whose questions have been read.
            watched: what the forward that read them has kept.

        Returns:
            For each context, numbers among its documents of those that were lifted, the most helpful first; of those
            that need none, that are not `is_due`, or of which nothing was kept, none.
        """
        lifted: list[tuple[int, ...]] = []
        for row, context in enumerate(contexts):
            is_due = watched is not None and cache.bias is not None and self.is_due(context)
            hidden = watched.read(row, context.behind_documents) if watched is not None and is_due else None
            lifted.append(() if hidden is None else self._lift(cache, self._documents(contexts, row), hidden))
        return lifted

    def _lift(
        self, cache: PlacedCache, documents: Sequence[Cell], hidden: Mapping[int, torch.Tensor]
    ) -> tuple[int, ...]:
        """Of one context, whose question has left this behind; see `Watched.read`."""
        lengths = [len(cell.placed.state) for cell in documents]
        scores_NS = self._scores.scores(self._scores.queries(hidden), self._keys(cache, documents), lengths)
        biases = [cell.placed.relevance_bias for cell in documents]
        found = complements(scores_NS.cpu().numpy(), biases.index(max(biases)), self._scores.heads.least_gain)
        raised = tuple(number for number in found if biases[number] < TOO_LOW)
        assert cache.bias is not None
        for number in raised:
            row, columns, placed = documents[number]
            cache.bias[row, columns.start + placed.unbiased : columns.stop] = LIFTED
        return raised

    @staticmethod
    def _documents(contexts: Sequence[Context], row: int) -> list[Cell]:
        """Where the states of one context lie that share positions."""
        shared = {id(part.content) for part in contexts[row].parts if part.shares_positions}
        return [cell for cell in cells(contexts) if cell.row == row and id(cell.placed.state) in shared]

    def _keys(self, cache: PlacedCache, documents: Sequence[Cell]) -> dict[tuple[int, int], torch.Tensor]:
        """Of documents one behind the other, those that the heads look at, un-rotated: `[T, K]` each."""
        row, columns = documents[0].row, slice(documents[0].columns.start, documents[-1].columns.stop)
        places = self._scores.keys
        rotated = torch.stack([cache.buffers[0][layer, row, [head], columns] for layer, head in places])
        own = [cell.placed.position + torch.arange(len(cell.placed.state)) for cell in documents]
        unrotated = self._rotation.undo(rotated, torch.cat(own).to(rotated.device))
        return dict(zip(places, unrotated[:, 0], strict=True))
