"""A tiny index, small enough to damage every byte of it, and a questionnaire that touches everything that it holds."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hash_reader import HashReader

from gritrag.index.index import Index
from gritrag.index.storage import schema
from gritrag.index.storage.states import StateFileWarning
from gritrag.records import Document

DOCUMENTS = [
    Document("amber birch", id="a", title="One", metadata={"year": 1990}),
    Document("birch cedar", id="b", metadata={"year": 2000}),
    Document("amber", id="c"),
]
READER = HashReader(dim=4, shape=(1, 1, 2))


@contextmanager
def small_pages() -> Iterator[None]:
    """SQLite's smallest pages, so that a table of three rows has no 4096 bytes: a page is a page, whatever its size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "PAGE_SIZE", 512)
        yield


def make_tiny(path: Path, states: str = "bf16") -> Index:
    with small_pages():
        index = Index.create(path, model=READER, states=states)
    index.add(DOCUMENTS)
    return index


def answers(index: Index) -> list[Any]:
    """What the index knows, by every way that leads to it. A state that is missing is read anew, and so as good."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StateFileWarning)
        states = index.load_states(index.get(list(index)))
    return [
        index.get(list(index)),
        [
            [(hit.document, round(hit.score, 5)) for hit in index.search("amber cedar", 3, mode=mode, where=where)]
            for mode in ("dense", "sparse")
            for where in (None, {"year": {"$gte": 1995}})
        ],
        [
            None if each is None else (each.keys.tolist(), each.values.tolist(), each.token_ids.tolist())
            for each in states
        ],
    ]


def agree(found: list[Any], expected: list[Any]) -> bool:
    """Equal but for states that are missing."""
    *found, states = found
    *wanted, whole = expected
    return found == wanted and all(each is None or each == good for each, good in zip(states, whole, strict=True))
