"""Ingestion: files -> chunks -> an index that holds just what the files say now."""

import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gritrag import Document, GritModel, Index, chunk_documents
from gritrag.documents.sources import FILE, ROOT, Skipped, list_sources, read_source
from gritrag.index.protocol import Reader
from gritrag.progress import ProgressBar

DEFAULT_STATES = "bf16"


class Gathered(NamedTuple):
    """Chunks of the files that could be read; and files, or parts of them, that could not, with the reasons."""

    chunks: list[Document]
    skipped: list[Skipped]


class Ingested(NamedTuple):
    """What became of the chunks: new, changed, unchanged; chunks deleted; documents that the index now holds.

    And files, or parts of them, that could not be read.
    """

    added: int
    replaced: int
    skipped: int
    removed: int
    documents: int
    not_read: Sequence[Skipped] = ()


def is_index(folder: Path) -> bool:
    """Whether there is an index to be gone on with."""
    return (folder / "manifest.json").exists()


def model_of(index: Index) -> GritModel:
    """The model of an index that was opened by its path."""
    assert isinstance(index.model, GritModel), "no other model is loaded by a name"
    return index.model


def open_or_create(
    folder: Path,
    model: Reader,
    states: str | None = None,
    states_at: str | None = None,
    vectors_at: str | None = None,
) -> Index:
    """The index in `folder`, to be written: made if there is none, with `states` as its codec or else bf16.

    Raises:
        ValueError: the index that is there stores its states in another way, or at another place.
    """
    if not is_index(folder):
        codec = states or DEFAULT_STATES
        return Index.create(folder, model=model, states=codec, states_at=states_at, vectors_at=vectors_at)
    index = Index.open(folder, model=model, mode="rw")
    codec, place = (index.stats()[name] for name in ("codec", "states_at"))
    if states_at not in (None, place):
        index.close()
        raise ValueError(f"{folder} has its states {place or 'in its folder'}, not at {states_at}: use another folder")
    if states not in (None, codec):
        index.close()
        raise ValueError(
            f"{folder} stores states as {codec!r}, not {states!r}: go on with it as it is, or use another folder"
        )
    return index


def read_chunks(paths: Sequence[Path], model: GritModel, chunk_size: int, chunk_overlap: int) -> Gathered:
    """Chunks of all files under `paths`, and what was left out. A file that cannot be read never stops the others.

    Raises:
        ValueError: a path does not exist, two files have one name, or there is nothing that can be read.
    """
    listing = list_sources(paths)
    chunks: list[Document] = []
    skipped = listing.skipped
    for source in ProgressBar(listing.sources, desc="parse", unit="file", disable=None):
        losses: list[str] = []
        try:
            documents = read_source(source, losses.append)
            chunks += list(chunk_documents(documents, model.count_tokens, chunk_size, chunk_overlap))
        except ValueError as error:
            losses = [str(error).removeprefix(str(source.path)).lstrip(":, ")]
        skipped += [Skipped(source.path, loss) for loss in losses]
    if not chunks:
        lines = "".join(f"\n  {line}" for line in skipped_lines(skipped)) or ": the folder is empty"
        raise ValueError(f"nothing to index in {', '.join(map(str, paths))}{lines}")
    return Gathered(chunks, skipped)


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """One line per reason, the commonest first."""
    lines = []
    for reason, count in Counter(each.reason for each in skipped).most_common():
        first = next(each.path for each in skipped if each.reason == reason)
        lines.append(f"skipped {count} ({reason}): {first}{' and others' if count > 1 else ''}")
    return lines


def ingest(index: Index, chunks: Sequence[Document]) -> Ingested:
    """Add the chunks of whole files, as `read_chunks` gives them, and delete what their folders hold no more.

    Deleted are chunks that earlier versions of these files gave, and those of files below the same roots that are gone
    or empty now. A file that cannot be read now keeps what it gave before. Files that are there but were not asked for
    keep theirs, and so do documents that came from no file. Unchanged chunks are not read again, so a second call
    finishes what an interrupted one began.

    Raises:
        ValueError: an id of `chunks` names a document of another root, or of none; nothing has been stored then.
    """
    _refuse_other_roots(index, chunks)
    report = index.add(chunks, show_progress_bar=True)
    removed = index.delete(ids=_outdated(index, chunks))
    return Ingested(*report, removed, len(index))


def _refuse_other_roots(index: Index, chunks: Sequence[Document]) -> None:
    """Names are unique below one root only: a file of another root with the same name must not be replaced."""
    for chunk in chunks:
        if chunk.id not in index:
            continue
        stored = index[chunk.id]
        root, other = chunk.metadata[ROOT], stored.metadata.get(ROOT)
        if root != other:
            raise ValueError(
                f"{chunk.metadata[FILE]} in {root}: its id {chunk.id!r} is that of a document "
                f"{f'from {other}' if other else 'that came from no folder'} in this index; index both folders in one "
                "call from their common parent, into a new index, or use another index for this one"
            )


def _outdated(index: Index, chunks: Sequence[Document]) -> list[str]:
    """Ids that the files of `chunks` gave once and give no more, and those of files gone or emptied beside them."""
    files = {(chunk.metadata[ROOT], chunk.metadata[FILE]) for chunk in chunks}
    roots = {root for root, _ in files}
    outdated = []
    for id in set(index) - {chunk.id for chunk in chunks}:
        stored = index[id]  # one by one: all texts of an index may not fit in memory
        root, file = stored.metadata.get(ROOT), stored.metadata.get(FILE)
        if not isinstance(root, str) or not isinstance(file, str):  # other documents may hold anything there
            continue
        if root in roots and ((root, file) in files or _is_gone(Path(root, file))):
            outdated.append(id)
    return outdated


def _is_gone(file: Path) -> bool:
    """Whether a file is no more, or empty. One that must not be looked at may still be there."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except PermissionError:
        return False
    return not stat.S_ISREG(found.st_mode) or found.st_size == 0
