"""Memory: states of conversations and of documents that came with requests, kept for the next turn of the same tenant.

Nothing here is ever found by another tenant: entries are named by its salt, which nobody knows but the server.

Shape letters: `L` layers, `H` key/value heads, `T` tokens, `K` head dim.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gritrag.model.rotation import Rotation
from gritrag.model.state import DocumentState, Reading


@dataclass(frozen=True)
class ConversationState(DocumentState):
    """Keys and values as a cache held them, rotated to positions 0, 1, ...: they can stand nowhere else.

    A turn that goes on from them computes from the very numbers that the turn before computed.
    """

    held_bytes: int = 0

    def __getitem__(self, tokens: slice) -> "ConversationState":
        assert tokens.start in (None, 0), "a conversation starts at its start"
        return ConversationState(
            self.keys[:, :, tokens],
            self.values[:, :, tokens],
            self.token_ids[tokens],
            self.reading,
            self.is_lossless,
            self.held_bytes,
        )

    def write(self, keys_LHTK: torch.Tensor, values_LHTK: torch.Tensor, rotation: Rotation | None, start: int) -> None:
        assert start == 0, "a conversation starts at position 0"
        keys_LHTK[:] = self.keys
        values_LHTK[:] = self.values


class Memory:
    """The latest conversations and documents of all tenants, as many as fit. Safe to use from several threads.

    Args:
        most_bytes: of keys and values.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._lock = threading.Lock()
        self._conversations: OrderedDict[int, tuple[bytes, np.ndarray, ConversationState]] = OrderedDict()
        self._documents: OrderedDict[bytes, Reading] = OrderedDict()
        self._next = 0
        self.bytes = 0

    def conversation(self, salt: bytes, token_ids: Sequence[int]) -> ConversationState | None:
        """What is longest among the beginnings of these tokens; None if nothing is."""
        ids_T = np.asarray(token_ids, np.int64)
        best, length = None, 0
        with self._lock:
            for number, (owner, known_T, _) in self._conversations.items():
                if owner == salt and (common := _common(known_T, ids_T)) > length:
                    best, length = number, common
            if best is None:
                return None
            self._conversations.move_to_end(best)
            return self._conversations[best][2][:length]

    def keep_conversation(self, salt: bytes, state: ConversationState) -> None:
        """Remember a conversation, in the place of those that it goes on from."""
        ids_T = state.token_ids.numpy()
        with self._lock:
            for number, (owner, known_T, old) in list(self._conversations.items()):
                if owner == salt and _common(known_T, ids_T) == len(known_T):
                    del self._conversations[number]
                    self.bytes -= old.held_bytes
            self._conversations[self._next] = (salt, ids_T, state)
            self._next += 1
            self.bytes += state.held_bytes
            self._shrink()

    def document(self, salt: bytes, token_ids: Sequence[int]) -> Reading | None:
        """The reading of a document that this tenant has sent before."""
        with self._lock:
            key = _address(salt, token_ids)
            if key in self._documents:
                self._documents.move_to_end(key)
            return self._documents.get(key)

    def keep_document(self, salt: bytes, token_ids: Sequence[int], reading: Reading) -> None:
        with self._lock:
            key = _address(salt, token_ids)
            if key not in self._documents:
                self._documents[key] = reading
                self.bytes += reading.state.nbytes
                self._shrink()

    def _shrink(self) -> None:
        """Forget what was not asked for longest, of whichever kind there is more."""
        while self.bytes > self._most and (self._conversations or self._documents):
            if len(self._conversations) >= len(self._documents):
                _, (_, _, state) = self._conversations.popitem(last=False)
                self.bytes -= state.held_bytes
            else:
                _, reading = self._documents.popitem(last=False)
                self.bytes -= reading.state.nbytes


def _common(one_T: np.ndarray, other_T: np.ndarray) -> int:
    """Tokens with which both begin."""
    length = min(len(one_T), len(other_T))
    differing = np.flatnonzero(one_T[:length] != other_T[:length])
    return int(differing[0]) if len(differing) else length


def _address(salt: bytes, token_ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(token_ids, "<i4").tobytes(), key=salt, digest_size=32).digest()
