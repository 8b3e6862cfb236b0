"""A checked document: known to be storable and readable before anything is written."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from gritrag.index.protocol import Reader
from gritrag.index.storage.entries import same_metadata
from gritrag.index.storage.packed import bytes_per_token
from gritrag.index.storage.states import DocumentState, encoded, state_key
from gritrag.records import Document, as_documents, checked_metadata

__all__ = ["Checked", "Estimate", "check_documents", "estimate"]

SAMPLE = 4


class Checked(NamedTuple):
    """A document, its metadata as JSON, the int32 ids of its tokens `[T]` and the key of its reading."""

    document: Document
    metadata: str
    token_ids: np.ndarray
    key: str

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id


class Estimate(NamedTuple):
    """What an index will cost: bytes on disk by kind, and seconds of reading on this machine with this model."""

    documents: int
    tokens: int
    vector_bytes: int
    text_bytes: int
    state_bytes: int
    seconds: float


def check_documents(model: Reader, documents: Iterable[str | Document]) -> tuple[list[Checked], int]:
    """Each distinct document once, ready to be read, and how many were repetitions of an earlier one.

    Raises:
        ValueError: one that is blank, too long for the model, no Unicode text, or has metadata that is not JSON; or one
            id with two contents. The message names the document and what to do.
    """
    distinct: dict[str, tuple[str, Document, str]] = {}
    repeated = 0
    for position, document in enumerate(as_documents(documents)):
        name = f"document {position} ({'id ' if document.has_given_id else ''}{document.called})"
        metadata = _check_content(name, document)
        if document.id not in distinct:
            distinct[document.id] = name, document, metadata
            continue
        repeated += 1
        other, known, facts = distinct[document.id]
        is_same = (known.text, known.title) == (document.text, document.title) and same_metadata(facts, metadata)
        if not is_same:
            raise ValueError(f"{name} and {other} have one id and different contents: give each its own id")
    return [_tokenise(model, *known) for known in distinct.values()], repeated


def estimate(model: Reader, documents: Iterable[str | Document], states: str) -> Estimate:
    """Count bytes exactly where they can be counted, and time the model on a few of the documents.

    Of a state file the header, and scales that tokens share, take what they take with those few on average.
    """
    per_token = 0.0 if states == "none" else bytes_per_token(states, model.state_elements_per_token)
    checked, _ = check_documents(model, documents)
    if not checked:
        return Estimate(0, 0, 0, 0, 0, 0.0)
    tokens = sum(len(document.token_ids) for document in checked)
    sample = checked[:: -(-len(checked) // SAMPLE)]
    texts = [document.document for document in sample]

    def read(texts: list[Document]) -> list[DocumentState]:
        if states == "none":
            model.encode_document(texts)
            return []
        return [reading.state for reading in model.read_documents(texts)]

    read(texts[:1])  # the first call pays for warming up, which a whole build does not notice
    started = time.perf_counter()
    read_states = read(texts)
    seconds = (time.perf_counter() - started) / sum(len(document.token_ids) for document in sample) * tokens
    text_bytes = sum(
        len(part.encode()) for each in checked for part in (each.document.title, each.document.text, each.metadata)
    )
    overhead = sum(len(encoded(state, states)) - per_token * len(state) for state in read_states) / len(sample)
    state_bytes = round(per_token * tokens + overhead * len(checked))
    return Estimate(len(checked), tokens, 4 * model.dim * len(checked), text_bytes, state_bytes, seconds)


def _check_content(name: str, document: Document) -> str:
    """Refuse what SQLite or JSON cannot hold, and what there is nothing to read of; return the metadata as JSON."""
    if not document.text.strip():
        raise ValueError(f"{name} has no text: leave it out")
    try:
        metadata = checked_metadata(document.metadata)
    except ValueError as error:
        raise ValueError(f"{name} has metadata that is not JSON ({error}): use strings, numbers, lists") from error
    try:
        for part in (document.id, document.title, document.text, metadata):
            part.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds a lone surrogate ({error.object[error.start]!r}), which is no Unicode text: "
            "decode the file with errors='replace'"
        ) from error
    return metadata


def _tokenise(model: Reader, name: str, document: Document, metadata: str) -> Checked:
    token_ids = np.asarray(model.document_token_ids(document), np.int32)
    if len(token_ids) > model.max_document_tokens:
        raise ValueError(
            f"{name} has {len(token_ids)} tokens, the model reads at most {model.max_document_tokens} at once: "
            "split it with gritrag.tokens.chunk_documents, or index it with the command line, which does so"
        )
    return Checked(document, metadata, token_ids, state_key(model.fingerprint, token_ids))


def document_list(documents: Iterable[Document]) -> list[Document]:
    """Documents as a list, or a ValueError where they are something else, such as ids."""
    listed = list(documents)
    for document in listed:
        if not isinstance(document, Document):
            raise ValueError(f"expected documents, as index.get(ids) or a search gives them, not {document!r}")
    return listed


def id_list(ids: Iterable[str]) -> list[str]:
    """Ids as a list, or a ValueError where they are something else, such as one string."""
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise ValueError(f"ids must be a list of ids, not {ids!r}")
    listed = list(ids)
    wrong = [id for id in listed if not isinstance(id, str)]
    if wrong:
        raise ValueError(f"ids are strings, not {wrong[0]!r}")
    return listed
