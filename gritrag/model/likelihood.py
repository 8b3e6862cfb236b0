"""Likelihood: how probable a question is behind each of several states, all in one batched forward.

A document that answers a question makes the question more probable (Sachan et al. 2022, arXiv 2204.07496, section 2).
With its state at hand the document need not be read for that: only the question is, once behind each state.

Shape letters: `N` states, `B` rows of a batch, `T` tokens, `S` scored tokens.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from gritrag.model.caches import CacheShape
from gritrag.model.context import Context, Part
from gritrag.model.inputs import inputs
from gritrag.model.module_forward import Forward
from gritrag.model.placing import place
from gritrag.model.rotation import Rotation
from gritrag.model.state import DocumentState

MOST_COLUMNS = 1 << 14
"""So many placed tokens, padding included, go into one batch: 378 MB of the states of SmolLM2-135M in bfloat16."""


class Scored(NamedTuple):
    """Tokens that follow a state, and how many of the last ones are asked for."""

    ids: tuple[int, ...]
    scored: int

    @classmethod
    def of(cls, ids: Sequence[int], is_scored: Sequence[bool]) -> "Scored":
        """Up to the last token that is to be scored, from the first one on. The first of all has no probability: what
        a state says of the token behind it is not kept."""
        end = max((number + 1 for number, scored in enumerate(is_scored) if scored), default=0)
        first = next((number for number, scored in enumerate(is_scored) if scored), 0)
        return cls(tuple(ids[:end]), end - max(first, 1) if end else 0)


@torch.inference_mode()
def log_likelihoods(
    forward: Forward,
    shape: CacheShape,
    rotation: Rotation | None,
    states: Sequence[DocumentState],
    question: Scored,
) -> torch.Tensor:
    """Log-probability of each scored token behind each state, float32 `[N, S]`, in nats; a column of 0 where none is.

    Each state stands as if it were alone, and ends where the tokens begin. States of any lengths share a batch.

    Args:
        forward: of the causal model.
        shape: of its caches.
        rotation: the model's; None where its keys cannot be moved: then every state stands at the start.
        states: `N` of them.
        question: the tokens behind each.
    """
    found_NS = torch.zeros(len(states), max(1, question.scored))
    if question.scored < 1:
        return found_NS
    for rows in _batches([len(state) for state in states]):
        longest = max(len(states[row]) for row in rows)
        contexts = [
            Context(
                (Part(states[row]), Part(question.ids[:-1])),
                start=0 if rotation is None else longest - len(states[row]),
            )
            for row in rows
        ]
        cache = place(contexts, shape, rotation, room=len(question.ids) - 1)
        ids_BT, positions_BT, mask, _ = inputs(contexts, shape.device)
        targets_BS = torch.tensor(question.ids[-question.scored :], device=shape.device).expand(len(rows), -1)
        found_NS[rows] = forward.log_probabilities(ids_BT, positions_BT, mask, cache, targets_BS).cpu()
    return found_NS


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of states, those of like length together, so that little is padding."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and lengths[row] * (len(batch) + 1) > MOST_COLUMNS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
