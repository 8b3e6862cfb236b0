"""NativeForward: a model's own forward over whatever it keeps of a text, for models that have no states to reuse.

State-space models, hybrids and models whose layers keep keys of several shapes remember a text in a form of their own.
It is filled by reading from the first token on, and can be neither moved nor joined with another. So each text is read
by itself, and a model that keeps nothing that we know of reads all of its text again for every token.

Shape letters: `B` batch, `T` tokens, `V` vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from gritrag.model.caches import PlacedCache
from gritrag.model.decode import Completion, Decoding
from gritrag.model.module_forward import keep_watched, log_probabilities_of, watched_of
from gritrag.model.turning import turning_point


class NativeCache(PlacedCache):
    """What a model keeps of one text: no columns that a state could be written into.

    Attributes:
        token_ids: what it has read.
        kept: what the model handed out last; None before it has read anything.
    """

    def __init__(self) -> None:
        nothing = torch.empty(0, 1, 0, 0, 0)
        super().__init__(nothing, nothing, 0)
        self.token_ids: list[int] = []
        self.kept: Any = None

    @property
    def length(self) -> int:
        """Tokens that have been read."""
        return len(self.token_ids)

    def cut(self, length: int) -> None:
        """Nothing can be forgotten again."""
        assert length == self.length, f"{self.length} tokens have been read, and cannot be cut to {length}"


class NativeForward:
    """The model's own forward, one text at a time; see `Forward` for its methods.

    Args:
        lm: any causal LM.
        kept_as: one of `CACHE_NAMES`; empty where all of a text is to be read again for each token.
        gives_positions: whether it is told where tokens stand. Bamba of transformers 5.23 counts from 0 again where it
            is not; RoBERTa counts in a way of its own.
    """

    guesses_freely = False

    def __init__(self, lm: PreTrainedModel, kept_as: str, gives_positions: bool) -> None:
        self._lm, self.kept_as, self._gives_positions = lm, kept_as, gives_positions
        self._turn = turning_point(lm)

    def logits(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        keep: int = 1,
    ) -> torch.Tensor:
        assert isinstance(cache, NativeCache), "a model without states has no columns to place them in"
        assert len(ids_BT) == 1, "one text at a time"
        before = len(cache.token_ids)
        cache.token_ids += ids_BT[0].tolist()
        if self._turn is not None and before <= self._turn < len(cache.token_ids):
            cache.kept, ids_BT = None, torch.tensor([cache.token_ids], device=ids_BT.device)
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        given: dict[str, Any] = {} if watched_of(cache) is None else {"output_hidden_states": True}
        if not self.kept_as:
            output = self._lm(input_ids=torch.tensor([cache.token_ids], device=ids_BT.device), **given)
            keep_watched(cache, output)
            return output.logits[:, -keep:].float()
        # nothing is given before there is anything: the model makes it in its own form
        if cache.kept is not None:
            given[self.kept_as] = cache.kept
        if self._gives_positions:
            given["position_ids"] = positions_BT
        output = self._lm(input_ids=ids_BT, use_cache=True, **given)
        cache.kept = getattr(output, self.kept_as)
        keep_watched(cache, output)
        return output.logits[:, -keep:].float()

    def log_probabilities(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        targets_BS: torch.Tensor,
    ) -> torch.Tensor:
        return log_probabilities_of(self.logits(ids_BT, positions_BT, mask, cache, targets_BS.shape[1]), targets_BS)

    def most_tokens(self, cache: Cache) -> int:
        return 1  # what has been read cannot be taken back, so nothing is guessed

    def next_logits(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, is_real: torch.Tensor | None, cache: Cache
    ) -> torch.Tensor:
        return self.logits(ids_BT, positions_BT, None, cache, ids_BT.shape[1])


class DecodingInTurn(Decoding):
    """Several contexts, one after the other: `Decoding` for models that read one text at a time.

    Args:
        decodings: of one context each.
    """

    def __init__(self, decodings: Sequence[Decoding]) -> None:
        self._decodings = decodings

    @property
    def completions(self) -> list[Completion]:
        return [completion for decoding in self._decodings for completion in decoding.completions]

    def __iter__(self) -> Iterator[list[str]]:
        for row, decoding in enumerate(self._decodings):
            for (piece,) in decoding:
                yield [piece if number == row else "" for number in range(len(self._decodings))]
