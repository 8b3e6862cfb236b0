"""A forward that goes on from a cache: what decoding asks of it, and that of transformers, for any architecture.

Shape letters: `B` batch, `T` tokens, `S` tokens that are kept, `V` vocabulary, `C` columns of the cache.
"""

from typing import Any, Protocol

import torch
from transformers import Cache, PreTrainedModel

from gritrag.model.cache_names import given_cache
from gritrag.model.caches import PlacedCache
from gritrag.model.masks import added, additive
from gritrag.model.watched import Watched

MOST_TOKENS = 11
"""Tokens of one step of decoding in float32, where guesses change no token though shapes differ."""


class Forward(Protocol):
    """Goes on from a cache: reads tokens, leaves their keys and values behind the others, and says what comes next."""

    def logits(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        keep: int = 1,
    ) -> torch.Tensor:
        """float32 `[B, keep, V]` of the last `keep` tokens. `mask` is that of `inputs.Inputs`."""

    def log_probabilities(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        targets_BS: torch.Tensor,
    ) -> torch.Tensor:
        """float32 `[B, S]`: of each target as that which follows one of the last `S` tokens, in nats."""

    @property
    def guesses_freely(self) -> bool:
        """Whether tokens that are guessed come out as those that are read one by one."""

    def most_tokens(self, cache: Cache) -> int:
        """How many tokens of one text `next_logits` may be given now."""

    def next_logits(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, is_real: torch.Tensor | None, cache: Cache
    ) -> torch.Tensor:
        """As `logits`, for a few tokens that were just chosen or guessed: float32 `[B, T, V]`."""


def log_probabilities_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of targets `[...]` by logits `[..., V]`."""
    return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)


def bias_of(cache: Cache | None) -> torch.Tensor | None:
    """What is added to the attention scores of the first columns of a cache; None for nothing."""
    return cache.bias if isinstance(cache, PlacedCache) else None


def watched_of(cache: Cache | None) -> Watched | None:
    """Hidden states that are to be kept of a forward over a cache; None for none."""
    return cache.watched if isinstance(cache, PlacedCache) else None


def keep_watched(cache: Cache, output: Any) -> None:
    """What a forward of transformers, which was asked for hidden states, has found of those that are watched."""
    watched = watched_of(cache)
    if watched is not None:
        for passed, hidden_BTD in enumerate(output.hidden_states or ()):
            watched.see(passed, hidden_BTD)


class ModuleForward:
    """The forward of transformers, for any architecture."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self._lm = lm
        self._is_eager = lm.config.get_text_config()._attn_implementation == "eager"

    def logits(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        keep: int = 1,
    ) -> torch.Tensor:
        bias = bias_of(cache)
        if bias is not None:
            tokens = ids_BT.shape[1]
            mask = added(mask, tokens, cache.get_seq_length() + tokens, bias.to(self._lm.dtype), bias)
        output = self._lm(
            input_ids=ids_BT,
            attention_mask=additive(mask, self._lm.dtype) if self._is_eager else mask,
            position_ids=positions_BT,
            **given_cache(self._lm, cache),
            use_cache=True,
            logits_to_keep=keep,
            output_hidden_states=watched_of(cache) is not None,
        )
        keep_watched(cache, output)
        return output.logits[:, -keep:].float()  # some models ignore `logits_to_keep`

    def log_probabilities(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        targets_BS: torch.Tensor,
    ) -> torch.Tensor:
        return log_probabilities_of(self.logits(ids_BT, positions_BT, mask, cache, targets_BS.shape[1]), targets_BS)

    @property
    def guesses_freely(self) -> bool:
        return self._lm.dtype == torch.float32

    def most_tokens(self, cache: Cache) -> int:
        return MOST_TOKENS

    def next_logits(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, is_real: torch.Tensor | None, cache: Cache
    ) -> torch.Tensor:
        return self.logits(ids_BT, positions_BT, is_real, cache, ids_BT.shape[1])
