"""Uploaded files: kept in one folder of the server under names of its own, each with a record of whose it is."""

import json
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, Field

from gritrag.documents.read import read_file
from gritrag.records import Document
from gritrag.serve.errors import ApiError

FILE_ID = re.compile(r"file-[0-9a-f]{32}")
CHUNK = 1 << 20
MOST_NAME = 200


def _number() -> str:
    return uuid.uuid4().hex


class Attachment(BaseModel):
    """A file in a vector store. Its number tells it from one that took its place while it was read; `batch` is the id
    of those that were put in with it, if any were."""

    number: str = Field(default_factory=_number)
    batch: str = ""
    status: Literal["in_progress", "completed", "failed", "cancelled"] = "in_progress"
    created_at: int
    attributes: dict[str, Any] = {}
    chunk_size: int = 256
    overlap: int = 0
    chunks: int = 0
    bytes: int = 0
    error: str = ""


class Upload(BaseModel):
    """The record of an uploaded file."""

    id: str
    name: str
    bytes: int
    created_at: int
    purpose: str
    owner: str
    stores: dict[str, Attachment] = {}


class Uploads:
    """All uploaded files of a server. Safe to use from several threads.

    Args:
        folder: where they are kept; a temporary one, which `close` removes, where None.
        most_bytes: of all of them.
    """

    def __init__(self, folder: Path | None, most_bytes: int) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="gritrag-files-") if folder is None else None
        self._folder = Path(self._temporary.name) if self._temporary else folder
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._most = most_bytes
        self._lock = threading.RLock()
        self._records: dict[str, Upload] = {}
        self._turns: dict[str, threading.Lock] = {}
        for path in sorted(self._folder.glob("file-*.json")):
            record = Upload.model_validate(json.loads(path.read_text("utf-8")))
            self._records[record.id] = record

    @property
    def are_kept(self) -> bool:
        """Whether they are there when the server is started again."""
        return self._temporary is None

    def close(self) -> None:
        if self._temporary:
            self._temporary.cleanup()

    def save(self, file: BinaryIO, name: str, purpose: str, owner: str) -> Upload:
        """Keep a file.

        Raises:
            ApiError: 413 if there is no room for it.
            OSError: the disk is full, or fails; nothing is kept then, nor after any other error.
        """
        id = f"file-{uuid.uuid4().hex}"
        path = self._path(id)
        try:
            with path.open("wb") as kept:
                shutil.copyfileobj(file, kept, CHUNK)
            size = path.stat().st_size
            shown = PurePath(name.replace("\\", "/")).name[-MOST_NAME:] or "upload"
            record = Upload(id=id, name=shown, bytes=size, created_at=int(time.time()), purpose=purpose, owner=owner)
            with self._lock:
                if sum(each.bytes for each in self._records.values()) + size > self._most:
                    raise ApiError(413, "there is no room for more files; delete some first", "no_room", "file")
                self._write(record)
        except Exception:  # a full disk, or the request's own file, closed as its client went away while it was copied
            # what has no record would never be deleted
            path.unlink(missing_ok=True)
            raise
        return record

    def of(self, owner: str) -> list[Upload]:
        """The files of one tenant, the oldest first."""
        with self._lock:
            return sorted((r for r in self._records.values() if r.owner == owner), key=lambda r: (r.created_at, r.id))

    def get(self, id: str, owner: str) -> Upload:
        """One file.

        Raises:
            ApiError: 404 if there is none, or it is somebody else's.
        """
        with self._lock:
            record = self._records.get(id)
        if record is None or record.owner != owner:
            raise ApiError(404, "there is no file of that id", "file_not_found", "file_id")
        return record

    def content(self, record: Upload) -> Path:
        """Where it lies."""
        return self._path(record.id)

    def documents(self, record: Upload, metadata: dict[str, Any]) -> tuple[list[Document], list[str]]:
        """What a file says, and in words what of it could not be read.

        All ids begin with that of the file: rows of two files may have the same ids, and neither is to take the place
        of the other, nor of a document that was there before.

        Raises:
            ValueError: it is of no known kind, or broken.
        """
        if record.name.lower().endswith(".parquet"):  # a few bytes of it may stand for gigabytes
            raise ValueError(f"{record.name}: .parquet is not read from uploads; send the rows as .jsonl")
        losses: list[str] = []
        with self._path(record.id).open("rb") as file:
            documents = list(
                read_file(
                    file, f"{record.id}/{record.name}", where=record.name, metadata=metadata, on_loss=losses.append
                )
            )
        below = f"{record.id}/"
        documents = [each if each.id.startswith(below) else replace(each, id=below + each.id) for each in documents]
        return documents, losses

    def delete(self, record: Upload) -> None:
        with self._lock:
            self._records.pop(record.id, None)
            self._turns.pop(record.id, None)
            self._path(record.id).unlink(missing_ok=True)
            self._path(record.id).with_suffix(".json").unlink(missing_ok=True)

    def attach(self, record: Upload, store: str, attachment: Attachment) -> None:
        """Note that a file is in a vector store, in the place of what was noted before."""
        with self._lock:
            current = self._records.get(record.id)
            if current is not None:
                self._write(current.model_copy(update={"stores": {**current.stores, store: attachment}}))

    def settle(self, record: Upload, store: str, attachment: Attachment) -> None:
        """Note what came of reading a file into a store, if it has not been taken out or put in anew since."""
        with self._lock:
            if self.is_current(record, store, attachment):
                self.attach(record, store, attachment)

    def cancel(self, record: Upload, store: str, batch: str) -> None:
        """Note that a file of a batch is not to be read into a store any more, if it has not been yet. Whoever reads it
        finds that it is another attachment than the one that he reads."""
        with self._lock:
            current = self._records.get(record.id)
            attachment = None if current is None else current.stores.get(store)
            if attachment is not None and attachment.batch == batch and attachment.status == "in_progress":
                self.attach(record, store, attachment.model_copy(update={"status": "cancelled", "number": _number()}))

    def is_current(self, record: Upload, store: str, attachment: Attachment) -> bool:
        """Whether a file still is in a store as it was put in then."""
        with self._lock:
            current = self._records.get(record.id)
        return current is not None and store in current.stores and current.stores[store].number == attachment.number

    def unfinished(self) -> list[tuple[Upload, str, Attachment]]:
        """Files whose reading into a store has not ended: a server that was killed has left them so."""
        with self._lock:
            pairs = [(each, store) for each in self._records.values() for store in each.stores]
        waiting = [(each, store, each.stores[store]) for each, store in pairs]
        return [found for found in waiting if found[2].status == "in_progress"]

    @contextmanager
    def turn(self, record: Upload) -> Iterator[None]:
        """One thread at a time reads a file."""
        with self._lock:
            turn = self._turns.setdefault(record.id, threading.Lock())
        with turn:
            yield

    def detach(self, record: Upload, store: str) -> None:
        with self._lock:
            current = self._records.get(record.id)
            if current is None:  # somebody has deleted it
                return
            stores = {name: each for name, each in current.stores.items() if name != store}
            self._write(current.model_copy(update={"stores": stores}))

    def attached(self, store: str, owners: Sequence[str] | None = None) -> list[Upload]:
        """The files of a vector store, the oldest first."""
        with self._lock:
            found = [r for r in self._records.values() if store in r.stores and (owners is None or r.owner in owners)]
        return sorted(found, key=lambda record: (record.stores[store].created_at, record.id))

    def _write(self, record: Upload) -> None:
        path = self._path(record.id).with_suffix(".json")
        part = path.with_suffix(".part")
        part.write_text(record.model_dump_json(), "utf-8")
        part.replace(path)
        self._records[record.id] = record

    def _path(self, id: str) -> Path:
        assert FILE_ID.fullmatch(id), "ids are made here"
        assert self._folder is not None
        return self._folder / f"{id}.bin"
