"""A quota is kept by letting go of the states that are of least use, and nothing but time is lost by that."""

import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hash_reader import HashReader

from gritrag.index.index import Index
from gritrag.index.storage import quota
from gritrag.records import Document

Make = Callable[..., Index]
ONE = 800  # a state of the corpus is 776 bytes with its header, and is reserved 512 + 5 * 100
QUOTA = 5 * ONE


def held(index: Index) -> list[str]:
    """Which documents have a state, without asking for one."""
    keys = {row.key for row in index._parts.catalog.states()}
    return [id for id in index if index._parts.catalog.entries([id])[0].state_key in keys]


def ask(index: Index, reader: HashReader, *ids: str) -> None:
    """As an answer does: what is missing is read, used and given back."""
    for document, state in zip(index.get(ids), index.load_states(index.get(ids)), strict=True):
        if state is None:
            index.store_state(document, reader.state(reader.document_token_ids(document)))


def bytes_of_states(index: Index) -> int:
    return sum(path.stat().st_size for path in index.path.glob("states/*/*"))


@pytest.fixture
def full(make: Make, corpus: list[Document]) -> Index:
    """An index of 30 documents that has room for the states of some."""
    index = make(state_quota=QUOTA)
    with pytest.warns(UserWarning, match=f"quota of {QUOTA:,} bytes"):
        index.add(corpus)
    return index


def test_what_is_asked_for_takes_the_place_of_what_never_was(full: Index, reader: HashReader) -> None:
    before = held(full)
    assert 3 <= len(before) < 30
    ask(full, reader, "d25")
    after = held(full)
    assert "d25" in after
    assert len(after) == len(before)
    assert len(set(before) - set(after)) == 1
    assert bytes_of_states(full) <= QUOTA
    assert len(full) == 30
    assert full.verify() == ([], [])


def test_the_most_asked_for_stay(full: Index, reader: HashReader) -> None:
    places = len(held(full))
    popular = [f"d{10 + i}" for i in range(places)]
    for _ in range(3):
        ask(full, reader, *popular)
    assert held(full) == popular
    ask(full, reader, "d1", "d2", "d3")
    assert held(full) == popular, "asked for once is not asked for three times"
    for _ in range(4):
        ask(full, reader, "d1")
    assert "d1" in held(full)
    assert bytes_of_states(full) <= QUOTA


def test_adding_beyond_the_quota_evicts_nothing_and_writes_nothing(full: Index, reader: HashReader) -> None:
    """Otherwise the states of a large corpus would all be written, each to be thrown away for the next."""
    before = held(full)
    files = {path: path.stat().st_mtime_ns for path in full.path.glob("states/*/*")}
    full.add([f"more{i} words here, and no fewer than the others" for i in range(40)])
    assert held(full) == before
    assert {path: path.stat().st_mtime_ns for path in full.path.glob("states/*/*")} == files


def test_two_documents_do_not_keep_evicting_each_other(full: Index, reader: HashReader) -> None:
    for _ in range(3):
        ask(full, reader, *held(full))  # all in use
    written = []
    for turn in range(20):
        before = held(full)
        ask(full, reader, ("d25", "d26")[turn % 2])
        written.append(held(full) != before)
    assert sum(written) <= 3
    assert {"d25", "d26"} <= set(held(full))


def test_old_use_counts_less_than_new(full: Index, reader: HashReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "HALF_LIFE", 4)
    fashion = held(full)
    for _ in range(5):
        ask(full, reader, *fashion)
    for _ in range(4):
        ask(full, reader, *(f"d{20 + i}" for i in range(len(fashion))))
    assert held(full) == [f"d{20 + i}" for i in range(len(fashion))]


def test_a_large_state_has_to_be_of_more_use_than_a_small_one(make: Make, reader: HashReader) -> None:
    index = make(state_quota=7000)
    large, small = Document("word " * 50, id="large"), [Document(f"small{i}", id=f"s{i}") for i in range(8)]
    index.add([large])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index.add(small)
    ask(index, reader, "large", *(document.id for document in small))
    assert "large" not in held(index), "one use on 5 kB is worth less than one on 700 bytes"
    assert len(held(index)) >= 7


def test_use_is_remembered_by_the_next_who_opens_the_index(full: Index, reader: HashReader) -> None:
    popular = held(full)[1:]
    for _ in range(2):
        ask(full, reader, *popular)
    full.close()
    with Index.open(full.path, model=reader, mode="rw") as again:
        ask(again, reader, "d25")
        assert held(again) == [*popular, "d25"]


def test_reading_writes_nothing_until_something_else_does(full: Index, reader: HashReader) -> None:
    def files(root: Path) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}

    before = files(full.path)
    for _ in range(50):
        full.load_states(full.get(held(full)))
    assert files(full.path) == before
    full.close()
    database = sqlite3.connect(full.path / "catalog.sqlite")
    assert {uses for (uses,) in database.execute("SELECT round(uses) FROM states")} == {50.0}
    database.close()


def test_bytes_are_told_by_codec(make: Make, reader: HashReader, corpus: list[Document]) -> None:
    index = make()
    index.add(corpus)
    stats = index.stats()
    (codec,) = stats["codecs"]
    assert codec == "bf16"
    assert stats["codecs"]["bf16"]["states"] == 30
    assert stats["codecs"]["bf16"]["bytes"] == bytes_of_states(index) == stats["bytes"]["states"]
    per_token = stats["codecs"]["bf16"]["bytes_per_token"]
    assert per_token == stats["state_bytes_per_token"] == bytes_of_states(index) / stats["tokens"]
    assert make("none", states="none").stats()["codecs"] == {}
