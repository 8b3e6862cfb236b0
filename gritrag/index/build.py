"""A build: documents -> checked, deduplicated -> read in chunks -> state files, then rows.

Every chunk is acknowledged by its commit. A build that dies leaves whole chunks; run again, it skips what is unchanged.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from gritrag.index.catalog import Catalog, Entry, StateRow, metadata_json
from gritrag.index.codecs import get_codec
from gritrag.index.documents import Checked
from gritrag.index.protocol import Reader
from gritrag.index.states import DocumentState, StateStore, relative_path

__all__ = ["AddReport", "Shelf", "build"]

CHUNK_DOCUMENTS = 64
CHUNK_STATE_BYTES = 1 << 29  # states of a chunk wait in memory, in float32 at worst, until their files are written
HEADER_BYTES = 512


class AddReport(NamedTuple):
    """How many of the documents given to `add` were new, took the place of another, or changed nothing."""

    added: int = 0
    replaced: int = 0
    skipped: int = 0


class Shelf:
    """Where states go while there is room: state files under a quota, with their rows."""

    def __init__(self, catalog: Catalog, files: StateStore, codec: str, quota: int | None) -> None:
        """`codec` ``"none"`` stores nothing; `quota` in bytes, None for no limit."""
        self.catalog = catalog
        self.files = files
        self.codec = codec
        self._quota = quota
        self._warned = False

    def choose(self, tokens: Mapping[str, int], elements_per_token: int) -> set[str]:
        """Which of the states with these keys and numbers of tokens are to be stored; warns once when room runs out."""
        if self.codec == "none":
            return set()
        if self._quota is None:
            return set(tokens)
        per_token = get_codec(self.codec).bytes_per_token(elements_per_token)
        room = self._quota - self.catalog.state_totals()[1]
        chosen = set()
        for key, count in tokens.items():
            room -= HEADER_BYTES + math.ceil(per_token * count)
            if room < 0:
                self._warn()
                break
            chosen.add(key)
        return chosen

    def write(self, states: Iterable[tuple[str, DocumentState]]) -> list[StateRow]:
        """Write `(key, state)` pairs to files. Their rows are still to be committed."""
        return self.files.save(states, self.codec)

    def put(self, key: str, state: DocumentState) -> None:
        """Store one state if there is room, in place of a damaged one if need be: first its file, then its row."""
        elements_per_token = 2 * state.keys.numel() // len(state)
        if self.codec == "none":
            return
        if self.catalog.state(key) is None and not self.choose({key: len(state)}, elements_per_token):
            return
        rows = self.write([(key, state)])
        with self.catalog.transaction():
            self.catalog.put_states(rows)
            garbage = self.catalog.forget_unread_states([key])  # its document was deleted in the meantime
        self.files.remove(relative_path(row.key) for row in garbage)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the states of this index have reached their quota of {self._quota:,} bytes: further documents are "
                "stored without a state and will be read again when they are needed",
                stacklevel=2,
            )


def build(
    model: Reader, shelf: Shelf, documents: Sequence[Checked], on_conflict: str, show_progress_bar: bool
) -> AddReport:
    """Bring `documents` into the index; `Index.add` documents the arguments.

    Raises:
        ValueError: `on_conflict` is ``"error"`` and an id already names another content; nothing is added then.
    """
    if on_conflict == "error":
        taken = [document.id for document in documents if _conflicts(shelf.catalog, document)]
        if taken:
            raise ValueError(
                f"{len(taken)} ids already name other documents (first: {taken[0]!r}): "
                "give new ids, or add with on_conflict='replace' or 'skip'"
            )
    added = replaced = skipped = 0
    with tqdm(total=len(documents), desc="read", unit="doc", disable=not show_progress_bar) as bar:
        for chunk in _chunks(documents, model.state_elements_per_token):
            todo = []
            for document in chunk:
                entry = shelf.catalog.entry(document.id)
                if entry is not None and (on_conflict == "skip" or _unchanged(entry, document)):
                    skipped += 1
                    continue
                todo.append(document)
                added, replaced = added + (entry is None), replaced + (entry is not None)
            if todo:
                _commit(model, shelf, todo)
            bar.update(len(chunk))
    return AddReport(added, replaced, skipped)


def _commit(model: Reader, shelf: Shelf, chunk: Sequence[Checked]) -> None:
    """Read what nobody has read yet, make the state files durable, then commit all rows at once."""
    catalog = shelf.catalog
    vectors = {document.key: vector for document in chunk if (vector := _known_vector(catalog, document)) is not None}
    unread = list({document.key: document for document in chunk if document.key not in vectors}.values())
    tokens = {document.key: len(document.token_ids) for document in unread}
    chosen = shelf.choose(tokens, model.state_elements_per_token)
    with_state = [document for document in unread if document.key in chosen]
    vector_only = [document for document in unread if document.key not in chosen]
    states = []
    if with_state:
        for document, reading in zip(with_state, model.read_documents([d.document for d in with_state]), strict=True):
            check_tokens(document.id, reading.state, document.token_ids)
            states.append((document.key, reading.state))
            vectors[document.key] = reading.vector
    if vector_only:
        encoded = model.encode_document([document.document for document in vector_only])
        vectors.update(zip([document.key for document in vector_only], encoded, strict=True))
    entries = []
    for document in chunk:
        vector = check_vector(f"document {document.id!r}", vectors[document.key], model.dim)
        entries.append(Entry(document.document, document.token_ids, vector, document.key))
    rows = shelf.write(states)
    with catalog.transaction():
        catalog.put_states(rows)
        garbage = catalog.forget_unread_states(catalog.put(entries))
    shelf.files.remove(relative_path(row.key) for row in garbage)


def check_tokens(id: str, state: DocumentState, token_ids: np.ndarray) -> None:
    """A state is only stored under the tokens it was computed from."""
    if not np.array_equal(state.token_ids.cpu().numpy(), token_ids):
        raise ValueError(
            f"the state of document {id!r} was computed from {len(state)} tokens which are not the {len(token_ids)} "
            "tokens of the document in this index: read that document with this index's model"
        )


def check_vector(what: str, vector: np.ndarray, dim: int) -> np.ndarray:
    """float32 `[dim]`, finite: a NaN would make every later search silently wrong."""
    vector = np.asarray(vector, np.float32)
    if vector.shape != (dim,):
        raise ValueError(f"{what} has a vector of shape {list(vector.shape)}, this index holds [{dim}]")
    if not np.isfinite(vector).all():
        raise ValueError(f"{what} has a vector that is not finite: load the model with dtype='float32'")
    return vector


def _known_vector(catalog: Catalog, document: Checked) -> np.ndarray | None:
    """The vector of another document with the same tokens: what has been read once is not read again."""
    entry = catalog.entry_read_as(document.key)
    return entry.vector if entry is not None and np.array_equal(entry.token_ids, document.token_ids) else None


def _unchanged(entry: Entry, document: Checked) -> bool:
    return (
        (entry.document.text, entry.document.title) == (document.document.text, document.document.title)
        and metadata_json(entry.document) == document.metadata
        and np.array_equal(entry.token_ids, document.token_ids)
    )


def _conflicts(catalog: Catalog, document: Checked) -> bool:
    entry = catalog.entry(document.id)
    return entry is not None and not _unchanged(entry, document)


def _chunks(documents: Sequence[Checked], elements_per_token: int) -> Iterator[list[Checked]]:
    """Runs of documents in their order, bounded in number and in the bytes of their float32 states."""
    chunk: list[Checked] = []
    waiting = 0
    for document in documents:
        size = 4 * elements_per_token * len(document.token_ids)
        if chunk and (len(chunk) == CHUNK_DOCUMENTS or waiting + size > CHUNK_STATE_BYTES):
            yield chunk
            chunk, waiting = [], 0
        chunk.append(document)
        waiting += size
    if chunk:
        yield chunk
