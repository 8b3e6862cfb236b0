"""Models that read a text otherwise from its first token on, once it is longer than a certain length (LongRoPE).

LongRoPE (Ding et al. 2024, arXiv 2402.13753) has two sets of angles, one for texts of up to so many tokens as the model
was first trained on, and one for longer texts. Keys of one set are of no use beside those of the other: a text that
grows beyond this length has to be read again.

Shape letters: `B` batch, `T` tokens.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from gritrag.model.caches import PlacedCache
from gritrag.model.module_forward import ModuleForward


def turning_point(lm: PreTrainedModel) -> int | None:
    """The length up to which texts are read one way, in tokens; None where all are read alike."""
    config: PreTrainedConfig = lm.config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(kind for kind in given.values() if isinstance(kind, dict))]
    turns = [int(kind["original_max_position_embeddings"]) for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(turns, default=None)


_CHOOSING = threading.Lock()


def choose_in_turn(model: nn.Module) -> None:
    """Let one thread at a time choose angles and use them: transformers writes those that it chose last into the
    module, and a thread that reads a text of the other kind would be given them."""
    for module in model.modules():
        own: Any = type(module)
        if getattr(module, "rope_type", None) is not None and not hasattr(own, "chooses_in_turn"):
            module.__class__ = type(own.__name__, (own,), {"forward": _in_turn(own.forward), "chooses_in_turn": True})


def _in_turn(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with _CHOOSING:
            return forward(*args, **kwargs)

    return locked


class TurningForward(ModuleForward):
    """The forward of transformers for one text at a time, which is read again when it grows beyond the turning point.

    Args:
        lm: as for `ModuleForward`.
        turn: the turning point.
    """

    def __init__(self, lm: PreTrainedModel, turn: int) -> None:
        super().__init__(lm)
        self._turn = turn

    def logits(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        keep: int = 1,
    ) -> torch.Tensor:
        if not isinstance(cache, PlacedCache):
            return super().logits(ids_BT, positions_BT, mask, cache, keep)
        assert len(ids_BT) == 1, "one text at a time"
        before = cache.length
        cache.token_ids = [*cache.token_ids[:before], *ids_BT[0].tolist()]
        if before <= self._turn < len(cache.token_ids):
            cache.cut(0)
            ids_BT = torch.tensor([cache.token_ids], device=ids_BT.device)
            positions_BT, mask = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None], None
        return super().logits(ids_BT, positions_BT, mask, cache, keep)

    def most_tokens(self, cache: Cache) -> int:
        left = self._turn - cache.get_seq_length()  # a step that reached beyond would read all its tokens the other way
        most = super().most_tokens(cache)
        return min(most, left) if left > 0 else most
