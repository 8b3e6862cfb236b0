"""Passages: what searches of an index lately returned, recognised where a prompt quotes it.

Between a retriever and a chat model a chain turns documents into one string, and nothing but their text survives. That
text stands in the prompt letter for letter, so it can be found again. Found text is only a claim: whether there is a
state for it is asked of the index, which compares contents.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

from gritrag.index.index import Index
from gritrag.records import Document

__all__ = ["Passages", "Span", "passages_of"]

MAX_PASSAGES = 4096
ANCHOR = 16
"""Characters by which a passage is looked for. Shorter ones are left as text: they save nothing and match by chance."""


class Span(NamedTuple):
    """Where a text quotes a document: `[start, end)` in characters."""

    start: int
    end: int
    document: Document


class Passages:
    """A bounded memory of documents by their text, the latest kept. Safe to use from several threads."""

    def __init__(self, capacity: int = MAX_PASSAGES) -> None:
        self._capacity = capacity
        self._by_text: OrderedDict[str, Document] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_text)

    def note(self, documents: Iterable[Document]) -> None:
        """Remember documents that were returned to the user."""
        with self._lock:
            for document in documents:
                text = document.text.strip()
                self._by_text[text] = document
                self._by_text.move_to_end(text)
            while len(self._by_text) > self._capacity:
                self._by_text.popitem(last=False)

    def with_text(self, text: str) -> Document | None:
        """The document that was last returned with this text."""
        with self._lock:
            return self._by_text.get(text.strip())

    def find(self, text: str) -> list[Span]:
        """Every whole quotation in `text`, from the left, the longest first; they do not overlap.

        A passage that goes on as a longer word is no quotation. A title on the line before it belongs to it.
        Time grows with the length of `text` and hardly with the number of passages.
        """
        with self._lock:
            known = list(self._by_text.items())
        documents = {form: document for passage, document in known for form in (document.content, passage)}
        by_anchor: dict[str, list[str]] = {}
        for form in sorted(documents, key=len, reverse=True):
            if len(form) >= ANCHOR:
                by_anchor.setdefault(form[:ANCHOR], []).append(form)
        return [Span(start, start + len(form), documents[form]) for start, form in _quotations(text, by_anchor)]


def _quotations(text: str, by_anchor: dict[str, list[str]]) -> Iterator[tuple[int, str]]:
    start, last = 0, len(text) - ANCHOR
    while start <= last:
        for passage in by_anchor.get(text[start : start + ANCHOR], ()):
            if text.startswith(passage, start) and _is_whole(text, start, start + len(passage)):
                yield start, passage
                start += len(passage)
                break
        else:
            start += 1


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether no word is cut at either end."""
    cut_before = start > 0 and text[start - 1].isalnum() and text[start].isalnum()
    cut_behind = end < len(text) and text[end - 1].isalnum() and text[end].isalnum()
    return not cut_before and not cut_behind


_PASSAGES: WeakKeyDictionary[Index, Passages] = WeakKeyDictionary()
_LOCK = threading.Lock()


def passages_of(index: Index) -> Passages:
    """The passages of an index: one memory for all that search it and all that answer from it."""
    with _LOCK:
        return _PASSAGES.setdefault(index, Passages())
