"""Entries: what the catalog holds of one document and of one state file, and how it is written.

`T` tokens, `D` length of a vector.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash

from gritrag.records import Document

__all__ = ["Entry", "StateRow", "checksum", "metadata_json", "same_metadata"]


class StateRow(NamedTuple):
    """What the catalog knows about one state file: size, xxh3-128, codec, tokens, and how useful it has been.

    `uses` is the number of requests for it, of which each halves every so many later ones, as it was at request `used`.
    """

    key: str
    bytes: int
    xxh3: str
    codec: str
    tokens: int
    uses: float = 0.0
    used: int = 0


class Entry(NamedTuple):
    """One document as the catalog holds it. `token_ids` int32 `[T]`, `vector` float32 `[D]`."""

    document: Document
    token_ids: np.ndarray
    vector: np.ndarray
    state_key: str

    def values(self) -> tuple[Any, ...]:
        """In the order of `COLUMNS`."""
        document = self.document
        return (
            document.id,
            document.title,
            document.text,
            metadata_json(document),
            np.ascontiguousarray(self.token_ids, np.int32).tobytes(),
            np.ascontiguousarray(self.vector, np.float32).tobytes(),
            self.state_key,
        )


def metadata_json(document: Document) -> str:
    """Metadata as it is stored. Raises TypeError or ValueError where it is not JSON (NaN is not)."""
    return json.dumps(dict(document.metadata), ensure_ascii=False, allow_nan=False)


def same_metadata(one: str, other: str) -> bool:
    """Whether two JSON texts say the same; the order of names does not count, and 1, 1.0 and true are three things."""
    return one == other or _sorted(one) == _sorted(other)


def _sorted(metadata: str) -> str:
    return json.dumps(json.loads(metadata), sort_keys=True)


def checksum(values: Sequence[Any]) -> str:
    """xxh3-64 over a row: neither SQLite nor FAISS notices a flipped bit inside a value."""
    digest = xxhash.xxh3_64()
    for value in values:
        data = value.encode() if isinstance(value, str) else value
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
