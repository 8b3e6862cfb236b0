"""Sources: documents that are stored as chunks, called by the id of the whole.

A document of id ``a`` that is longer than a chunk is stored as ``a#0``, ``a#1`` ..., each with ``a`` as its ``source``
(see `gritrag.tokens.chunk_documents`). Who replaces or deletes ``a`` means all of them.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from gritrag.index.build import AddReport
from gritrag.index.index import Index
from gritrag.records import Document

__all__ = ["delete_whole", "put_whole", "stored_as", "whole_ids"]


def stored_as(index: Index, ids: Iterable[str]) -> dict[str, list[str]]:
    """Ids under which documents are stored: their own, or those of their chunks. Unknown ones are left out."""
    wanted = dict.fromkeys(ids)
    with index.snapshot():
        found = {id: [id] for id in wanted if id in index}
        for chunk in index.ids({"source": {"$in": list(wanted)}}):
            whole, _, number = chunk.rpartition("#")
            if number.isdecimal() and whole in wanted:  # others have metadata of that name too
                found.setdefault(whole, []).append(chunk)
    return found


def put_whole(
    index: Index,
    documents: Iterable[tuple[str, Sequence[Document]]],
    on_conflict: Literal["replace", "skip", "error"] = "replace",
) -> AddReport:
    """As `Index.add`, for documents that have been cut: of one that is replaced no old chunk is left, of one that is
    skipped no new one is added.

    Args:
        documents: the id and the chunks of each.
        on_conflict: as in `Index.add`.
    """
    cut = list(documents)
    kept: dict[str, set[str]] = {}
    for id, chunks in cut:
        kept.setdefault(id, set()).update(chunk.id for chunk in chunks)
    known = stored_as(index, kept)
    differing = {id for id, stored in known.items() if set(stored) != kept[id]}
    if differing and on_conflict == "error":
        raise ValueError(
            f"{len(differing)} ids already name other documents (first: {min(differing)!r}): give new ids, or add with "
            "on_conflict='replace' or 'skip'"
        )
    skipped = differing if on_conflict == "skip" else set[str]()
    report = index.add([chunk for id, chunks in cut if id not in skipped for chunk in chunks], on_conflict=on_conflict)
    if on_conflict == "replace" and differing:
        index.delete(ids=[stored for id in differing for stored in known[id] if stored not in kept[id]])
    return report._replace(skipped=report.skipped + sum(len(chunks) for id, chunks in cut if id in skipped))


def delete_whole(index: Index, ids: Iterable[str]) -> int:
    """As `Index.delete`, with all chunks of documents that were cut; how many documents and chunks were deleted."""
    return index.delete(ids=whole_ids(index, ids))


def whole_ids(index: Index, ids: Iterable[str]) -> list[str]:
    """These ids, with those of the chunks of documents that were cut."""
    listed = list(ids)
    return [*listed, *(stored for each in stored_as(index, listed).values() for stored in each)]
