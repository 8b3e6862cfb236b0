"""Passages: what searches of an index lately returned, recognised where a prompt quotes it.

Between a retriever and a chat model a chain turns documents into one string, and nothing but their text survives. That
text stands in the prompt letter for letter, so it can be found again. Found text is only a claim: whether there is a
state for it is asked of the index, which compares contents. The query stands in the prompt too, so the scores of its
search can be found as well.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

from gritrag.index.index import Index
from gritrag.records import Document, Hit

__all__ = ["Passages", "Span", "identify", "passages_of"]

MAX_PASSAGES = 4096
MAX_QUERIES = 256
ANCHOR = 16
"""Characters by which a passage is looked for. Shorter ones are left as text: they save nothing and match by chance."""


class Span(NamedTuple):
    """Where a text quotes a document: `[start, end)` in characters."""

    start: int
    end: int
    document: Document


class Passages:
    """A bounded memory of documents by their text, and of searches by their query, the latest kept. Safe to use from
    several threads."""

    def __init__(self, capacity: int = MAX_PASSAGES) -> None:
        self._capacity = capacity
        self._by_text: OrderedDict[str, Document] = OrderedDict()
        self._scores: OrderedDict[str, dict[str, float]] = OrderedDict()
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

    def note_search(self, query: str, hits: Sequence[Hit]) -> None:
        """Remember what a search for a text has returned to the user."""
        self.note(hit.document for hit in hits)
        with self._lock:
            self._scores[query.strip()] = {hit.document.id: hit.score for hit in hits}
            self._scores.move_to_end(query.strip())
            while len(self._scores) > MAX_QUERIES:
                self._scores.popitem(last=False)

    def scores(self, ids: Sequence[str], asked: str) -> list[float] | None:
        """What the documents scored in the last search that returned all of them and whose query stands in `asked`;
        of several queries, the longest counts. None if there is none."""
        with self._lock:
            known = [
                (query, scores)
                for query, scores in self._scores.items()
                if query in asked and all(id in scores for id in ids)
            ]
        if not known:
            return None
        _, found = max(known, key=lambda each: len(each[0]))
        return [found[id] for id in ids]

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
_BY_PATH: WeakValueDictionary[str, Passages] = WeakValueDictionary()
_LOCK = threading.Lock()


def passages_of(index: Index) -> Passages:
    """The passages of an index: one memory for all that search it and all that answer from it in this process, whether
    they hold one open index or several, such as one to write and one to read."""
    with _LOCK:
        if index not in _PASSAGES:
            _PASSAGES[index] = _BY_PATH.setdefault(os.path.realpath(index.path), Passages())
        return _PASSAGES[index]


def identify(index: Index, document: Document) -> Document | None:
    """The document of the index with the very text of `document`, under the id that it claims or one lately returned.

    An id is a hint and proves nothing; text decides, and so does a title, if `document` has one.
    """
    for candidate in (document, passages_of(index).with_text(document.text)):
        with index.snapshot():  # or it could be deleted between the two
            if candidate is None or candidate.id not in index:
                continue
            (stored,) = index.get([candidate.id])
        if stored.text.strip() == document.text.strip() and document.title.strip() in ("", stored.title.strip()):
            return stored
    return None
