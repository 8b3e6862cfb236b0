"""A build: documents -> checked, deduplicated -> read in chunks -> state files, then rows.

Every chunk is acknowledged by its commit. A build that dies leaves whole chunks; run again, it skips what is unchanged.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gritrag.index.documents import Checked
from gritrag.index.filters import Compiled
from gritrag.index.parts import Parts
from gritrag.index.protocol import Reader
from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.entries import Entry, metadata_json, same_metadata
from gritrag.index.storage.garbage import remove_garbage
from gritrag.index.storage.states import DocumentState
from gritrag.progress import ProgressBar
from gritrag.records import Document, Fingerprint

__all__ = ["AddReport", "build", "check_state", "check_vector", "is_unchanged", "remove"]

CHUNK_DOCUMENTS = 64
CHUNK_SHARE = 500
"""A commit writes the checksums of all pages, so it has at least one document for so many that are there: filling an
index of N then writes of the order of N bytes, and not of N squared."""

CHUNK_STATE_BYTES = 1 << 27  # states of a chunk wait in memory, in float32 at worst, until their files are written


class AddReport(NamedTuple):
    """How many of the documents given to `add` were new, took the place of another, or changed nothing."""

    added: int = 0
    replaced: int = 0
    skipped: int = 0


def build(
    model: Reader, parts: Parts, documents: Sequence[Checked], on_conflict: str, show_progress_bar: bool
) -> AddReport:
    """Bring `documents` into the index; `Index.add` documents the arguments.

    Raises:
        ValueError: `on_conflict` is ``"error"`` and an id already names another content; nothing is added then.
    """
    if on_conflict == "error":
        taken = [document.id for document in documents if _conflicts(parts.catalog, document)]
        if taken:
            raise ValueError(
                f"{len(taken)} ids already name other documents (first: {taken[0]!r}): "
                "give new ids, or add with on_conflict='replace' or 'skip'"
            )
    added = replaced = skipped = 0
    with ProgressBar(total=len(documents), desc="read", unit="doc", disable=not show_progress_bar) as bar:
        most = max(CHUNK_DOCUMENTS, parts.catalog.document_totals()[0] // CHUNK_SHARE)
        for chunk in _chunks(documents, model.state_elements_per_token, most):
            todo = []
            for document in chunk:
                entry = parts.catalog.entry(document.id)
                if entry is not None and (on_conflict == "skip" or is_unchanged(entry, document)):
                    skipped += 1
                    continue
                todo.append(document)
                added, replaced = added + (entry is None), replaced + (entry is not None)
            if todo:
                _commit(model, parts, todo)
            bar.update(len(chunk))
    return AddReport(added, replaced, skipped)


def _commit(model: Reader, parts: Parts, chunk: Sequence[Checked]) -> None:
    """Read what nobody has read yet, make the state files durable, then commit all rows at once."""
    catalog = parts.catalog
    vectors = {document.key: vector for document in chunk if (vector := _known_vector(catalog, document)) is not None}
    unread = list({document.key: document for document in chunk if document.key not in vectors}.values())
    tokens = {document.key: len(document.token_ids) for document in unread}
    room = parts.quota.make_room(tokens, model.state_elements_per_token)
    with_state = [document for document in unread if document.key in room.chosen]
    vector_only = [document for document in unread if document.key not in room.chosen]
    states = []
    if with_state:
        for document, reading in zip(with_state, model.read_documents([d.document for d in with_state]), strict=True):
            check_tokens(document.document, reading.state, document.token_ids)
            states.append((document.key, reading.state))
            vectors[document.key] = reading.vector
    if vector_only:
        encoded = model.encode_document([document.document for document in vector_only])
        vectors.update(zip([document.key for document in vector_only], encoded, strict=True))
    entries = []
    for document in chunk:
        vector = check_vector(f"document {document.document.called}", vectors[document.key], model.dim)
        entries.append(Entry(document.document, document.token_ids, vector, document.key))
    rows = parts.quota.write(states)
    with catalog.transaction():
        parts.quota.commit(rows, room.evicted)
        garbage = catalog.forget_unread_states(catalog.put(entries))
    remove_garbage(catalog, parts.files, [*room.evicted, *garbage])


def remove(parts: Parts, ids: set[str] | None, where: Compiled) -> int:
    """Delete the documents that satisfy `where`, among `ids` if they are given; return how many."""
    catalog = parts.catalog
    rows = catalog.rows(where).tolist()
    if ids is not None:
        rows = sorted({catalog.row_of(id) for id in ids} & set(rows))
    if rows:
        with catalog.transaction():
            garbage = catalog.forget_unread_states(catalog.remove(rows))
        remove_garbage(catalog, parts.files, garbage)
    return len(rows)


def check_tokens(document: Document, state: DocumentState, token_ids: np.ndarray) -> None:
    """A state is only stored under the tokens it was computed from."""
    if not np.array_equal(state.token_ids.cpu().numpy(), token_ids):
        raise ValueError(
            f"the state of document {document.called} was computed from {len(state)} tokens which are not the "
            f"{len(token_ids)} tokens of the document in this index: read that document with this index's model"
        )


def check_state(document: Document, state: DocumentState, token_ids: np.ndarray, fingerprint: Fingerprint) -> None:
    """A state from elsewhere is of the document's tokens, and was read as the documents of the index are."""
    check_tokens(document, state, token_ids)
    reading = fingerprint.parts.get("reading", state.reading)
    if state.reading != reading:
        raise ValueError(
            f"the state of document {document.called} was read {state.reading}, "
            f"documents of this index are read {reading}"
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


def is_unchanged(entry: Entry, document: Checked) -> bool:
    """Whether a document is stored just so."""
    return (
        (entry.document.text, entry.document.title) == (document.document.text, document.document.title)
        and same_metadata(metadata_json(entry.document), document.metadata)
        and np.array_equal(entry.token_ids, document.token_ids)
    )


def _conflicts(catalog: Catalog, document: Checked) -> bool:
    entry = catalog.entry(document.id)
    return entry is not None and not is_unchanged(entry, document)


def _chunks(documents: Sequence[Checked], elements_per_token: int, most: int) -> Iterator[list[Checked]]:
    """Runs of documents in their order, bounded in number and in the bytes of their float32 states."""
    chunk: list[Checked] = []
    waiting = 0
    for document in documents:
        size = 4 * elements_per_token * len(document.token_ids)
        if chunk and (len(chunk) == most or waiting + size > CHUNK_STATE_BYTES):
            yield chunk
            chunk, waiting = [], 0
        chunk.append(document)
        waiting += size
    if chunk:
        yield chunk
