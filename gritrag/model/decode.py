"""From a placed context to text, token by token: greedy or sampled, stop strings cut, one row or several.

Shape letters: `B` batch, `T` tokens, `V` vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
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

from gritrag.model.context import Context, additive, inputs
from gritrag.model.state import DocumentState, PlacedCache

FinishReason = Literal["stop", "length"]

INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens and when to stop.

    Args:
        max_new_tokens: at most this many.
        temperature: 0 is greedy.
        top_k: choose among the k likeliest; 0 for all.
        top_p: choose among the likeliest that together have this probability.
        repetition_penalty: over 1 makes generated tokens less likely again.
        stop: the text ends before the first of these strings.
        seed: of the sampler; None draws another each time.

    Raises:
        ValueError: a value out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "temperature must be at least 0": self.temperature >= 0,
            "top_k must be at least 0": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "repetition_penalty must be above 0": self.repetition_penalty > 0,
            "stop strings must not be empty": all(self.stop),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"{rule}; got {self}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Sampling":
        """From keyword options; one stop string may stand for a list of one.

        Raises:
            ValueError: an option that there is not, or a value out of its range.
        """
        unknown = sorted(set(options) - {field.name for field in fields(cls)})
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"no option {', '.join(unknown)}; there are: {known}")
        stop = options.get("stop") or ()
        return cls(**{**options, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})

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


class Completion(NamedTuple):
    """What was generated: `token_ids` hold the end token where there was one, `text` never does."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason


class TextStream:
    """Tokens of one row in, text out, as soon as it is certain.

    Held back are bytes of an unfinished character and the beginning of what may become a stop string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._start = self._read = 0  # tokens before `_start` are text already, those before `_read` have been decoded
        self._held = ""
        self.text = ""
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Text that became certain with this token; nothing once a stop string was seen."""
        if self.is_stopped:
            return ""
        self._ids.append(token_id)
        new = self._undecoded()
        if new.endswith(INCOMPLETE):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(new)

    def flush(self) -> str:
        """What was held back, when no more tokens come."""
        if self.is_stopped:
            return ""
        piece = self._release(self._undecoded()) + self._held
        self._start = self._read = len(self._ids)
        self.text += self._held
        self._held = ""
        return piece

    def _undecoded(self) -> str:
        """Text of the tokens since the last push; the tokens before them give the context that decoders need."""
        before = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            piece, self._held = text[: min(found)], ""
        else:
            held = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
            piece, self._held = text[: len(text) - held], text[len(text) - held :]
        self.text += piece
        return piece


class Decoding:
    """One run of decoding: iterate over it for the new text of every row per step, then read `completions`.

    What is left to read of several contexts is padded on the left; positions count real tokens only.

    Args:
        lm: the causal model.
        tokenizer: its tokenizer.
        cache: one row per context, filled by `context.place`.
        contexts: each ends with tokens that are still to be read.
        sampling: how to choose and when to stop.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cache: PlacedCache,
        contexts: Sequence[Context],
        sampling: Sampling,
    ) -> None:
        assert not any(isinstance(context.pieces[-1], DocumentState) for context in contexts), "nothing to read"
        self._lm, self._cache, self._sampling, self._contexts = lm, cache, sampling, contexts
        self._processors = sampling.processors()
        self._ends = end_token_ids(lm, tokenizer) | stop_token_ids(tokenizer, sampling.stop)
        self._texts = [TextStream(tokenizer, sampling.stop) for _ in contexts]
        self._generated: list[list[int]] = [[] for _ in contexts]
        self._reasons: list[FinishReason | None] = [None] * len(contexts)
        # what every row was given, those that have ended included
        self._chosen_BT = torch.zeros(len(contexts), 0, dtype=torch.long, device=lm.device)
        self._generator = torch.Generator(device=lm.device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def completions(self) -> list[Completion]:
        return [
            Completion(text.text, ids, reason or "length")
            for text, ids, reason in zip(self._texts, self._generated, self._reasons, strict=True)
        ]

    def __iter__(self) -> Iterator[list[str]]:
        with torch.inference_mode():
            ids, positions, mask, is_real = inputs(self._contexts, self._lm.device)
            if self._lm.config.get_text_config()._attn_implementation == "eager":
                mask = additive(mask, self._lm.dtype)
        for step in range(self._sampling.max_new_tokens):
            with torch.inference_mode():  # not around the yield: the mode would leak into the caller
                chosen = self._choose(self._logits(ids, mask, positions)).tolist()
                if is_real is not None:
                    is_real = torch.cat([is_real, is_real.new_ones(len(is_real), 1)], dim=1)
                mask = is_real  # what comes now sees all that was there
                ids = torch.tensor(chosen, device=ids.device)[:, None]
                positions = positions[:, -1:] + 1
            pieces = [self._take(row, token) for row, token in enumerate(chosen)]
            if step + 1 == self._sampling.max_new_tokens or all(self._reasons):
                pieces = [piece + text.flush() for piece, text in zip(pieces, self._texts, strict=True)]
                yield pieces
                return
            yield pieces

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> torch.Tensor:
        """float32 `[B, V]` of the last position."""
        output = self._lm(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _choose(self, logits_BV: torch.Tensor) -> torch.Tensor:
        logits_BV = self._processors(self._chosen_BT, logits_BV)  # type: ignore[arg-type]  # wants a LongTensor
        if self._sampling.temperature == 0:
            chosen_B = logits_BV.argmax(-1)
        else:
            chosen_B = torch.multinomial(logits_BV.softmax(-1), 1, generator=self._generator)[:, 0]
        self._chosen_BT = torch.cat([self._chosen_BT, chosen_B[:, None]], dim=1)
        return chosen_B

    def _take(self, row: int, token: int) -> str:
        """Book a token of one row and return its text; rows that have ended take no more."""
        if self._reasons[row]:
            return ""
        self._generated[row].append(token)
        if token in self._ends:
            self._reasons[row] = "stop"
            return self._texts[row].flush()
        piece = self._texts[row].push(token)
        if self._texts[row].is_stopped:
            self._reasons[row] = "stop"
        return piece


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> set[int]:
    """Control tokens among stop strings: they are left out of the text, so only their ids can be looked for."""
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    special |= {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    return {vocabulary[text] for text in stop if vocabulary.get(text) in special}


def end_token_ids(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a text: what the generation config, the config and the tokenizer name."""
    named = [tokenizer.eos_token_id, lm.config.get_text_config().eos_token_id]
    if lm.generation_config is not None:
        named.append(lm.generation_config.eos_token_id)
    flat = [i for item in named for i in (item if isinstance(item, list) else [item])]
    return {i for i in flat if i is not None}
