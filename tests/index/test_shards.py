"""Shards are read as one index: what one index of the same documents would find, and nothing twice."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hash_reader import HashReader

from gritrag import RAG, open_many
from gritrag.index.index import Index
from gritrag.index.shards import Shards
from gritrag.model.grit import GritModel
from gritrag.records import Document, FingerprintMismatch

Make = Callable[..., Index]
QUESTIONS = ("amber birch", "stone7", "river2 stone11 cedar")


@pytest.fixture
def whole(make: Make, corpus: list[Document]) -> Index:
    """All documents in one index."""
    index = make("whole", states="float32")
    index.add(corpus)
    return index


@pytest.fixture
def shards(make: Make, reader: HashReader, corpus: list[Document], tmp_path: Path) -> Shards:
    """The same documents in three indexes, of different sizes."""
    for number, some in enumerate((corpus[:5], corpus[5:23], corpus[23:])):
        with make(f"shard{number}", states="float32") as index:
            index.add(some)
    return open_many([tmp_path / f"shard{number}" for number in range(3)], model=reader)


def scored(index: Index, question: str, k: int, **options: object) -> list[tuple[str, float]]:
    return [(hit.document.id, pytest.approx(hit.score, abs=1e-6)) for hit in index.search(question, k, **options)]


@pytest.mark.parametrize("where", [None, {"year": {"$gte": 2005}}, {"colour": "red", "year": {"$lt": 1994}}])
@pytest.mark.parametrize("mmr", [None, 0.4])
def test_vectors_rank_as_in_one_index(
    shards: Shards, whole: Index, where: dict[str, object] | None, mmr: float
) -> None:
    for question in QUESTIONS:
        for k in (1, 7, 50):
            options = {"where": where, "mode": "dense", "mmr": mmr}
            assert scored(shards, question, k, **options) == scored(whole, question, k, **options)
    vector = whole.model.encode_query(["amber"])[0]
    found = [hit.document.id for hit in shards.search_by_vector(vector, 6, where=where)]
    assert found == [hit.document.id for hit in whole.search_by_vector(vector, 6, where=where)]


@pytest.mark.parametrize("mode", ["sparse", "hybrid"])
def test_words_find_what_one_index_finds_in_one_ranking(shards: Shards, whole: Index, mode: str) -> None:
    for question in QUESTIONS:
        found = shards.search(question, 30, mode=mode)
        assert {hit.document.id for hit in found} == {hit.document.id for hit in whole.search(question, 30, mode=mode)}
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
    assert shards.search("stone7", 1, mode=mode)[0].document.id == "d7"


def test_documents_states_and_vectors_come_from_the_shard_that_holds_them(
    shards: Shards, whole: Index, corpus: list[Document]
) -> None:
    some = [corpus[29], corpus[0], corpus[12]]
    assert shards.get([document.id for document in some]) == some
    assert shards["d12"] == corpus[12]
    assert len(shards) == 30
    assert list(shards) == [document.id for document in corpus]
    assert shards.ids({"year": {"$lt": 1992}}) == ["d0", "d1"]
    assert "d29" in shards
    assert "nobody" not in shards
    asked = [*some, Document("not here", id="x")]
    for state, expected in zip(shards.load_states(asked), whole.load_states(asked), strict=True):
        assert (state is None) == (expected is None)
        assert state is None or torch.equal(state.keys, expected.keys)
    *vectors, none = shards.load_vectors(asked)
    assert none is None
    for vector, expected in zip(vectors, whole.load_vectors(some), strict=True):
        assert vector.tolist() == expected.tolist()
    with pytest.raises(KeyError):
        shards["nobody"]
    with pytest.raises(ValueError, match=r"1 of 1 ids.*'nobody'"):
        shards.get(["d1", "nobody"])


def test_fields_tokens_and_notes_are_those_of_all_shards(shards: Shards, whole: Index, tmp_path: Path) -> None:
    assert shards.field("year") == whole.field("year")
    assert shards.tokens == whole.tokens
    assert shards.note("name") is None
    with Index.open(tmp_path / "shard1", model=shards.model, mode="rw") as index:
        index.set_note("name", "value")
    assert shards.note("name") == "value"
    with pytest.raises(ValueError, match="one by one"):
        shards.set_note("name", "other")
    with pytest.raises(ValueError, match="expected documents"):
        shards.load_states(["a"])


def test_a_commit_in_a_shard_is_seen_and_a_snapshot_does_not_change(
    shards: Shards, reader: HashReader, corpus: list[Document]
) -> None:
    before = shards.digest
    with shards.snapshot():
        assert "new" not in shards
        with Index.open(shards.indexes[1].path, model=reader, mode="rw") as writer:
            writer.add([Document("amber amber amber", id="new")])
        assert "new" not in shards
    assert shards["new"].text == "amber amber amber"
    assert shards.digest != before
    assert shards.stats()["documents"] == 31
    assert shards.verify() == ([], [])


def test_what_is_in_two_shards_or_of_two_models_is_refused(make: Make, reader: HashReader, tmp_path: Path) -> None:
    for name in ("one", "two"):
        with make(name) as index:
            index.add([Document("text", id="same"), Document("text", id=name)])
    with make("other", model=HashReader(weights="w1")) as index:
        index.add(["text"])
    with pytest.raises(ValueError, match=r"1 ids are in more than one shard .*'same'"):
        open_many([tmp_path / "one", tmp_path / "two"], model=reader)
    with pytest.raises(FingerprintMismatch, match="weights"):
        open_many([tmp_path / "one", tmp_path / "other"])
    with pytest.raises(ValueError, match="no shards"):
        open_many([])
    for one in (tmp_path / "one", str(tmp_path / "one")):
        with pytest.raises(ValueError, match="takes a list of paths, not one"):
            open_many(one, model=reader)
    with pytest.raises(ValueError, match="no index at"):
        open_many([tmp_path / "one", tmp_path / "nowhere"])
    Index.open(tmp_path / "one", model=reader, mode="rw").close()


def test_shards_are_read_only(shards: Shards, tmp_path: Path) -> None:
    for write in (
        lambda: shards.add(["text"]),
        lambda: shards.delete(ids=["d1"]),
        lambda: shards.compact(),
        lambda: shards.verify(repair=True),
        lambda: shards.export(tmp_path / "copy"),
    ):
        with pytest.raises(ValueError, match="written one by one"):
            write()
    assert not shards.writable
    shards.close()
    assert shards.closed


def test_answers_are_those_of_one_index(tiny_model: GritModel, tmp_path: Path) -> None:
    documents = [Document(f"The ferry number {n} sails at {n + 3}.", id=f"f{n}") for n in range(6)]
    for name, some in (("whole", documents), ("even", documents[::2]), ("odd", documents[1::2])):
        with Index.create(tmp_path / name, model=tiny_model, states="float32") as index:
            index.add(some)
    answers = []
    with (
        Index.open(tmp_path / "whole", model=tiny_model) as whole,
        open_many([tmp_path / "even", tmp_path / "odd"], model=tiny_model) as shards,
    ):
        for index in (whole, shards):
            rag = RAG(index, k=3, search_mode="dense")
            answers.append(rag.ask("When does ferry 4 sail?", max_new_tokens=6))
    one, many = answers
    assert [hit.document.id for hit in many.hits] == [hit.document.id for hit in one.hits]
    assert many.text == one.text
    assert many.usage == one.usage
