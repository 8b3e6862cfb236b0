"""Ids: who has which. Documents of an index keep theirs; among files on their way into it, the first one has an id."""

from collections.abc import Mapping
from typing import NamedTuple

import xxhash

from gritrag.records import Document

__all__ = ["Claim", "FreeIds", "Ids", "claim_of"]


class Claim(NamedTuple):
    """An id, and a hash of the content that it is claimed for, the same in every process."""

    id: str
    content: str


def claim_of(document: Document) -> Claim:
    """What a document claims."""
    content = repr((document.text, document.title, dict(document.metadata)))
    return Claim(document.id, xxhash.xxh3_128_hexdigest(content.encode("utf-8", "surrogatepass")))


class Ids:
    """Ids that are taken.

    Args:
        stored: for each id in the index the root of its document, empty for one that came from no file.
    """

    def __init__(self, stored: Mapping[str, str] | None = None) -> None:
        self._stored = stored or {}
        self._claims: dict[str, tuple[str, str]] = {}

    def take(self, claim: Claim, root: str, file: str) -> None:
        """Take an id for a document of a file below a root.

        Raises:
            ValueError: it is the id of a document in the index from elsewhere, or of another one that came before.
        """
        if (owner := self._stored.get(claim.id, root)) != root:
            where = f"from {owner}" if owner else "that came from no file"
            raise ValueError(f"its id {claim.id!r} is that of a document in this index {where}; give each its own id")
        content, other = self._claims.setdefault(claim.id, (claim.content, file))
        if content != claim.content:
            raise ValueError(f"its id {claim.id!r} is that of an earlier document, in {other}; give each its own id")


class FreeIds(Ids):
    """Everyone may have any id: for a process that reads some of the files, where another one sees all of them."""

    def take(self, claim: Claim, root: str, file: str) -> None:
        """Allow it."""
