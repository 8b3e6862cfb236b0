"""Ingestion: files -> chunks -> an index that holds just what the files say now."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gritrag import Document, GritModel, Index, chunk_documents
from gritrag.index.sources import FILE, list_sources, read_sources

DEFAULT_STATES = "bf16"
FILES_PER_DELETE = 1000  # SQLite binds a limited number of values


class Ingested(NamedTuple):
    """What became of the chunks: new, changed, unchanged; chunks deleted; documents that the index now holds."""

    added: int
    replaced: int
    skipped: int
    removed: int
    documents: int


def open_or_create(folder: Path, model: GritModel, states: str | None = None) -> Index:
    """The index in `folder`, to be written: made if there is none, with `states` as its codec or else bf16.

    Raises:
        ValueError: the index that is there stores its states in another way.
    """
    if not (folder / "manifest.json").exists():
        return Index.create(folder, model=model, states=states or DEFAULT_STATES)
    index = Index.open(folder, model=model)
    codec = index.stats()["codec"]
    if states not in (None, codec):
        index.close()
        raise ValueError(
            f"{folder} stores states as {codec!r}, not {states!r}: go on with it as it is, or use another folder"
        )
    return index


def read_chunks(
    paths: Sequence[Path], model: GritModel, max_tokens: int, overlap: int, say: Callable[[str], None]
) -> list[Document]:
    """Chunks of all files under `paths`. `say` is told what was left out.

    Raises:
        ValueError: there is no file to read, or one is broken; see `list_sources`, `read_source`, `chunk_documents`.
    """
    listing = list_sources(paths)
    for reason, count in Counter(skipped.reason for skipped in listing.skipped).most_common():
        first = next(skipped.path for skipped in listing.skipped if skipped.reason == reason)
        say(f"skipped {count} ({reason}): {first}{' and others' if count > 1 else ''}")
    if not listing.sources:
        raise ValueError(
            f"nothing to index in {', '.join(map(str, paths))}: no .txt, .md, .jsonl or .csv file with text"
        )
    return list(chunk_documents(read_sources(listing), model.count_tokens, max_tokens, overlap))


def ingest(index: Index, chunks: Sequence[Document]) -> Ingested:
    """Add the chunks of whole files; what earlier versions of these files gave, and they give no more, is deleted.

    Unchanged chunks are not read again, so a second call finishes what an interrupted one began.
    """
    report = index.add(chunks, show_progress_bar=True)
    gone = set(index) - {chunk.id for chunk in chunks}
    files = sorted({chunk.metadata[FILE] for chunk in chunks})
    removed = sum(
        index.delete(ids=gone, where={FILE: {"$in": files[start : start + FILES_PER_DELETE]}})
        for start in range(0, len(files), FILES_PER_DELETE)
    )
    return Ingested(*report, removed, len(index))
