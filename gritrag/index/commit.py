"""What was staged becomes documents of an index, in one commit."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np

from gritrag.chunks import in_short
from gritrag.documents.ids import Claim, Ids, claim_of
from gritrag.documents.roots import Roots
from gritrag.documents.sources import Extent, Skipped
from gritrag.index.build import AddReport, check_vector, is_unchanged
from gritrag.index.documents import Checked
from gritrag.index.origins import origin
from gritrag.index.parts import Parts
from gritrag.index.staging import Staging
from gritrag.index.storage.entries import Entry, StateRow, metadata_json
from gritrag.index.storage.garbage import remove_garbage
from gritrag.index.storage.remote_files import RemoteFile, is_gone, is_url
from gritrag.progress import ProgressBar
from gritrag.records import Document

__all__ = ["Commit", "Row", "document_of"]

LINKED = 1024
"""States that are put in their places at once."""

Row = dict[str, Any]
"""A chunk: ``id``, ``title``, ``text``, ``metadata`` as JSON, ``token_ids`` as bytes, ``key`` of its reading, the
``part`` of the staging that holds it, empty where it was known before, the ``path`` of its file, and what its document
claims: an id (``of``) and its ``content``. Or, where there is a ``reason``, what could not be read: its ``path`` and
``extent``."""


def document_of(row: Row) -> Document:
    """The document of a chunk."""
    return Document(row["text"], id=row["id"], title=row["title"], metadata=json.loads(row["metadata"]))


class Commit:
    """Rows become documents of the catalog, in one transaction. Documents whose ids are taken are left out.

    Args:
        known: for each reading that was staged before the part that holds it.
        ids: those of the index.
        roots: where the files are.
    """

    def __init__(
        self, parts: Parts, staging: Staging, known: dict[str, str], ids: Ids, roots: Roots | None = None
    ) -> None:
        self._parts, self._staging, self._known = parts, staging, known
        self._ids, self._roots = ids, roots or Roots()
        self._kept: set[str] = set()
        self._clashing: tuple[str, Claim] | None = None
        self._clashes: dict[tuple[str, str], tuple[str, list[str]]] = {}
        self._counts = dict.fromkeys(AddReport._fields, 0)
        self._waiting: dict[str, StateRow] = {}
        self._files: set[tuple[str, str]] = set()
        self._broken: set[tuple[str, str]] = set()
        self.skipped: list[Skipped] = []

    def run(self, rows: Iterable[Row]) -> AddReport:
        """All of them, or none."""
        parts = self._parts
        with parts.catalog.transaction(), ProgressBar(rows, desc="read", unit="doc", disable=None) as bar:
            entries = self._entries(bar)
            first = next(entries, None)
            replaced = set() if first is None else parts.catalog.put(chain([first], entries))
            self._tell_clashes()
            self._put_states()
            garbage = parts.catalog.forget_unread_states(replaced)
        remove_garbage(parts.catalog, parts.files, garbage)
        return AddReport(**self._counts)

    def outdated(self) -> list[str]:
        """Ids that the files gave once and give no more, and those of files that are gone or emptied beside them. What
        could not be read or stored now keeps what it gave before."""
        files = self._files - self._broken
        roots = {root for root, _ in files}
        found = []
        for id in set(self._parts.catalog.ids()) - self._kept:
            entry = self._parts.catalog.entry(id)  # one by one: all texts of an index may not fit in memory
            assert entry is not None
            root, name = origin(entry.document)
            if root in roots and ((root, name) in files or is_gone(*self._roots.where(root, name))):
                found.append(id)
        return found

    def _entries(self, rows: Iterable[Row]) -> Iterator[Entry]:
        for row in rows:
            if row["reason"]:
                self._skip(row["path"], row["reason"], row["extent"] or "part")
                if row["id"]:
                    self._broken.add(origin(document_of(row)))
                continue
            document = document_of(row)
            if not self._take(row, document):
                continue
            token_ids = np.frombuffer(row["token_ids"], np.int32)
            if self._is_new(Checked(document, metadata_json(document), token_ids, row["key"])):
                yield Entry(document, token_ids, self._vector(row), row["key"])

    def _skip(self, path: str, reason: str, extent: str) -> None:
        file = RemoteFile(path) if is_url(path) else Path(path)
        self.skipped.append(Skipped(cast(Path, file), reason, cast(Extent, extent)))

    def _take(self, row: Row, document: Document) -> bool:
        """Whether a chunk may have its id, and the document that it is cut from may: as `read_files` decides it where
        one process reads all files. Of a document that clashes no more chunks are taken."""
        place = origin(document)
        whole = Claim(row["of"], row["content"])
        if self._clashing == (row["path"], whole):
            return False
        try:
            self._ids.take(whole, *place)
            if document.id != whole.id:
                self._ids.take(claim_of(document), *place)
        except ValueError as error:
            self._clashing = row["path"], whole
            self._clashes.setdefault(place, (row["path"], []))[1].append(str(error))
            return False
        self._files.add(place)
        self._kept.add(document.id)
        return True

    def _tell_clashes(self) -> None:
        for place, (path, reasons) in self._clashes.items():
            self._skip(path, in_short(reasons), "part" if place in self._files else "file")

    def _is_new(self, checked: Checked) -> bool:
        stored = self._parts.catalog.entry(checked.id)
        unchanged = stored is not None and is_unchanged(stored, checked)
        self._counts["skipped" if unchanged else "replaced" if stored is not None else "added"] += 1
        return not unchanged

    def _vector(self, row: Row) -> np.ndarray:
        """As it was first read: what reads the same tokens has the same vector and the same state."""
        key = row["key"]
        if (other := self._parts.catalog.entry_read_as(key)) is not None:
            return other.vector
        part = self._staging.part(row["part"] or self._known[key])
        if key in part.rows:
            self._waiting[key] = part.rows[key]
        if len(self._waiting) == LINKED:
            self._put_states()
        return check_vector(f"document {row['id']!r}", part.vectors[key], self._parts.manifest.dim)

    def _put_states(self) -> None:
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self._parts.quota.commit(self._staging.take([*waiting.values()], self._parts.root), ())
