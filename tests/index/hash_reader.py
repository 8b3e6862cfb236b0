"""A reader made of hashes: words are tokens, vectors and states are random numbers that the tokens decide."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gritrag.index.storage.states import DocumentState, Reading
from gritrag.records import Document, Fingerprint, as_document

LAYERS, HEADS, HEAD_DIM = 2, 3, 4


def word_ids(text: str) -> list[int]:
    return [zlib.crc32(word.encode()) % 50_000 for word in text.split()]


class HashReader:
    """Fulfils `protocol.Reader`; counts the documents it has read, and can be told to fail."""

    def __init__(
        self,
        dim: int = 8,
        max_document_tokens: int = 64,
        shape: tuple[int, int, int] = (LAYERS, HEADS, HEAD_DIM),
        **parts: str,
    ) -> None:
        self.dim = dim
        self.shape = shape
        self.max_document_tokens = max_document_tokens
        self.state_elements_per_token = 2 * math.prod(shape)
        self.fingerprint = Fingerprint({"weights": "w0", "tokenizer": "words", "reading": "causal"} | parts)
        self.loaded_as: Mapping[str, Any] = {}
        self.documents_read = 0

    def document_token_ids(self, document: str | Document) -> list[int]:
        return [1, *word_ids(as_document(document).content)]

    def encode_query(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        return np.stack([self._vector(word_ids(f"{instruction or ''} {text}")) for text in texts])

    def encode_document(self, texts: Sequence[str | Document], *, show_progress_bar: bool = False) -> np.ndarray:
        self.documents_read += len(texts)
        return np.stack([self._vector(self.document_token_ids(text)[1:]) for text in texts])

    def read_documents(self, texts: Sequence[str | Document], *, show_progress_bar: bool = False) -> list[Reading]:
        vectors = self.encode_document(texts)
        return [
            Reading(vector, self.state(self.document_token_ids(text)))
            for vector, text in zip(vectors, texts, strict=True)
        ]

    def state(self, token_ids: Sequence[int]) -> DocumentState:
        random = torch.Generator().manual_seed(zlib.crc32(np.array(token_ids).tobytes()))
        layers, heads, head_dim = self.shape
        keys, values = torch.randn(2, layers, heads, len(token_ids), head_dim, generator=random)
        return DocumentState(keys, values, torch.tensor(token_ids), self.fingerprint.parts["reading"])

    def _vector(self, token_ids: Sequence[int]) -> np.ndarray:
        """The normalised sum of one random direction for each word, so that shared words mean similar texts."""
        total = sum(np.random.default_rng(token).standard_normal(self.dim) for token in token_ids)
        return np.asarray(total / np.linalg.norm(total), np.float32)
