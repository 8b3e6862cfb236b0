"""The parts of an open index: catalog, vectors, state files and their quota, and the right to write them."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self
from uuid import uuid4

from gritrag.codecs import get_codec
from gritrag.index.check import collect
from gritrag.index.errors import ClosedIndex
from gritrag.index.protocol import Reader
from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.durable import make_folder, settled, settled_place, sync
from gritrag.index.storage.garbage import remove_garbage
from gritrag.index.storage.lock import WriterLock
from gritrag.index.storage.manifest import CATALOG, Manifest, check_names, check_replaceable, parse_bytes, wipe
from gritrag.index.storage.quota import StateQuota
from gritrag.index.storage.remote_states import RemoteStates
from gritrag.index.storage.states import Checks, StateStore
from gritrag.index.storage.vectors import VectorIndex

__all__ = ["Parts"]


def _collection(location: str | None) -> tuple[str, str] | None:
    """A place of Qdrant with the name of a new collection."""
    if location is None:
        return None
    if not location:
        raise ValueError("vectors_at must be the URL of a Qdrant server, or a folder for its local mode")
    return settled_place(location), f"gritrag-{uuid4().hex}"


def _vectors(root: Path, catalog: Catalog, manifest: Manifest, writable: bool) -> VectorIndex:
    if manifest.vectors_at is None:
        return VectorIndex(root, catalog, manifest.dim)
    try:  # here, as an extra that takes a second to import
        from gritrag.index.storage.qdrant import QdrantVectors
    except ImportError as error:
        raise ValueError(f"the vectors of {root} are in Qdrant: install 'gritrag[qdrant]'") from error
    return QdrantVectors(root, catalog, manifest.dim, *manifest.vectors_at, writable)


class Parts:
    """Made by `create` or `open`. `lock` is None where the index is only read."""

    def __init__(self, root: Path, manifest: Manifest, lock: WriterLock | None, mode: str, checks: Checks) -> None:
        self.root = root
        self.manifest = manifest
        self.lock = lock
        self.catalog = Catalog(
            root / CATALOG, mode, checks == "always", None if lock is None else lambda: lock.is_there
        )
        at = manifest.states_at
        self.files = StateStore(root, checks) if at is None else RemoteStates(at, checks)
        self.catalog.notes_garbage = at is not None
        self.vectors = _vectors(root, self.catalog, manifest, lock is not None)
        self.quota = StateQuota(self.catalog, self.files, manifest.codec, manifest.state_quota)
        self._writing = threading.RLock()
        self._was_interrupted = False

    @classmethod
    def create(
        cls,
        root: Path,
        model: Reader,
        states: str,
        quota: str | int | None,
        overwrite: bool,
        states_at: str | None = None,
        vectors_at: str | None = None,
    ) -> Self:
        """An empty index; the manifest makes it one, so it comes last."""
        if not isinstance(states, str):
            raise ValueError(f"states must be the name of a codec, or 'none' for vectors only, not {states!r}")
        if states != "none":
            get_codec(states)
        manifest = Manifest(
            model.fingerprint,
            model.dim,
            states,
            parse_bytes(quota),
            model.loaded_as,
            None if states_at is None else settled_place(states_at),
            _collection(vectors_at),
        )
        root = settled(root)
        check_replaceable(root, overwrite)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the directory {root}: {error.strerror}") from error
        with ExitStack() as on_failure:
            lock = WriterLock(root)
            on_failure.callback(lock.release)
            check_replaceable(root, overwrite)
            wipe(root)
            on_failure.callback(wipe, root)  # half of an index would be in the way of the next attempt
            # the catalog first: what has none is taken for somebody's folder, and never replaced
            parts = cls(root, manifest, lock, "rwc", "once")
            on_failure.callback(parts.catalog.close)
            (root / "states").mkdir()
            manifest.save(root)
            on_failure.pop_all()
        return parts

    @classmethod
    def open(cls, root: Path, model: Reader | None, mode: str, checks: Checks) -> Self:
        """The index at `root`, if it is `model` that built it; None for a model that is loaded later."""
        if mode not in ("r", "rw"):
            raise ValueError(f"mode must be 'r' or 'rw', not {mode!r}")
        if checks not in ("once", "always"):
            raise ValueError(f"checks must be 'once' or 'always', not {checks!r}")
        root = settled(root)
        check_names(root)
        manifest = Manifest.load(root)
        if model is not None:
            manifest.check_model(model.fingerprint, root)
        with ExitStack() as on_failure:
            lock = WriterLock(root) if mode == "rw" else None
            if lock is not None:
                on_failure.callback(lock.release)
                if model is not None and model.loaded_as and model.loaded_as != manifest.model:
                    manifest = replace(manifest, model=model.loaded_as)  # where it can be had now
                    manifest.save(root)
            parts = cls(root, manifest, lock, mode, checks)
            on_failure.callback(parts.catalog.close)
            if lock is not None and not parts.catalog.words_are_current:
                manifest.save(root)  # first, so that no older GritRAG writes to what it does not know
                with parts.catalog.transaction():
                    parts.catalog.renew_words()
            if lock is not None and not (root / "states").exists():  # removed to save space: they are only derived
                make_folder(root / "states")
                sync(root)
            if lock is not None:
                parts._tidy(lock.inherited)
            on_failure.pop_all()
        return parts

    def _tidy(self, others_died: bool) -> None:
        """Remove what writers before this one had to leave. Object storage that is away waits for the next."""
        try:
            if others_died:
                collect(self.catalog, self.files, self.vectors)
            else:
                remove_garbage(self.catalog, self.files)
        except OSError as error:
            if not self.catalog.garbage():
                raise
            warnings.warn(
                f"states of documents that were deleted are still at {self.manifest.states_at} ({error}): whoever "
                "writes to the index next removes them",
                stacklevel=5,
            )

    def close(self) -> None:
        """Bring the vectors file up to date (if writable) and let go of everything. A second call does nothing."""
        lock, self.lock = self.lock, None
        try:
            if lock is not None and lock.is_ours and not self.catalog.is_replaced:
                self._tidy_interrupted()
                self.quota.save_uses()
                self.vectors.save()
        finally:
            try:
                self.catalog.close()
            finally:
                if lock is not None:
                    lock.release()

    @contextmanager
    def writing(self, waits: bool = True) -> Iterator[bool]:
        """One thread at a time. Afterwards vectors file and log hold nothing of documents that were removed.

        Gives whether it is this thread's turn: always, if it `waits` for the others.
        """
        if self.catalog.closed:
            raise ClosedIndex(self.root)
        if self.lock is None:
            raise ValueError(f"{self.root} is open for reading only (or closed): open it with mode='rw'")
        with ExitStack() as afterwards:
            afterwards.callback(self._let_go)  # first: an interrupt may come as soon as it is this thread's turn
            if not self._writing.acquire(blocking=waits):
                yield False
                return
            if waits:
                self._tidy_interrupted()
            try:
                yield True
            except BaseException as error:
                # Ctrl-C: files may be there that no row names, or not any more
                self._was_interrupted |= not isinstance(error, Exception)
                raise
            finally:
                if self.catalog.removed:
                    self._forget()

    def _let_go(self) -> None:
        with suppress(RuntimeError):  # it was not this thread's turn
            self._writing.release()

    def _tidy_interrupted(self) -> None:
        """Remove the files that an interrupted call has left, as those of a writer that died."""
        if self._was_interrupted:
            self._tidy(others_died=True)
            self._was_interrupted = False

    def _forget(self) -> None:
        self.vectors.forget()
        self.catalog.removed = not self.catalog.fold()
        if self.catalog.removed:
            warnings.warn(
                f"a reader keeps the log of {self.root}: what was deleted is in no answer any more, but its bytes are "
                "in catalog.sqlite-wal until the index is next written or closed without that reader",
                stacklevel=4,
            )
