"""TextStream: tokens of one row in, text out as soon as it is certain."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

INCOMPLETE = "\ufffd"
BYTE = re.compile("<0x([0-9A-F]{2})>")
"""A token of SentencePiece that stands for one byte."""
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
"""Of the characters of which byte-level tokenizers, such as GPT-2's, make their tokens."""


class TextStream:
    """Text of one row, piece by piece.

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


def token_bytes(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bytes | None:
    """The UTF-8 bytes that a token stands for, which may be a part of a character; None where nobody can tell."""
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    if INCOMPLETE not in text:
        return text.encode()
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    if byte := BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return bytes(BYTES[character] for character in token) if set(token) <= BYTES.keys() else None
