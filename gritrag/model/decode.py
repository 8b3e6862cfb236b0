"""From a placed context to text, token by token: greedy or sampled, stop strings cut, one row or several.

Shape letters: `B` batch, `V` vocabulary, `S` positions that are chosen for in one forward, `D` hidden.
"""

from collections.abc import Iterator, Sequence
from operator import add
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.model.answerability import Refusal
from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context
from gritrag.model.inputs import Inputs, inputs
from gritrag.model.lifting import Lifter
from gritrag.model.lookup import Lookup
from gritrag.model.module_forward import Forward
from gritrag.model.output import FinishReason, Output, ending_ids
from gritrag.model.sampling import Sampler, Sampling
from gritrag.model.watched import Watched


class Completion(NamedTuple):
    """What was generated: `token_ids` hold the end token where there was one, `text` never does. `unanswerable` is what
    its `Refusal` found; None where there was none. `complements` are numbers among the documents of its context of
    those that the question needs beside the best one."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    unanswerable: float | None = None
    complements: tuple[int, ...] = ()


class Decoding:
    """One run of decoding: iterate over it for the new text of every row per forward, then read `completions`.

    What is left to read of several contexts is padded on the left; positions count real tokens only.

    Args:
        forward: of the causal model.
        lm: the causal model, for its end tokens.
        tokenizer: its tokenizer.
        cache: one row per context, filled by `placing.place`. Afterwards it holds all tokens but the last chosen.
        contexts: each ends with tokens that are still to be read.
        sampling: how to choose and when to stop.
        refusals: of each context: when to say that its documents do not hold the answer; None for never, or for all.
        lifter: of the model, for contexts that seek complements; None if it has none.
    """

    def __init__(
        self,
        forward: Forward,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cache: PlacedCache,
        contexts: Sequence[Context],
        sampling: Sampling,
        refusals: Sequence[Refusal | None] | None = None,
        lifter: Lifter | None = None,
    ) -> None:
        assert all(context.parts[-1].state is None for context in contexts), "nothing to read"
        self._forward, self._cache, self._sampling, self._contexts = forward, cache, sampling, contexts
        self._device = lm.device
        ends = ending_ids(lm, tokenizer, sampling.stop)
        self._outputs = [Output(tokenizer, sampling.stop, ends) for _ in contexts]
        self._refusals = refusals or [None] * len(contexts)
        self._unanswerable: list[float | None] = [None] * len(contexts)
        self._lifter = lifter
        self._complements: list[tuple[int, ...]] = [()] * len(contexts)
        self._sampler = Sampler(sampling, len(contexts), lm.device)
        wanted = forward.guesses_freely if sampling.lookup is None else sampling.lookup
        can_guess = wanted and self._sampler.is_greedy and len(contexts) == 1
        words = lm.config.get_text_config().vocab_size
        self._lookup = Lookup(contexts[0].token_ids, words) if can_guess else None

    @property
    def completions(self) -> list[Completion]:
        """Of each row, as far as it has come."""
        found = zip(self._outputs, self._unanswerable, self._complements, strict=True)
        return [Completion(o.text, o.token_ids, o.finish_reason or "length", p, c) for o, p, c in found]

    @property
    def _is_done(self) -> bool:
        return all(output.finish_reason is not None for output in self._outputs)

    def __iter__(self) -> Iterator[list[str]]:
        left = self._sampling.max_new_tokens
        guess: list[int] = []
        with torch.inference_mode():  # not around a yield: the mode would leak into the caller
            given = inputs(self._contexts, self._device)
            logits_BSV, positions, is_real = self._read(given), given.positions, given.is_real
            told = self._refuse(logits_BSV[:, -1])
        if self._is_done:
            yield told
            return
        while True:
            with torch.inference_mode():
                chosen = self._sampler.choose(logits_BSV)
            chosen = self._kept(guess, chosen)
            new, counts = zip(*map(self._take, range(len(chosen)), chosen), strict=True)
            pieces, told = list(map(add, told, new)), [""] * len(told)
            taken = max(counts)
            self._cache.cut(self._cache.length - 1 - len(guess) + taken)
            left -= taken
            if left == 0 or self._is_done:
                yield [piece + output.end() for piece, output in zip(pieces, self._outputs, strict=True)]
                return
            yield pieces
            with torch.inference_mode():
                following = positions[:, -1:] - len(guess) + taken
                most = min(left, self._forward.most_tokens(self._cache)) - 1
                guess = [] if self._lookup is None else self._lookup.guess(most)
                ids = torch.tensor([[tokens[-1], *guess] for tokens in chosen], device=self._device)
                positions = following + torch.arange(1 + len(guess), device=self._device)
                if is_real is not None:
                    is_real = torch.cat([is_real, is_real.new_ones(len(is_real), 1)], dim=1)
                # what comes now sees all that was there
                logits_BSV = self._forward.next_logits(ids, positions, is_real, self._cache)

    def _read(self, given: Inputs) -> torch.Tensor:
        """Logits behind what is left to read, which is read once more where documents are lifted meanwhile."""
        lifter = self._lifter if any(map(Lifter.is_due, self._contexts)) else None
        length = self._cache.length
        self._cache.watched = watched_for(self._refusals, lifter, self._cache)
        logits_BSV = self._forward.logits(given.ids, given.positions, given.mask, self._cache)
        if lifter is not None:
            self._complements = lifter.lift(self._cache, self._contexts, self._cache.watched)
            if any(self._complements):
                self._cache.cut(length)
                self._cache.watched = watched_for(self._refusals, None, self._cache)
                logits_BSV = self._forward.logits(given.ids, given.positions, given.mask, self._cache)
        return logits_BSV

    def _refuse(self, logits_BV: torch.Tensor) -> list[str]:
        """End the rows whose documents hardly hold the answer, saying so; what was said of each row."""
        pieces = [""] * len(self._refusals)
        hidden_BD = self._cache.end_watch()
        for row, refusal in enumerate(self._refusals):
            if refusal is not None:
                hidden_D = None if hidden_BD is None else hidden_BD[row]
                self._unanswerable[row], ids = refusal.judge(logits_BV[row], hidden_D, self._sampling.max_new_tokens)
                pieces[row] = self._take(row, ids)[0]
                if ids:
                    pieces[row] += self._outputs[row].end()
        return pieces

    def _kept(self, guess: list[int], chosen: list[list[int]]) -> list[list[int]]:
        """Of what follows each guessed token, that which follows right ones."""
        if self._lookup is None or not guess:
            return chosen
        return [chosen[0][: self._lookup.judge(guess, chosen[0]) + 1]]

    def _take(self, row: int, tokens: Sequence[int]) -> tuple[str, int]:
        """Book tokens of one row; their text and how many they were. Rows that have ended take no more."""
        output, pieces = self._outputs[row], list[str]()
        for token in tokens:
            if output.finish_reason is not None:
                break
            pieces.append(output.push(token))
        if self._lookup is not None:
            self._lookup.extend(tokens[: len(pieces)])
        return "".join(pieces), len(pieces)


def watched_for(refusals: Sequence[Refusal | None], lifter: Lifter | None, cache: PlacedCache) -> Watched | None:
    """What forwards that read questions behind what is in a cache are to keep; None for nothing."""
    layers = next((each.layers for each in refusals if each is not None), ())
    all_of = () if lifter is None else lifter.layers
    return Watched(layers, all_of, cache.length) if layers or all_of else None
