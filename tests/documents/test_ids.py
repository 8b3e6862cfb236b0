"""Ids: the index keeps those of its documents, and the first of several files has the others."""

import pytest

from gritrag.documents.ids import Claim, FreeIds, Ids, claim_of
from gritrag.records import Document


def test_who_comes_first_has_an_id_and_may_ask_again() -> None:
    ids = Ids()
    ids.take(Claim("a", "1"), "docs", "one.jsonl")
    ids.take(Claim("a", "1"), "docs", "one.jsonl")
    with pytest.raises(ValueError, match=r"its id 'a' is that of an earlier document, in one\.jsonl"):
        ids.take(Claim("a", "2"), "docs", "two.jsonl")
    ids.take(Claim("b", "2"), "docs", "two.jsonl")
    FreeIds().take(Claim("a", "2"), "docs", "two.jsonl")


def test_the_index_keeps_its_ids_and_a_root_may_change_its_own() -> None:
    ids = Ids({"a": "docs", "b": ""})
    with pytest.raises(ValueError, match="in this index from docs"):
        ids.take(Claim("a", "1"), "manuals", "m.jsonl")
    with pytest.raises(ValueError, match="that came from no file"):
        ids.take(Claim("b", "1"), "docs", "d.jsonl")
    ids.take(Claim("a", "2"), "docs", "d.jsonl")  # not taken by who was refused


def test_a_claim_is_of_all_that_a_document_holds() -> None:
    one = Document("text", id="a", title="title", metadata={"n": 1})
    assert claim_of(one) == claim_of(Document("text", id="a", title="title", metadata={"n": 1}))
    others = [
        Document("text.", id="a", title="title", metadata={"n": 1}),
        Document("text", id="a", title="Title", metadata={"n": 1}),
        Document("text", id="a", title="title", metadata={"n": 2}),
    ]
    assert len({claim_of(document) for document in (one, *others)}) == 4
