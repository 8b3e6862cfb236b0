"""Ingestion: files -> chunks -> an index that holds just what the files say now."""

import json
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gritrag import Document, GritModel, Index
from gritrag.chunks import PART, Cutting, FileChunks
from gritrag.documents.ids import Ids
from gritrag.documents.roots import Root, Roots
from gritrag.documents.sources import FILE, ROOT, Skipped, Source
from gritrag.documents.text import TextOptions
from gritrag.folders import is_index
from gritrag.forecast import Storage
from gritrag.index.build import CHUNK_DOCUMENTS, CHUNK_SHARE, AddReport
from gritrag.index.documents import check_documents
from gritrag.index.origins import ids_of, origins
from gritrag.index.protocol import Reader
from gritrag.index.storage.durable import settled_place
from gritrag.index.storage.manifest import parse_bytes
from gritrag.progress import ReadingBar

DEFAULT_STATES = "bf16"
CUTTING, ROOTS = "cutting", "roots"
"""Names of notes in an index."""


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


class Known(NamedTuple):
    """What there is before files are read: nothing, or an index.

    `files` are root and name of those that have documents in it, `roots` where they come from, `ids` those taken, and
    `contents` tells whether others have written since.
    """

    is_there: bool
    cutting: Cutting | None
    files: set[tuple[str, str]]
    storage: Storage | None
    roots: Roots
    ids: Ids
    contents: tuple[str | None, ...] = ()


def look(folder: Path) -> Known:
    """What the index in a folder says of itself, without its model."""
    if not is_index(folder):
        return Known(False, None, set(), None, Roots(), Ids())
    with Index.open(folder) as index, index.snapshot():
        stats = index.stats()
        known = set(origins(index).values())
        storage = Storage(stats["codec"], stats["state_quota"])
        roots, ids = recall_roots(index), ids_of(index)
        return Known(True, recall_cutting(index), known, storage, roots, ids, _contents(index))


def check_unwritten(index: Index, known: Known) -> None:
    """Make sure that nobody has written since `look`, as while the model was loaded: ids and roots that were free then
    may be theirs now.

    Raises:
        ValueError: somebody has.
    """
    is_as_seen = (
        _contents(index) == known.contents if known.is_there else not len(index) and not recall_roots(index).known
    )
    if not is_as_seen:
        raise ValueError(
            f"another process wrote into {index.path} while this one looked at it, and nothing was stored: give the "
            "same command again"
        )


def _contents(index: Index) -> tuple[str | None, ...]:
    return index.digest, index.note(CUTTING), index.note(ROOTS)


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
    state_quota: str | int | None = None,
) -> Index:
    """The index in `folder`, to be written: made if there is none, with `states` as its codec or else bf16.

    Raises:
        ValueError: the index that is there stores its states in another way, or at another place.
    """
    if not is_index(folder):
        codec = states or DEFAULT_STATES
        return Index.create(
            folder, model=model, states=codec, state_quota=state_quota, states_at=states_at, vectors_at=vectors_at
        )
    index = Index.open(folder, model=model, mode="rw")
    codec, place, quota = (index.stats()[name] for name in ("codec", "states_at", "state_quota"))
    wrong = ""
    if states_at not in (None, place) and settled_place(states_at) != place:
        wrong = f"{folder} has its states {place or 'in its folder'}, not at {states_at}: use another folder"
    elif states not in (None, codec):
        wrong = f"{folder} stores states as {codec!r}, not {states!r}: go on with it as it is, or use another folder"
    elif parse_bytes(state_quota) not in (None, quota):
        wrong = f"{folder} has a quota of {quota or 'no'} bytes for its states: go on with it, or use another folder"
    if wrong:
        index.close()
        raise ValueError(wrong)
    return index


def recall_cutting(index: Index) -> Cutting | None:
    """How the documents of an index were cut when files were last read into it; None where none were."""
    noted = index.note(CUTTING)
    if noted is None:
        return None
    fields = json.loads(noted)
    return Cutting(**{**fields, "text": TextOptions(**fields["text"])})


def note_cutting(index: Index, cutting: Cutting) -> None:
    """Keep with an index how its documents are cut, so that the next run cuts them so too."""
    if recall_cutting(index) != cutting:
        index.set_note(CUTTING, json.dumps({**cutting._asdict(), "text": cutting.text._asdict()}))


def recall_roots(index: Index) -> Roots:
    """Where the documents of an index came from. One that was made before roots had names calls them by their paths."""
    known = {name: Root(*root) for name, root in json.loads(index.note(ROOTS) or "{}").items()}
    files: dict[str, list[str]] = {}
    for root, file in sorted(set(origins(index).values())):
        known.setdefault(root, Root(root))
        files.setdefault(root, []).append(file)
    return Roots(known, files)


