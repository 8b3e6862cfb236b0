"""One text with two sets of metadata and no id is two documents, read once; no message speaks of an id nobody gave."""

import datetime
import re
from collections.abc import Callable
from types import MappingProxyType

import pytest
from hash_reader import HashReader

from gritrag.index.index import Index
from gritrag.records import Document
from gritrag.tokens import chunk_documents

Make = Callable[..., Index]
HEX = re.compile("[0-9a-f]{32}")


def test_both_are_kept_with_their_metadata_and_read_once(make: Make, reader: HashReader) -> None:
    index = make()
    twins = [Document("same words", metadata={"page": page, "by": {"name": "Ada"}}) for page in (1, 2)]
    assert index.add([*twins, "same words", twins[0]]) == (3, 0, 1)
    assert index.add([Document("same words", metadata={"by": {"name": "Ada"}, "page": 2}), "same words"]) == (0, 0, 2)
    for page in (1, 2):
        (hit,) = index.search("same words", where={"page": page})
        assert hit.document.metadata == {"page": page, "by": {"name": "Ada"}}
    assert [document.metadata for document in index.get(index.ids({"page": None}))] == [{}]
    assert reader.documents_read == 1
    assert index.stats()["states"] == 1
    assert index.delete(where={"page": 1}) == 1
    assert index.load_states(index.get([twins[1].id])) != [None]


@pytest.mark.parametrize("on_conflict", ["replace", "skip", "error"])
def test_later_ones_change_nothing_about_the_first(make: Make, on_conflict: str) -> None:
    index = make(states="none")
    index.add([Document("same words", metadata={"page": 1})], on_conflict=on_conflict)
    assert index.add([Document("same words", metadata={"page": 2})], on_conflict=on_conflict) == (1, 0, 0)
    assert sorted(document.metadata["page"] for document in index.get(index)) == [1, 2]


def test_an_id_from_a_text_alone_is_what_it_was() -> None:
    """Indexes that were made before hold it."""
    assert Document("same words").id == Document("same words", metadata={}).id == "2da1b9fe169a358dbe72de3ee49774e7"
    assert Document("words", title="same").id != Document("same words").id


def test_the_order_and_the_kind_of_the_mapping_do_not_count() -> None:
    ids = {
        Document("text", metadata=facts).id
        for facts in ({"a": 1, "b": [1, 2]}, {"b": (1, 2), "a": 1}, MappingProxyType({"a": 1, "b": [1, 2]}))
    }
    assert len(ids) == 1
    assert Document("text", title="T", metadata={"a": 1}).id != Document("text", metadata={"a": 1}).id


@pytest.mark.parametrize("metadata", [{"day": datetime.date(2026, 1, 1)}, {1: "a", "b": 2}, {"a": object()}])
def test_what_is_not_json_is_refused_by_the_index_and_not_before(make: Make, metadata: dict) -> None:
    index = make(states="none")
    with pytest.raises(ValueError, match=r"document 1 \(that begins 'same words'\).*metadata") as refused:
        index.add(["other", Document("same words", metadata=metadata)])
    assert not HEX.search(str(refused.value))
    assert len(index) == 0


def test_metadata_in_another_order_are_the_same(make: Make) -> None:
    """Also where the id was given; and numbers of other kinds are not the same."""
    index = make(states="none")
    for id, made in (("", 2), ("mine", 1)):
        facts = [{"a": 1, "b": 2}, {"b": 2, "a": 1}]
        assert index.add([Document("same words", id, metadata=each) for each in facts]) == (1, 0, 1)
        assert index.add([Document("same words", id, metadata=facts[1])]) == (0, 0, 1)
        assert index.add([Document("same words", id, metadata={"a": 1.0, "b": 2})])[:2] == (made - 1, 2 - made)


def test_messages_speak_of_ids_that_were_given_and_else_of_texts(make: Make, reader: HashReader) -> None:
    index = make(states="none")
    long = " ".join(["word"] * 100)
    for document, called in (
        (long, r"document 0 \(that begins 'word word [a-z .]*\.\.\.'\) has 101 tokens"),
        (Document(long, metadata={"a": 1}), r"document 0 \(that begins 'word word "),
        (Document(long, id="mine"), r"document 0 \(id 'mine'\) has 101 tokens"),
        (Document(long, id="0" * 32), rf"document 0 \(id '{'0' * 32}'\)"),
        (Document("  ", metadata={"a": 1}), r"document 0 \(that begins ''\) has no text"),
    ):
        with pytest.raises(ValueError, match=called):
            index.add([document])


def test_messages_about_chunks_call_their_document_by_how_it_begins() -> None:
    def count(text: str) -> int:
        return len(text.split())

    text = "one two three four five six seven eight"
    for id, called in (("", "that begins 'one two"), ("mine", "'mine")):
        first = next(chunk_documents([Document(text, id=id)], count, 4))
        assert first.called.startswith(called), first.called
    with pytest.raises(ValueError, match=r"^document that begins 'text': its title leaves") as refused:
        list(chunk_documents([Document("text", title=text)], count, 4))
    assert not HEX.search(str(refused.value))
