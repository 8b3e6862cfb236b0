"""Vectors in Qdrant (local mode): the same answers as FAISS, in step with the catalog, and defined when it is away."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hash_reader import HashReader
from qdrant_client.http.exceptions import ResponseHandlingException

from gritrag.index.index import Index
from gritrag.index.storage import qdrant
from gritrag.records import Document

Make = Callable[..., Index]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    location = str(tmp_path / "qdrant")
    yield location
    qdrant.connect(location).close()
    qdrant.connect.cache_clear()


def ranking(index: Index, **options: Any) -> list[tuple[str, float]]:
    return [
        (hit.document.id, pytest.approx(hit.score, abs=1e-5)) for hit in index.search("amber river1 stone7", **options)
    ]


def count(index: Index) -> int:
    vectors = index._parts.vectors
    assert isinstance(vectors, qdrant.QdrantVectors)
    return qdrant.connect(vectors._location).count(vectors._collection).count


def test_it_finds_what_faiss_finds(make: Make, corpus: list[Document], place: str) -> None:
    theirs, ours = make("faiss"), make("qdrant", vectors_at=place)
    for index in (theirs, ours):
        index.add(corpus)
    for options in (
        {"k": 7, "mode": "dense"},
        {"k": 50, "mode": "dense"},
        {"k": 5, "mode": "dense", "where": {"colour": "red", "year": {"$gt": 2003}}},
        {"k": 5, "mode": "dense", "where": {"year": {"$not": {"$lt": 2010}}}, "mmr": 0.5},
        {"k": 9, "mode": "hybrid"},
    ):
        assert ranking(ours, **options) == ranking(theirs, **options)
    assert ours.search("amber", 3, where={"colour": "none"}, mode="dense") == []
    assert not (ours.path / "vectors").exists()
    assert ours.stats()["vectors"]["engine"] == "qdrant"


def test_it_follows_every_change(make: Make, reader: HashReader, corpus: list[Document], place: str) -> None:
    index = make(vectors_at=place)
    index.add(corpus[:20])
    index.search("amber", mode="dense")
    assert count(index) == 20
    index.delete(ids=["d3", "d4"])
    assert count(index) == 18
    index.add([Document("quite another text", id="d5")])
    assert index.search("quite another text", 1, mode="dense")[0].document.id == "d5"
    assert count(index) == 18
    with Index.open(index.path, model=reader) as other:
        index.add(corpus[20:])
        found = other.search("stone25", 40, mode="dense")
        assert {hit.document.id for hit in found} == set(index.ids())
        assert count(index) == 18, "a reader changes nothing"
    index.close()
    with Index.open(index.path, model=reader) as again:
        assert count(again) == len(again) == 28
        assert again.verify() == ([], [])


def test_a_server_that_is_away_loses_nothing(
    make: Make, reader: HashReader, corpus: list[Document], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make(vectors_at=place)
    index.add(corpus[:10])
    index.search("amber", mode="dense")

    def away(location: str) -> None:
        raise ResponseHandlingException(OSError("connection refused"))

    with monkeypatch.context() as patch:
        patch.setattr(qdrant, "connect", away)
        with pytest.raises(ConnectionError, match="cannot be reached"):
            index.search("amber", mode="dense")
        assert index.search("amber", mode="sparse")
        index.add(corpus[10:])
        with pytest.warns(UserWarning, match="next writer brings Qdrant in step"):
            index.delete(ids=["d0"])
        assert any("cannot be reached" in problem for problem in index.verify().problems)
        with pytest.warns(UserWarning, match="next writer"):
            index.close()
    with Index.open(index.path, model=reader, mode="rw") as writer:
        assert len(writer.search("amber", 99, mode="dense")) == count(writer) == 29
        assert writer.verify() == ([], [])


def test_a_copy_has_vectors_of_its_own(
    make: Make, reader: HashReader, corpus: list[Document], place: str, tmp_path: Path
) -> None:
    index = make(vectors_at=place)
    index.add(corpus)
    index.export(tmp_path / "copy")
    with Index.open(tmp_path / "copy", model=reader, mode="rw") as copy:
        copy.delete(ids=["d1"])
        assert copy.stats()["vectors"] == {}
    assert len(index.search("amber", 99, mode="dense")) == 30


def test_the_place_must_be_one(make: Make) -> None:
    with pytest.raises(ValueError, match="vectors_at"):
        make(vectors_at="")
