"""What an index holds: documents by their ids, and their vectors and states, as they are at one commit."""

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from gritrag.index.build import check_state
from gritrag.index.documents import document_list, id_list
from gritrag.index.filters import compile_filter
from gritrag.index.parts import Parts
from gritrag.index.protocol import Reader
from gritrag.index.reader import named_reader
from gritrag.index.storage.entries import Entry
from gritrag.index.storage.states import DocumentState, Reading, StateFileWarning
from gritrag.records import Document

__all__ = ["Contents"]


class Contents:
    """What of an `Index` needs no search: documents, notes, vectors and states."""

    def __init__(self, parts: Parts, model: Reader | None, dtype: str = "auto", device: str = "auto") -> None:
        self.path = parts.root
        self._parts = parts
        self._model = model
        self._loads_as = dtype, device
        self._loading = threading.Lock()

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing, and not closed since."""
        return self._parts.lock is not None

    @property
    def model(self) -> Reader:
        """The model that reads for this index; loaded now if it has not been, by the name that the index remembers.

        Raises:
            FingerprintMismatch: what goes by that name now is another model.
            ValueError: it can be had by no name: open the index with ``model=``.
        """
        with self._loading:
            if self._model is None:
                self._model = named_reader(self.path, self._parts.manifest, *self._loads_as)
            return self._model

    # Documents

    def __getitem__(self, id: str) -> Document:
        """The document of that id; a KeyError where there is none."""
        entry = self._parts.catalog.entry(id) if isinstance(id, str) else None
        if entry is None:
            raise KeyError(id)
        return entry.document

    def get(self, ids: Iterable[str]) -> list[Document]:
        """The documents of these ids, in their order. Unknown ids are a ValueError that names them."""
        return [entry.document for entry in self._parts.catalog.entries(id_list(ids))]

    def __len__(self) -> int:
        return self._parts.catalog.document_totals()[0]

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._parts.catalog.row_of(id) is not None

    def __iter__(self) -> Iterator[str]:
        """Ids, in the order in which the documents were stored."""
        return iter(self.ids())

    def ids(self, where: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of the documents that satisfy a filter, of all where it is None, in the order of storing."""
        return self._parts.catalog.ids(compile_filter(where))

    def field(self, name: str) -> dict[str, Any]:
        """Values of one metadata field by the ids of the documents that have it, without reading the documents."""
        return dict(self._parts.catalog.field(name))

    @property
    def tokens(self) -> int:
        """Tokens of all documents, as they were read."""
        return self._parts.catalog.document_totals()[1]

    def note(self, name: str) -> str | None:
        """What `set_note` kept under a name; None where nothing was."""
        return self._parts.catalog.meta(f"note: {name}")

    def set_note(self, name: str, value: str) -> None:
        """Keep a string with the index, such as how its documents were cut."""
        with self._parts.writing(), self._parts.catalog.transaction():
            self._parts.catalog.set_meta(f"note: {name}", value)

    @property
    def digest(self) -> str:
        """32 hex digits over all documents, to tell whether what was made of them still holds."""
        return self._parts.catalog.digest()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several calls that see one commit: ``with index.snapshot(): ...``. Each call alone sees one anyway.

        Meanwhile other threads wait, this index cannot be written through, and a writer cannot empty its log. A state
        that is deleted meanwhile is missing.
        """
        with self._parts.catalog.snapshot():
            yield

    # States

    def load_states(self, documents: Iterable[Document]) -> list[DocumentState | None]:
        """The stored states of documents as they were found, in their order.

        None for a document that is no longer here, or not so, and where there is no state that can be trusted. Tensors
        are mapped from the files: cheap to load, paged in when used, and never to be written to.
        """
        return self._parts.quota.load(self._found(documents))

    def states_of(self, documents: Sequence[Document]) -> tuple[list[DocumentState], dict[int, Reading]]:
        """States of all documents; and, by their numbers, readings of those that were missing: read now, and stored if
        the index is open for writing."""
        states = self.load_states(documents)
        missing = [number for number, state in enumerate(states) if state is None]
        read = self.model.read_documents([documents[number] for number in missing]) if missing else []
        readings = dict(zip(missing, read, strict=True))
        for number, reading in readings.items():
            self.keep_state(documents[number], reading.state)
        whole = [readings[n].state if state is None else state for n, state in enumerate(states)]
        return whole, readings

    def load_vectors(self, documents: Iterable[Document]) -> list[np.ndarray | None]:
        """The stored vectors, float32 `[dim]`, of documents as they were found; None for one that is no longer here."""
        return [None if entry is None else entry.vector for entry in self._found(documents)]

    def _found(self, documents: Iterable[Document]) -> list[Entry | None]:
        listed = document_list(documents)
        with self._parts.catalog.snapshot():
            return [self._parts.catalog.entry_of(document) for document in listed]

    def store_state(self, document: Document, state: DocumentState) -> None:
        """Keep a state that was computed elsewhere, of a document as it was found.

        Nothing is stored if the document is no longer here, or not so; if the index is read-only, without states, or
        full; inside a `snapshot`; or while another thread writes, since an answer does not wait for a long `add`. That
        it was this index's model that computed the state is the caller's promise.

        Raises:
            ValueError: the state was not computed from the tokens of this document, or was read in another way.
        """
        if self.writable and not self._parts.catalog.in_snapshot:
            with self._parts.writing(waits=False) as is_our_turn:
                entry = self._parts.catalog.entry_of(document) if is_our_turn else None
                if entry is not None:
                    check_state(document, state, entry.token_ids, self._parts.manifest.fingerprint)
                    self._parts.quota.put(entry.state_key, state)

    def keep_state(self, document: Document, state: DocumentState) -> None:
        """`store_state` for the sake of later answers: where the disk is full, fails or is gone, that is a warning, and
        this answer is given all the same. Errors are else those of `store_state`."""
        try:
            self.store_state(document, state)
        except OSError as error:
            warnings.warn(
                f"the state of document {document.called} was not kept ({error}): the document is read again with the "
                "next question that finds it; make room on the disk, or open the index for reading",
                StateFileWarning,
                stacklevel=3,
            )
