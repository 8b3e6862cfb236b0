"""Plain values that all layers of the package share. No torch, no numpy."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xxhash

__all__ = [
    "Answer",
    "Citation",
    "Document",
    "Event",
    "Fingerprint",
    "FingerprintMismatch",
    "Hit",
    "Timings",
    "Usage",
    "as_document",
    "as_documents",
    "as_hits",
    "check_hits",
    "checked_metadata",
]


@dataclass(frozen=True)
class Document:
    """One unit of text in an index.

    Args:
        text: what is read. White space around it is stripped when it is tokenised.
        id: name of the document in its index. Where it is not given it is made from text, title and metadata, so that
            adding the same thing twice stores it once, and one text with two sets of metadata is two documents.
        title: read before the text, on a line of its own, and shown in citations.
        metadata: JSON-serialisable facts to filter by. They are stored, and never read by the model.
    """

    text: str
    id: str = ""
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ValueError(f"a document's text must be a string, not {type(self.text).__name__}")
        if not isinstance(self.id, str) or not isinstance(self.title, str):
            raise ValueError(f"id and title of a document must be strings, got {self.id!r} and {self.title!r}")
        if not self.id:
            object.__setattr__(self, "id", _made_id(self))

    @property
    def has_given_id(self) -> bool:
        """Whether somebody chose the id; else it is made from the content, or a chunk's number in such a document."""
        if MADE_ID.fullmatch(self.id) is None:
            return True
        source, is_chunk, _ = self.id.partition("#")
        return self.metadata.get("source") != source if is_chunk else self.id not in _made_ids(self)

    @property
    def called(self) -> str:
        """What a message calls it: its id in quotes, or how it begins where nobody has given it one."""
        if self.has_given_id:
            return repr(self.id)
        begins = " ".join(self.text[:BEGINNING].split())
        return f"that begins {begins + '...' * (len(self.text) > BEGINNING)!r}"

    @property
    def content(self) -> str:
        """What the read pass reads: title (if any) and text, stripped."""
        title, text = self.title.strip(), self.text.strip()
        return f"{title}\n{text}" if title else text


MADE_ID = re.compile(r"[0-9a-f]{32}(#\d+)?")
BEGINNING = 40


def _made_id(document: Document) -> str:
    """Of text and title alone where there are no metadata, or none that an index would take."""
    try:
        return (
            content_id(document.text, document.title, document.metadata) if document.metadata else _plain_id(document)
        )
    except (TypeError, ValueError, RecursionError):
        return _plain_id(document)


def _made_ids(document: Document) -> set[str]:
    """Also that of the vector store, which is made from metadata even where there are none."""
    return {_made_id(document), _plain_id(document), content_id(document.text, document.title, {})}


def _plain_id(document: Document) -> str:
    content = f"{document.title}\0{document.text}".encode("utf-8", "surrogatepass")
    return xxhash.xxh3_128_hexdigest(content)


def content_id(text: str, title: str, metadata: Mapping[str, Any]) -> str:
    """32 hex digits over text, title and metadata, whatever order these are in; a title counts among them.

    Raises:
        TypeError, ValueError, RecursionError: the metadata are not JSON.
    """
    named = {"title": title, **metadata} if title else dict(metadata)
    return xxhash.xxh3_128_hexdigest(json.dumps([text, named], sort_keys=True).encode())


MAX_NUMBER = int(sys.float_info.max)
MAX_METADATA_DEPTH = 64
"""Levels of metadata. Whoever walks through them may be called deep in a program already, and what has been stored must
be readable from anywhere."""


def checked_metadata(metadata: Mapping[str, Any]) -> str:
    """Metadata as the JSON that an index stores, if it can: ``{"year": 1999}``.

    Raises:
        ValueError: they are not JSON (NaN and infinity are not), nested too deep, or hold a number beyond float64.
    """
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    level: list[Any] = [metadata]
    for _ in range(MAX_METADATA_DEPTH + 1):  # what is in the last is no level
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return text
    raise ValueError(f"nested more than {MAX_METADATA_DEPTH} levels deep")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"metadata names must be strings, not {name!r}")
        return value.values()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_NUMBER:
        raise ValueError("a number is beyond float64 (1.8e308): store it as a string")
    return value if isinstance(value, list | tuple) else ()


def as_document(item: "str | Document") -> Document:
    """A plain string is a document without a name."""
    return item if isinstance(item, Document) else Document(item)


