"""From a placed context to text, token by token: greedy or sampled, stop strings cut, one row or several.

Shape letters: `B` batch, `T` tokens, `V` vocabulary, `S` positions that are chosen for in one forward.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from operator import add, index
from typing import Any, Literal, NamedTuple

import torch
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gritrag.model.answerability import Refusal
from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context
from gritrag.model.inputs import Inputs, inputs
from gritrag.model.lifting import Lifter
from gritrag.model.lookup import Lookup
from gritrag.model.module_forward import Forward
from gritrag.model.text import TextStream
from gritrag.model.watched import Watched

FinishReason = Literal["stop", "length"]

LEAST_TEMPERATURE = 1e-4
"""Below it the likeliest token is all that is left to choose."""


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens and when to stop.

    Args:
        max_new_tokens: at most this many.
        temperature: 0 is greedy, and so is what is below `LEAST_TEMPERATURE`: logits divided by it would overflow.
        top_k: choose among the k likeliest; 0 for all.
        top_p: choose among the likeliest that together have this probability.
        repetition_penalty: over 1 makes generated tokens less likely again; at least 0.01.
        stop: the text ends before the first of these strings.
        seed: of the sampler, in 64 bits; None draws another each time.
        lookup: guess several tokens at a time from the context, and keep those that would have been chosen anyway; see
            `Lookup`. Only for one greedy text without penalty. None is True where guesses change no token: in float32,
            and in fewer bits where `gritrag doctor` says that our own step is used.

    Raises:
        ValueError: a value of another kind, or out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    lookup: bool | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", *(() if self.seed is None else ("seed",))):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not isinstance(value := getattr(self, name), Real):
                raise ValueError(f"{name} must be a number, not {value!r}")
        if not all(isinstance(each, str) for each in self.stop):
            raise ValueError(f"stop must be one string or a list of strings, not {self.stop!r}")
        rules = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "temperature must be at least 0": self.temperature >= 0,
            "top_k must be at least 0": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "repetition_penalty must be at least 0.01": self.repetition_penalty >= 0.01,
            "seed must be a whole number of 64 bits": self.seed is None or -(2**63) <= self.seed < 2**64,
            "stop strings must not be empty": all(self.stop),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"{rule}; got {self}")
        if self.temperature < LEAST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Sampling":
        """From keyword options, of which None means that it is not given; one stop string may stand for a list of one.

        Raises:
            ValueError: an option that there is not, or a value of another kind, or out of its range.
        """
        unknown = sorted(set(options) - {field.name for field in fields(cls)})
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"no option {', '.join(unknown)}; there are: {known}")
        given = {name: value for name, value in options.items() if value is not None}
        stop = given.get("stop", ())
        return cls(**{**given, "stop": tuple(stop) if isinstance(stop, list | tuple | set) else (stop,)})

    def processors(self) -> LogitsProcessorList:
        processors = LogitsProcessorList()
        if self.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature not in (0, 1):
            processors.append(TemperatureLogitsWarper(self.temperature))
        if self.temperature and self.top_k:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.temperature and self.top_p < 1:
            processors.append(TopPLogitsWarper(self.top_p))
        return processors


def _whole(name: str, value: Any) -> int:
    """NumPy's whole numbers are some too."""
    try:
        return index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


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
        self._processors = sampling.processors()
        self._ends = end_token_ids(lm, tokenizer) | stop_token_ids(tokenizer, sampling.stop)
        self._texts = [TextStream(tokenizer, sampling.stop) for _ in contexts]
        self._generated: list[list[int]] = [[] for _ in contexts]
        self._reasons: list[FinishReason | None] = [None] * len(contexts)
        self._refusals = refusals or [None] * len(contexts)
        self._unanswerable: list[float | None] = [None] * len(contexts)
        self._lifter = lifter
        self._complements: list[tuple[int, ...]] = [()] * len(contexts)
        # what every row was given, those that have ended included
        self._chosen_BT = torch.zeros(len(contexts), 0, dtype=torch.long, device=lm.device)
        self._generator = torch.Generator(device=lm.device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._is_greedy = sampling.temperature == 0 and not self._processors
        wanted = forward.guesses_freely if sampling.lookup is None else sampling.lookup
        can_guess = wanted and self._is_greedy and len(contexts) == 1
        words = lm.config.get_text_config().vocab_size
        self._lookup = Lookup(contexts[0].token_ids, words) if can_guess else None

    @property
    def completions(self) -> list[Completion]:
        found = zip(self._texts, self._generated, self._reasons, self._unanswerable, self._complements, strict=True)
        return [Completion(text.text, ids, reason or "length", p, c) for text, ids, reason, p, c in found]

    def __iter__(self) -> Iterator[list[str]]:
        left = self._sampling.max_new_tokens
        guess: list[int] = []
        with torch.inference_mode():  # not around a yield: the mode would leak into the caller
            given = inputs(self._contexts, self._device)
            logits_BSV, positions, is_real = self._read(given), given.positions, given.is_real
            told = self._refuse(logits_BSV[:, -1])
        if all(self._reasons):
            yield told
            return
        while True:
            with torch.inference_mode():
                chosen = self._choose(logits_BSV)
            chosen = self._kept(guess, chosen)
            new, counts = zip(*map(self._take, range(len(chosen)), chosen), strict=True)
            pieces, told = list(map(add, told, new)), [""] * len(told)
            taken = max(counts)
            self._cache.cut(self._cache.length - 1 - len(guess) + taken)
            left -= taken
            if left == 0 or all(self._reasons):
                yield [piece + text.flush() for piece, text in zip(pieces, self._texts, strict=True)]
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
                if ids and self._reasons[row] is None:
                    self._reasons[row] = "length"
                    pieces[row] += self._texts[row].flush()
        return pieces

    def _choose(self, logits_BSV: torch.Tensor) -> list[list[int]]:
        """`S` tokens for each row: what follows each of the positions."""
        if self._is_greedy:
            return logits_BSV.argmax(-1).tolist()
        logits_BV = self._processors(self._chosen_BT, logits_BSV[:, -1])  # type: ignore[arg-type]  # wants a LongTensor
        if self._sampling.temperature == 0:
            chosen_B1 = logits_BV.argmax(-1, keepdim=True)
        else:
            chosen_B1 = torch.multinomial(logits_BV.softmax(-1), 1, generator=self._generator)
        self._chosen_BT = torch.cat([self._chosen_BT, chosen_B1], dim=1)
        return chosen_B1.tolist()

    def _kept(self, guess: list[int], chosen: list[list[int]]) -> list[list[int]]:
        """Of what follows each guessed token, that which follows right ones."""
        if self._lookup is None or not guess:
            return chosen
        pairs = enumerate(zip(guess, chosen[0], strict=False))
        right = next((number for number, (guessed, token) in pairs if guessed != token), len(guess))
        self._lookup.learn(len(guess), right)
        return [chosen[0][: right + 1]]

    def _take(self, row: int, tokens: Sequence[int]) -> tuple[str, int]:
        """Book tokens of one row; their text and how many they were. Rows that have ended take no more."""
        pieces: list[str] = []
        for token in tokens:
            if self._reasons[row]:
                break
            self._generated[row].append(token)
            if token in self._ends:
                self._reasons[row] = "stop"
                pieces.append(self._texts[row].flush())
            else:
                pieces.append(self._texts[row].push(token))
                if self._texts[row].is_stopped:
                    self._reasons[row] = "stop"
        if self._lookup is not None:
            self._lookup.extend(tokens[: len(pieces)])
        return "".join(pieces), len(pieces)


def watched_for(refusals: Sequence[Refusal | None], lifter: Lifter | None, cache: PlacedCache) -> Watched | None:
    """What forwards that read questions behind what is in a cache are to keep; None for nothing."""
    layers = next((each.layers for each in refusals if each is not None), ())
    all_of = () if lifter is None else lifter.layers
    return Watched(layers, all_of, cache.length) if layers or all_of else None


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> set[int]:
    """Control tokens among stop strings: they are left out of the text, so only their ids can be looked for."""
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    # not by way of the vocabulary: building it takes longer than reading a question
    named = {tokenizer.convert_ids_to_tokens(i): i for i in special}
    return {named[text] for text in stop if text in named}


def end_token_ids(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a text: what the generation config, the config and the tokenizer name."""
    named = [tokenizer.eos_token_id, getattr(lm.config.get_text_config(), "eos_token_id", None)]
    if lm.generation_config is not None:
        named.append(lm.generation_config.eos_token_id)
    flat = [i for item in named for i in (item if isinstance(item, list) else [item])]
    return {i for i in flat if i is not None}
