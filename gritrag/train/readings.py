"""Readings: what one pass over some prompts left, as leaves that gather gradients.

Shape letters: `N` prompts, `S` soft tokens, `L` layers, `H` key/value heads, `T` tokens, `K` head dim.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gritrag.model.caches import RecordingCache
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState
from gritrag.tokens import TokenIds, length_sorted_batches
from gritrag.train.objectives.gradcache import GradCache


class _Trimmed(torch.autograd.Function):
    """Each row of `[L, N, H, T, K]` without its padding, `[L, H, n, K]`; all gradients go back in one tensor.

    Plain slices would each hand back a gradient of the size of the whole chunk.
    """

    @staticmethod
    def forward(ctx: Any, whole: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, ...]:
        ctx.shape, ctx.lengths = whole.shape, lengths
        ctx.set_materialize_grads(False)
        return tuple(whole[:, row, :, :length] for row, length in enumerate(lengths))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        given = next((gradient for gradient in gradients if gradient is not None), None)
        if given is None:
            return None, None
        whole = given.new_zeros(ctx.shape)
        for row, (gradient, length) in enumerate(zip(gradients, ctx.lengths, strict=True)):
            if gradient is not None:
                whole[:, row, :, :length] = gradient
        return whole, None


class Readings:
    """What one reading of some prompts left: vectors, and states where they were asked for; gradients gather in it.

    Args:
        model: reads.
        prompts: documents or queries.
        chunk_tokens: of one forward pass, padding included.
        recompute: see `GradCache`.
        with_states: record keys and values.
        demonstrations: for each prompt the vectors of its slots, `[S, dim]`; None where there are no slots.
        around: entered for the reading of a chunk, whose rows it is given.
    """

    def __init__(
        self,
        model: GritModel,
        prompts: Sequence[TokenIds],
        chunk_tokens: int,
        recompute: bool,
        with_states: bool = False,
        demonstrations: Sequence[torch.Tensor] | None = None,
        around: Callable[[Sequence[int]], AbstractContextManager[None]] = lambda rows: nullcontext(),
    ) -> None:
        self._ids, self._reading = [prompt.ids for prompt in prompts], model.config.reading

        def read(rows: list[int]) -> tuple[torch.Tensor, ...]:
            batch = model.prompts.encoder.pad([prompts[row] for row in rows]).to(model.lm.device)
            soft = torch.cat([demonstrations[row] for row in rows]) if demonstrations is not None else None
            cache = RecordingCache() if with_states else None
            with around(rows):
                vectors = model.reader.read_batch(batch, cache, soft)
            return (vectors, *cache.unrotated(model.rotation)) if cache else (vectors,)

        self._chunks = (
            list(length_sorted_batches(list(map(len, self._ids)), len(prompts), chunk_tokens)) if prompts else []
        )
        self._cache = GradCache(read, self._chunks, recompute)
        self.backward = self._cache.backward

    @property
    def vectors(self) -> torch.Tensor:
        """`[N, dim]`, in the order of the prompts."""
        order = [row for rows in self._chunks for row in rows]
        places = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat([leaves[0] for leaves in self._cache.leaves])[places]

    @property
    def states(self) -> list[DocumentState]:
        """The state of each prompt, trimmed of padding."""
        found: dict[int, DocumentState] = {}
        for rows, (_, keys, values) in zip(self._chunks, self._cache.leaves, strict=True):
            lengths = [len(self._ids[row]) for row in rows]
            own = zip(_Trimmed.apply(keys, lengths), _Trimmed.apply(values, lengths), strict=True)
            for row, (own_keys, own_values) in zip(rows, own, strict=True):
                found[row] = DocumentState(own_keys, own_values, torch.tensor(self._ids[row]), self._reading)
        return [found[row] for row in range(len(found))]