def as_documents(items: "Iterable[str | Document]") -> list[Document]:
    """A list of documents and plain strings as documents.

    Raises:
        ValueError: one of them instead of a list, or something else in it.
    """
    listed = _listed("documents", items)
    for position, item in enumerate(listed):
        if not isinstance(item, str | Document):
            raise ValueError(f"document {position} is a {type(item).__name__}: give a string or a Document")
    return [as_document(item) for item in listed]


def _listed(what: str, items: Iterable[Any]) -> list[Any]:
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise ValueError(f"{what} must be a list or other iterable, not one {type(items).__name__}")
    return list(items)


@dataclass(frozen=True)
class Fingerprint:
    """Everything that a vector or a state depends on, by name: two equal fingerprints read alike.

    `parts` maps a field (``weights``, ``adapter``, ``tokenizer``, ``template``, ``pooling``, ``reading``) to a
    short string, itself a hash where the thing is large. The dtype is no part of it: an index that a GPU built
    in bfloat16 may be served in float32.
    """

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """32 hex digits over all parts, independent of their order."""
        lines = "\n".join(f"{name}={self.parts[name]}" for name in sorted(self.parts))
        return xxhash.xxh3_128_hexdigest(lines.encode())

    def check(self, other: "Fingerprint", what: str) -> None:
        """Raise `FingerprintMismatch` naming every field in which `other` (the model in hand) differs."""
        names = sorted(set(self.parts) | set(other.parts))
        differing = [name for name in names if self.parts.get(name) != other.parts.get(name)]
        if differing:
            lines = "; ".join(
                f"{name}: {what} has {self.parts.get(name, 'none')}, the model has {other.parts.get(name, 'none')}"
                for name in differing
            )
            raise FingerprintMismatch(
                f"{what} was built by another reader. {lines}. Load the model it was built with, or build it anew.",
                differing,
            )


class FingerprintMismatch(ValueError):  # noqa: N818 - it says what it found, as KeyError's kin do
    """An index or a state was made by another model, adapter, tokenizer, template, pooling or reading."""

    def __init__(self, message: str, fields: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)


@dataclass(frozen=True)
class Hit:
    """A document that a search found. `score` is higher for better; its scale depends on the search mode. `similarity`
    is that of its vector to the question's, where the search has compared them. `is_complement` says that it explains
    words of the question that the best hit does not: ranking from states, or reading the question, found that both are
    needed."""

    document: Document
    score: float
    rank: int
    similarity: float | None = field(default=None, compare=False)
    is_complement: bool = field(default=False, compare=False)


def as_hits(items: Iterable[str | Document | Hit]) -> list[Hit]:
    """Hits as they are; documents and plain strings as hits of score 0, ranked by place. Errors: see `as_documents`."""
    listed = _listed("hits", items)
    documents = as_documents(item.document if isinstance(item, Hit) else item for item in listed)
    ranked = enumerate(zip(listed, documents, strict=True), start=1)
    return [item if isinstance(item, Hit) else Hit(document, 0.0, rank) for rank, (item, document) in ranked]


def check_hits(items: Iterable[Hit]) -> list[Hit]:
    """A list of hits as it is.

    Raises:
        ValueError: one of them instead of a list, or something else in it.
    """
    listed = _listed("hits", items)
    for position, item in enumerate(listed):
        if not isinstance(item, Hit):
            raise ValueError(f"hit {position} is a {type(item).__name__}: give what a search found, or use documents=")
    return listed


class Citation(NamedTuple):
    """A document whose tokens really were in the context of an answer, and where: `[start, end)` in tokens."""

    id: str
    title: str
    start: int
    end: int


@dataclass(frozen=True)
class Usage:
    """Tokens. `prompt_tokens` counts the whole context, `cached_tokens` those of it that were not read again."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds. `first_token` and `total` count from the call, so they include `retrieve`, `load` and `place`."""

    retrieve: float
    load: float
    place: float
    first_token: float
    total: float


@dataclass(frozen=True)
class Answer:
    """What `RAG.ask` returns.

    `exact` says that this answer is token for token the answer of the uncached run of the same segments: nothing was
    reused, or one causally read document that stands first was. `unanswerable` is the probability that the documents do
    not hold the answer; None where the model was not calibrated to tell.
    """

    text: str
    hits: Sequence[Hit]
    citations: Sequence[Citation]
    usage: Usage
    timings: Timings
    exact: bool
    mode: str
    finish_reason: str
    unanswerable: float | None = None


@dataclass(frozen=True)
class Event:
    """One step of `RAG.stream`; exactly one field is set: first `hits`, then pieces of `text`, `answer` last."""

    hits: Sequence[Hit] | None = None
    text: str | None = None
    answer: Answer | None = None
