"""Ingestion: files -> chunks -> an index that holds just what the files say now."""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gritrag import Document, GritModel, Index
from gritrag.documents.sources import FILE, ROOT, Skipped
from gritrag.index.build import AddReport
from gritrag.index.documents import check_documents
from gritrag.index.protocol import Reader

DEFAULT_STATES = "bf16"


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


def ingest(index: Index, chunks: Sequence[Document]) -> Ingested:
    """Add the chunks of whole files, as `gritrag.chunks` gives them, and delete what their folders hold no more.

    Deleted are chunks that earlier versions of these files gave, and those of files below the same roots that are gone
    or empty now. A file that cannot be read now keeps what it gave before, and so does one with a chunk that an index
    cannot hold. Files that are there but were not asked for keep theirs, and so do documents that came from no file.
    Unchanged chunks are not read again, so a second call finishes what an interrupted one began.

    Raises:
        ValueError: an id of `chunks` names a document of another root, or of none; nothing has been stored then.
    """
    _refuse_other_roots(index, chunks)
    report, kept, skipped = _add(index, chunks)
    removed = index.delete(ids=_outdated(index, kept))
    return Ingested(*report, removed, len(index), skipped)


def _add(index: Index, chunks: Sequence[Document]) -> tuple[AddReport, Sequence[Document], list[Skipped]]:
    """Add chunks; where one cannot be stored, those of the other files. The second are those that were."""
    try:
        return index.add(chunks, show_progress_bar=True), chunks, []
    except ValueError:
        files: dict[tuple[str, str], list[Document]] = {}
        for chunk in chunks:
            files.setdefault((chunk.metadata[ROOT], chunk.metadata[FILE]), []).append(chunk)
        kept: list[Document] = []
        skipped: list[Skipped] = []
        for (root, name), of_file in files.items():
            try:
                check_documents(index.model, of_file)
                kept += of_file
            except ValueError as error:
                skipped.append(Skipped(Path(root, name), str(error)))
        if not skipped:
            raise
    return index.add(kept, show_progress_bar=True), kept, skipped


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