def note_roots(index: Index, roots: Roots) -> None:
    """Keep with an index where its roots are."""
    known = json.dumps(roots.known)
    if index.note(ROOTS) != known:
        index.set_note(ROOTS, known)


class Ingestion:
    """Files on their way into an index, a few chunks at a time.

    Every few chunks are acknowledged; a second run of the same files finishes what an interrupted one began, since what
    is unchanged is not read again.

    Args:
        index: open for writing. Of its ids none may be that of a chunk from elsewhere: `read_files` takes care of that,
            if it gets `Known.ids`.
        sources: the files that will come, under the names that `Roots.place` gives them.

    Raises:
        ValueError: a document that came from no file has the name of one of these; nothing is stored then.
    """

    def __init__(self, index: Index, sources: Sequence[Source]) -> None:
        self._index = index
        self._stored = origins(index)
        self._roots = recall_roots(index)
        refuse_other_documents(index, sources)
        self._report = AddReport()
        self._kept: set[str] = set()
        self._given: set[tuple[str, str]] = set()
        self._skipped: list[Skipped] = []

    def run(self, parts: Iterable[FileChunks], bar: ReadingBar) -> Ingested:
        """Add the chunks of whole files, as `gritrag.chunks.read_files` gives them, and delete what their folders hold
        no more.

        Deleted are chunks that earlier versions of these files gave, and those of files below the same roots that are
        gone or empty now. A file that cannot be read now keeps what it gave before, and so does one with a chunk that
        an index cannot hold. Files that are there but were not asked for keep theirs, and so do documents that came
        from no file.
        """
        waiting: list[FileChunks] = []
        count = 0
        most = PART  # few at first, so that the bar soon says how fast it goes
        for part in parts:
            self._skipped += part.skipped
            waiting.append(part)
            count += len(part.chunks)
            if count >= most:
                self._store(waiting, bar)
                waiting, count = [], 0
                most = max(min(2 * most, CHUNK_DOCUMENTS), len(self._index) // CHUNK_SHARE)
        self._store(waiting, bar)
        removed = self._index.delete(ids=self._outdated())
        return Ingested(*self._report, removed, len(self._index), self._skipped)

    def _store(self, parts: Sequence[FileChunks], bar: ReadingBar) -> None:
        chunks = [chunk for part in parts for chunk in part.chunks]
        began, before = time.monotonic(), self._index.tokens
        if chunks:
            try:
                report = self._index.add(chunks)
            except ValueError as error:
                chunks = self._storable(chunks, error)
                report = self._index.add(chunks)
            self._report = AddReport(*(a + b for a, b in zip(self._report, report, strict=True)))
            self._kept.update(chunk.id for chunk in chunks)
            self._given.update((chunk.metadata[ROOT], chunk.metadata[FILE]) for chunk in chunks)
        tokens = max(0, self._index.tokens - before)
        files = len({part.source.name for part in parts if part.is_last})
        bar.advance(sum(part.size for part in parts), files, len(chunks), tokens, time.monotonic() - began)

    def _storable(self, chunks: Sequence[Document], refusal: ValueError) -> list[Document]:
        """Those of files whose chunks an index can hold; the refusal is raised where it was no file's fault."""
        kept: list[Document] = []
        count = len(self._skipped)
        for (root, name), of_file in _by_file(chunks).items():
            try:
                check_documents(self._index.model, of_file)
                kept += of_file
            except ValueError as error:
                self._skipped.append(Skipped(self._roots.file(root, name), str(error)))
        if len(self._skipped) == count:
            raise refusal
        return kept

    def _outdated(self) -> list[str]:
        """Ids that the files gave once and give no more, and those of files gone or emptied beside them."""
        roots = {root for root, _ in self._given}
        return [
            id
            for id, (root, file) in self._stored.items()
            if id not in self._kept
            and root in roots
            and ((root, file) in self._given or _is_gone(self._roots.file(root, file)))
        ]


def _by_file(chunks: Iterable[Document]) -> dict[tuple[str, str], list[Document]]:
    files: dict[tuple[str, str], list[Document]] = {}
    for chunk in chunks:
        files.setdefault((chunk.metadata[ROOT], chunk.metadata[FILE]), []).append(chunk)
    return files


def refuse_other_documents(index: Index, sources: Sequence[Source]) -> None:
    """Raise a ValueError where the name of a file is the id of a document from elsewhere."""
    stored = origins(index)
    for source in sources:
        if source.name in index and stored.get(source.name, ("",))[0] != source.root:
            raise ValueError(
                f"{source.path}: its name {source.name!r} is the id of a document in this index that did not come from "
                "this folder; rename the file, or delete that document"
            )


def _is_gone(file: Path) -> bool:
    """Whether a file is no more, or empty. One that must not be looked at may still be there."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except PermissionError:
        return False
    return not stat.S_ISREG(found.st_mode) or found.st_size == 0
