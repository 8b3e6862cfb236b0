"""Output: what one row has been given so far, as tokens and as text, and why it ended."""

from collections.abc import Collection, Sequence
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.model.text import TextStream

FinishReason = Literal["stop", "length"]


class Output:
    """Grows by tokens until it ends.

    Args:
        tokenizer: of the model.
        stop: strings that end a text before the first of them.
        ends: tokens that end it; see `ending_ids`.

    Attributes:
        token_ids: all tokens, that which ended it included.
        finish_reason: None as long as it goes on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], ends: Collection[int]) -> None:
        self._stream, self._ends = TextStream(tokenizer, stop), ends
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """All that is certain, without the end token and the stop string."""
        return self._stream.text

    def push(self, token: int) -> str:
        """Take a token; the text that became certain with it."""
        self.token_ids.append(token)
        if token in self._ends:
            self.finish_reason = "stop"
            return self._stream.flush()
        piece = self._stream.push(token)
        if self._stream.is_stopped:
            self.finish_reason = "stop"
        return piece

    def end(self) -> str:
        """No more tokens come; the text that was held back. Nothing where it has ended."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = "length"
        return self._stream.flush()


def ending_ids(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> set[int]:
    """Every token that ends a text: end tokens of the model, and control tokens among the stop strings."""
    return end_token_ids(lm, tokenizer) | stop_token_ids(tokenizer, stop)


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
