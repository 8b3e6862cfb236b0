"""Everything that cannot be stored is refused by name, with a remedy, before anything is written."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hash_reader import HashReader

from gritrag import render
from gritrag.codecs import get_codec
from gritrag.index.errors import DamagedIndex
from gritrag.index.index import Index
from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.checksums import first_checksums
from gritrag.index.storage.manifest import parse_bytes
from gritrag.index.storage.packed import bytes_per_token, decode, encode
from gritrag.records import Document

Make = Callable[..., Index]
GOOD = Document("good text", id="good")


def nested(levels: int) -> dict[str, Any]:
    """Metadata of so many objects and lists, one in another."""
    inner: Any = 1
    for level in range(levels - 1):
        inner = [inner] if level % 2 else {"a": inner}
    return {"a": inner}


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([GOOD, ""], r"document 1 .*has no text"),
        ([GOOD, Document(" \n\t", id="blank", title="title")], "'blank'.*has no text"),
        ([GOOD, Document("half \ud83d emoji", id="torn")], "'torn'.*lone surrogate.*errors='replace'"),
        ([GOOD, Document("text", id="torn", title="\udc80")], "'torn'.*lone surrogate"),
        ([GOOD, Document("text", id="\udc80")], "lone surrogate"),
        ([GOOD, Document("text", id="torn", metadata={"a": ["\udc80"]})], "'torn'.*lone surrogate"),
        ([GOOD, Document("text", id="torn", metadata={"\udc80": 1})], "'torn'.*lone surrogate"),
        ([GOOD, Document("text", id="odd", metadata={"a": {1, 2}})], "'odd'.*not JSON"),
        ([GOOD, Document("text", id="odd", metadata={"a": float("nan")})], "'odd'.*not JSON"),
        ([GOOD, Document("text", id="odd", metadata={3: "a"})], "'odd'.*not JSON.*3"),
        ([GOOD, Document("text", id="odd", metadata={"a": 10**400})], "'odd'.*not JSON.*float64"),
        ([GOOD, Document("text", id="odd", metadata=[1])], "'odd'.*not JSON"),
        ([GOOD, Document("text", id="odd", metadata=nested(65))], "'odd'.*not JSON.*more than 64 levels"),
        ([GOOD, Document("text", id="odd", metadata=nested(900))], "'odd'.*not JSON.*more than 64 levels"),
        ([GOOD, Document("text", id="odd", metadata=nested(9000))], "'odd'.*not JSON.*(recursion|nested)"),
        ([GOOD, Document("text", id="odd", metadata={"a": [{"b": {3: 1}}]})], "'odd'.*not JSON.*names.*3"),
        ([GOOD, Document("word " * 64, id="long")], "'long'.*65 tokens.* 64 .*gritrag.tokens.chunk_documents"),
        ([GOOD, Document("w " * 2_500_000, id="5 MB")], "'5 MB'.*2500001 tokens.* 64 "),
        ([GOOD, Document("a", id="x"), Document("b", id="x")], "document 2 .*'x'.*document 1.*different contents"),
        ([GOOD, Document("a", id="x"), Document("a", id="x", metadata={"n": 1})], "'x'.*different contents"),
        ([GOOD, {"text": "a"}], "document 1 is a dict"),
        ([GOOD, None], "document 1 is a NoneType"),
        ("one string", "list.*not one str"),
        (GOOD, "list.*not one Document"),
        (3, "list.*not one int"),
    ],
)
def test_a_bad_corpus_is_refused_whole(make: Make, documents: Any, message: str) -> None:
    index = make()
    with pytest.raises(ValueError, match=message):
        index.add(documents)
    with pytest.raises(ValueError, match=message):
        Index.estimate(index.model, documents)
    assert len(index) == 0
    assert list(index.path.glob("states/*/*")) == []
    assert index.verify() == ([], [])


def test_metadata_of_the_most_levels_come_back_and_can_be_shown(make: Make) -> None:
    index = make()
    index.add([Document("good text", id="deep", metadata=nested(64))])
    (hit,) = index.search("good")
    assert json.loads(render.as_json(hit))["document"]["metadata"] == nested(64)


def test_of_no_documents_nothing_is_stored_and_nothing_costs(make: Make) -> None:
    index = make()
    for nothing in ([], iter([])):
        assert index.add(nothing) == (0, 0, 0)
    assert index.add([], on_conflict="error") == (0, 0, 0)
    assert Index.estimate(index.model, []) == (0, 0, 0, 0, 0, 0.0)
    assert len(index) == 0


def test_a_lone_surrogate_is_refused_wherever_it_is_asked_for(make: Make) -> None:
    index = make()
    index.add([GOOD])
    (state,) = index.load_states(index.get(["good"]))
    torn = "torn \ud83d"
    told = r"'torn \\ud83d' holds a lone surrogate \('\\ud83d'\)"
    for act in (
        lambda: index.get(["good", torn]),
        lambda: index.load_states([Document("good text", id=torn)]),
        lambda: index.store_state(Document("good text", id=torn), state),
        lambda: index.delete(ids=[torn]),
        lambda: torn in index,
    ):
        with pytest.raises(ValueError, match=told):
            act()
    for where in ({torn: 1}, {"a": torn}, {"a": {"$nin": ["b", torn]}}, {"$not": {"a": {"$gt": torn}}}):
        with pytest.raises(ValueError, match=told):
            index.search("good", where=where)
        with pytest.raises(ValueError, match=told):
            index.delete(where=where)
    assert len(index) == 1
    assert index.verify() == ([], [])


def test_a_reader_that_fails_leaves_the_index_as_it_was(make: Make, reader, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make()
    index.add([GOOD])
    read = reader.read_documents

    def spoil(change: Callable[[Any], Any]) -> None:
        monkeypatch.setattr(reader, "read_documents", lambda texts: [change(reading) for reading in read(texts)])

    spoil(lambda reading: reading._replace(vector=np.full(8, np.nan, np.float32)))
    with pytest.raises(ValueError, match=r"'bad'.*not finite"):
        index.add([Document("more", id="bad")])
    spoil(lambda reading: reading._replace(vector=reading.vector[:5]))
    with pytest.raises(ValueError, match=r"'bad'.*\[5\].*\[8\]"):
        index.add([Document("more", id="bad")])
    spoil(lambda reading: reading._replace(state=reader.state([4, 5, 6])))
    with pytest.raises(ValueError, match=r"'bad'.*3 tokens.*2 tokens"):
        index.add([Document("more", id="bad")])
    assert list(index) == ["good"]
    assert index.verify() == ([], [])


def test_ids_that_are_not_there_are_named(make: Make) -> None:
    index = make()
    index.add([GOOD])
    with pytest.raises(ValueError, match=r"2 of 3 ids.*'a', 'b'"):
        index.get(["a", "good", "b"])
    with pytest.raises(ValueError, match="list of ids, not 'good'"):
        index.get("good")
    with pytest.raises(ValueError, match="not 3"):
        index.get([3])
    for id in ("a", 3):
        with pytest.raises(KeyError):
            index[id]
    assert index["good"] == GOOD


def test_a_document_that_is_not_there_has_no_state_and_gets_none(make: Make) -> None:
    index = make()
    index.add([GOOD])
    (state,) = index.load_states([GOOD])
    with pytest.raises(ValueError, match="expected documents"):
        index.load_states(["good"])
    for other in (replace(GOOD, id="a"), replace(GOOD, text="other")):
        assert index.load_states([other]) == index.load_vectors([other]) == [None]
        index.store_state(other, state)
    assert index.stats()["states"] == 1


def test_deleting_nothing_in_particular_is_refused(make: Make) -> None:
    index = make()
    index.add([GOOD])
    with pytest.raises(ValueError, match=r"where={} deletes every"):
        index.delete()
    with pytest.raises(ValueError, match="list of ids"):
        index.delete(ids="good")
    with pytest.raises(ValueError, match=r"\$near"):
        index.delete(where={"n": {"$near": 1}})
    assert len(index) == 1


def test_options_that_do_not_exist_are_refused_with_those_that_do(tmp_path: Path, make: Make, reader) -> None:
    with pytest.raises(ValueError, match=r"int3.*float32, bf16, .*or 'none'"):
        make(states="int3")
    with pytest.raises(ValueError, match=r"'many'.*20GB"):
        make(state_quota="many")
    assert not (tmp_path / "index").exists()
    with pytest.raises(ValueError, match="replace, skip, error"):
        make().add([GOOD], on_conflict="ignore")
    with pytest.raises(ValueError, match="bf16"):
        get_codec("zip")


@pytest.mark.parametrize(
    ("size", "count"),
    [("20GB", 20 * 10**9), ("512 MiB", 512 * 2**20), ("1.5k", 1500), ("7", 7), ("0B", 0), (12, 12), (None, None)],
)
def test_sizes(size: str | int | None, count: int | None) -> None:
    assert parse_bytes(size) == count


@pytest.mark.parametrize("size", ["", "GB", "-1GB", -1, True, 1.5, "1 000", "nan"])
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(size)


@pytest.mark.parametrize("name", ["float32", "bf16"])
def test_a_codec_keeps_its_contract(name: str, reader: HashReader) -> None:
    state = reader.state(range(1, 20))
    tensors = encode(state, name)
    again = decode(tensors, name, "causal")
    assert again.token_ids.tolist() == state.token_ids.tolist()
    assert (again.keys - state.keys).abs().max() <= 2**-8 * state.keys.abs().max()
    assert (again.values - state.values).abs().max() <= 2**-8 * state.values.abs().max()
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size == bytes_per_token(name, reader.state_elements_per_token) * 19


def test_a_file_that_is_no_catalog_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "catalog.sqlite"
    with pytest.raises(ValueError, match=r"catalog\.sqlite"):
        Catalog(file, "r")
    file.write_bytes(b"this is no database" * 100)
    for mode in ("r", "rw"):
        with pytest.raises(DamagedIndex, match=r"catalog\.checksums"):
            Catalog(file, mode)
    first_checksums(file)
    for mode in ("r", "rw"):
        with pytest.raises(ValueError, match=r"catalog\.sqlite.*not a database"):
            Catalog(file, mode)


@pytest.mark.parametrize("wrong", [{"id": 7}, {"title": None}])
def test_id_and_title_are_strings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="id and title of a document must be strings"):
        Document("text", **wrong)


def test_a_filter_beyond_the_depth_of_the_parser_is_refused_and_is_no_damage(make: Make) -> None:
    index = make()
    index.add([GOOD])
    nests: list[Callable[[Any], Any]] = [
        lambda inner: {"$not": inner},
        lambda inner: {"$and": [inner]},
        lambda inner: {"$not": {"$or": [{"a": {"$nin": [None, 1]}}, inner]}},
    ]
    for nest in nests:
        where: Any = {"a": {"$not": {"$eq": None}}}
        for _ in range(5):
            where = nest(where)
            index.search("good", where=where, mode="hybrid")
        for _ in range(20):
            where = nest(where)
        with pytest.raises(ValueError, match="nested more than 20 levels"):
            index.search("good", where=where, mode="hybrid")
    deep: dict[str, Any] = {"a": 1}
    for _ in range(5000):
        deep = {"$not": deep}
    with pytest.raises(ValueError, match="nested more than 20"):
        index.delete(where=deep)


def test_vectors_of_questions_must_fit_them(make: Make, reader) -> None:
    index = make()
    index.add([GOOD])
    for shape in ((1, 8), (2, 7), (2,)):
        with pytest.raises(ValueError, match=r"2 queries have shape \[2, 8\]"):
            index.search_many(["a", "b"], vectors=np.ones(shape, np.float32))
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            index.search_many(["a", "b"], vectors=np.array([[1.0] * 8, [1.0] * 7 + [wrong]], np.float32))
    with pytest.raises(ValueError, match="list of queries"):
        index.search_many("good")


def test_what_is_no_model_is_told_and_none_is_no_codec(tmp_path: Path, make: Make, reader) -> None:
    make().close()
    with pytest.raises(ValueError, match="no model 'nobody'"):
        Index.open(tmp_path / "index", model="nobody")
    with pytest.raises(ValueError, match="loaded GritModel or the name of one, not 3"):
        Index.open(tmp_path / "index", model=3)
    with pytest.raises(ValueError, match="codec"):
        Index.create(tmp_path / "other", model=reader, states=None)
