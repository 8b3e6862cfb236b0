"""A document on its way between LangChain and an index, and as a block of a message."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import BaseMessage, HumanMessage

from gritrag.records import Document, as_documents, content_id

__all__ = ["docs_to_messages", "from_langchain", "given_documents", "to_langchain"]

TITLE = "title"
"""Name under which LangChain's loaders put a title into metadata."""


def from_langchain(document: LangChainDocument, id: str | None = None) -> Document:
    """A LangChain document as an index stores it. A title in the metadata is the document's title, and is read with it.

    Whatever a loader puts into metadata goes in: NumPy's numbers as numbers, so that filters compare them; sets as
    sorted lists; NaN, which pandas has where nothing is, as None; what else is not JSON (dates, paths) as a string.

    Args:
        document: it is not changed.
        id: its name; the document's own where None, else made from text and metadata, so that adding the same thing
            twice stores it once, and one text from two places is kept twice.
    """
    metadata = json.loads(json.dumps(_plain(document.metadata)))
    title = metadata[TITLE] if isinstance(metadata.get(TITLE), str) else ""
    return Document(
        document.page_content, id or document.id or content_id(document.page_content, title, metadata), title, metadata
    )


def given_documents(documents: Iterable[LangChainDocument | Document | str]) -> list[Document]:
    """What a call is given to answer from, as documents; a plain string is one without a name.

    Raises:
        ValueError: one of them instead of a list, or something else in it.
    """
    if isinstance(documents, str | Mapping | LangChainDocument) or not isinstance(documents, Iterable):
        raise ValueError(f"documents must be a list or other iterable, not one {type(documents).__name__}")
    return as_documents(from_langchain(each) if isinstance(each, LangChainDocument) else each for each in documents)


def to_langchain(document: Document) -> LangChainDocument:
    """A document of an index for LangChain: `from_langchain` undone."""
    metadata = {TITLE: document.title} if document.title else {}
    return LangChainDocument(id=document.id, page_content=document.text, metadata={**metadata, **document.metadata})


def docs_to_messages(documents: Sequence[LangChainDocument]) -> list[BaseMessage]:
    """Documents as one message of ``text-plain`` blocks, for a place-holder in a chat prompt.

    Unlike text that is pasted into a prompt, a block keeps title and id, so `ChatGritRAG` need not look for its span,
    and other chat models that know such blocks can cite them. Without documents there is no message.
    """
    blocks: list[str | dict[str, Any]] = [_block(document) for document in documents]
    return [HumanMessage(content=blocks)] if blocks else []


def _block(document: LangChainDocument) -> dict[str, Any]:
    title = document.metadata.get(TITLE)
    return {
        "type": "text-plain",
        "mime_type": "text/plain",
        "text": document.page_content,
        **({"id": document.id} if document.id else {}),
        **({"title": title} if isinstance(title, str) and title else {}),
    }


def _plain(value: Any) -> Any:
    """As JSON has it, and the same in every process: names of documents are made from it."""
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {_name(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def _name(name: Any) -> Any:
    return name if isinstance(name, str | int | float | None) else str(name)
