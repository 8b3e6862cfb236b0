"""What was decoded to an answer: what of it was reused, and whether that is exact."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gritrag.model.decode import Completion
from gritrag.model.grit import GritModel
from gritrag.model.sampling import Sampling
from gritrag.plan import ContextPlan
from gritrag.records import Answer, Hit, Timings, Usage

__all__ = ["Decoded", "answer_of"]


class Decoded(NamedTuple):
    """What decoding a planned context gave.

    Args:
        completion: the text, and how it ended.
        timings: of all steps.
        sampling: how tokens were chosen.
        read_again: tokens of states that were recomputed, those that had just been read perhaps among them.
        remembered: tokens before the documents that were not read again, of what was said before.
    """

    completion: Completion
    timings: Timings
    sampling: Sampling
    read_again: int = 0
    remembered: int = 0


def answer_of(model: GritModel, mode: str, hits: Sequence[Hit], plan: ContextPlan, decoded: Decoded) -> Answer:
    """The answer to a question, from the hits that its context was planned from. Everything that answers one, here and
    in the server, says by this what was reused and whether that is exact."""
    completion, again = decoded.completion, decoded.read_again
    is_read = 0 < again == plan.context.cached_tokens and model.dtype == torch.float32
    is_exact = (plan.is_exact or is_read) and not plan.refuses(completion.unanswerable)
    cached = max(0, plan.cached_tokens - again) + decoded.remembered
    return Answer(
        text=completion.text.strip(),
        hits=plan.hits_of(hits, completion.complements),
        citations=plan.citations,
        usage=Usage(len(plan.context), cached, len(completion.token_ids)),
        timings=decoded.timings,
        exact=is_exact and (decoded.sampling.temperature == 0 or not plan.context.states),
        mode=mode,
        finish_reason=completion.finish_reason,
        unanswerable=completion.unanswerable,
    )
