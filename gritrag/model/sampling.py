"""Sampling: how the tokens of an answer are chosen, and when it stops.

Shape letters: `B` rows, `T` tokens, `S` positions that are chosen for in one forward, `V` vocabulary.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gritrag.arguments import real, whole

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
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        for name in ("temperature", "top_p", "repetition_penalty"):
            object.__setattr__(self, name, real(name, getattr(self, name)))
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

    def stopping_at(self, strings: Iterable[str]) -> "Sampling":
        """The same, and these strings end a text too."""
        return replace(self, stop=(*self.stop, *strings))

    def processors(self) -> LogitsProcessorList:
        """Of transformers, in the order in which they change logits."""
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


class Sampler:
    """Chooses the tokens of some texts that are written together.

    Args:
        sampling: how.
        rows: `B`, how many texts they are.
        device: of the logits.
    """

    def __init__(self, sampling: Sampling, rows: int, device: torch.device) -> None:
        self._temperature, self._processors = sampling.temperature, sampling.processors()
        self._generator = torch.Generator(device=device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        # what every row was given, those that have ended included
        self._chosen_BT = torch.zeros(rows, 0, dtype=torch.long, device=device)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is chosen, whatever came before it."""
        return self._temperature == 0 and not self._processors

    def choose(self, logits_BSV: torch.Tensor) -> list[list[int]]:
        """`S` tokens for each row: what follows each of the positions. Where it is not greedy, one: what follows the
        last of them."""
        if self.is_greedy:
            return logits_BSV.argmax(-1).tolist()
        logits_BV = self._processors(self._chosen_BT, logits_BSV[:, -1])  # type: ignore[arg-type]  # wants a LongTensor
        if self._temperature == 0:
            chosen_B1 = logits_BV.argmax(-1, keepdim=True)
        else:
            chosen_B1 = torch.multinomial(logits_BV.softmax(-1), 1, generator=self._generator)
        self._chosen_BT = torch.cat([self._chosen_BT, chosen_B1], dim=1)
        return chosen_B1.tolist()
