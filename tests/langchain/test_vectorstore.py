"""The vector store beyond the standard suite: filters, scores, diversity, upserts, and any loader's metadata."""

import datetime
import gc
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from gritrag import Document, GritModel, Index
from gritrag.langchain import GritEmbeddings, GritRetriever, GritVectorStore, from_langchain, to_langchain

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty"]
TEXTS = [f"{word} and {WORDS[(3 * n + 1) % 10]} by the {WORDS[(7 * n + 2) % 10]}" for n, word in enumerate(WORDS)]
QUERY = "cedar by the fjord"


@pytest.fixture
def store(make_index: Callable[..., Index]) -> GritVectorStore:
    store = GritVectorStore(make_index(states="none"))
    metadatas = [{"number": n, "kind": "odd" if n % 2 else "even"} for n in range(len(TEXTS))]
    store.add_texts(TEXTS, metadatas, ids=[f"t{n}" for n in range(len(TEXTS))])
    return store


def ids(documents: list[LangChainDocument]) -> list[str | None]:
    return [document.id for document in documents]


def test_a_filter_is_applied_before_the_search(store: GritVectorStore) -> None:
    best = store.similarity_search(QUERY, k=len(TEXTS), mode="dense")
    worst = best[-1].metadata["number"]
    for search in (store.similarity_search, store.max_marginal_relevance_search):
        assert ids(search(QUERY, k=1, filter={"number": worst})) == [f"t{worst}"]
    vector = store.embeddings.embed_query(QUERY)
    for search in (store.similarity_search_by_vector, store.max_marginal_relevance_search_by_vector):
        assert ids(search(vector, k=1, filter={"number": worst})) == [f"t{worst}"]
    odd = [document.id for document in best if document.metadata["kind"] == "odd"]
    assert set(ids(store.similarity_search(QUERY, k=5, filter={"kind": "odd"}))) == set(odd)
    assert ids(store.similarity_search(QUERY, k=5, filter={"kind": "odd"}, mode="dense")) == odd
    some = {"number": {"$gte": 4}, "kind": "odd"}
    assert ids(store.similarity_search(QUERY, k=50, filter=some, mode="dense")) == [
        id for id in odd if int(str(id)[1:]) >= 4
    ]
    assert store.similarity_search(QUERY, filter={"kind": "neither"}) == []
    assert ids(store.similarity_search(QUERY, k=50, filter={"$nor": [{"kind": {"$ne": "odd"}}]}, mode="dense")) == odd
    assert store.similarity_search(QUERY, filter={"kind": {"$exists": False}}) == []
    many = {"number": {"$in": [*range(1000, 101_000), worst]}}
    assert ids(store.similarity_search(QUERY, k=50, filter=many)) == [f"t{worst}"]


def test_scores_are_cosines_in_order_and_relevance_lies_between_0_and_1(store: GritVectorStore) -> None:
    found = store.similarity_search_with_score(QUERY, k=len(TEXTS), mode="dense")
    query = np.array(store.embeddings.embed_query(QUERY))
    vectors = np.array(store.embeddings.embed_documents([document.page_content for document, _ in found]))
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, vectors @ query, atol=1e-5)
    relevant = store.similarity_search_with_relevance_scores(QUERY, k=len(TEXTS))
    np.testing.assert_allclose([score for _, score in relevant], np.clip(scores, 0, 1))
    threshold = (scores[2] + scores[3]) / 2
    options = {"k": len(TEXTS), "score_threshold": threshold}
    retriever = store.as_retriever(search_type="similarity_score_threshold", search_kwargs=options)
    assert ids(retriever.invoke(QUERY)) == ids([document for document, _ in found[:3]])


@pytest.mark.parametrize("lambda_mult", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(("k", "fetch_k"), [(4, 10), (3, 6), (1, 1), (5, 2)])
def test_mmr_agrees_with_langchains_own(store: GritVectorStore, k: int, fetch_k: int, lambda_mult: float) -> None:
    query = store.embeddings.embed_query(QUERY)
    candidates = store.similarity_search(QUERY, k=max(k, fetch_k), mode="dense")
    vectors = store.embeddings.embed_documents([document.page_content for document in candidates])
    # At 0 both take the first of equals, so the most similar leads in both.
    chosen = maximal_marginal_relevance(np.array(query), vectors, lambda_mult=lambda_mult, k=k)
    expected = [candidates[position].id for position in chosen]
    assert ids(store.max_marginal_relevance_search(QUERY, k, fetch_k, lambda_mult, mode="dense")) == expected
    assert ids(store.max_marginal_relevance_search_by_vector(query, k, fetch_k, lambda_mult)) == expected


async def test_async_gives_the_same(store: GritVectorStore) -> None:
    vector = store.embeddings.embed_query(QUERY)
    assert await store.asimilarity_search(QUERY, filter={"kind": "odd"}) == store.similarity_search(
        QUERY, filter={"kind": "odd"}
    )
    assert await store.asimilarity_search_with_score(QUERY) == store.similarity_search_with_score(QUERY)
    assert await store.asimilarity_search_by_vector(vector) == store.similarity_search_by_vector(vector)
    assert await store.amax_marginal_relevance_search(QUERY) == store.max_marginal_relevance_search(QUERY)
    assert await store.aadd_texts(["a new text"], ids=["new"]) == ["new"]
    assert await store.adelete(["new"])
    assert await store.aget_by_ids(["new", "t0"]) == store.get_by_ids(["t0"])


def test_adding_again_replaces_and_deleting_leaves_no_ghosts(store: GritVectorStore) -> None:
    store.add_documents([LangChainDocument("fjord of cedar", id="t1")])
    assert len(store.index) == len(TEXTS)
    assert [document.page_content for document in store.get_by_ids(["t1"])] == ["fjord of cedar"]
    assert TEXTS[1] not in [document.page_content for document in store.similarity_search(TEXTS[1], k=20)]
    assert store.delete(["t1", "never there"])
    assert "t1" not in ids(store.similarity_search("fjord of cedar", k=20))
    assert store.delete(filter={"kind": "odd"})
    assert sorted(store.index) == ["t0", "t2", "t4", "t6", "t8"]
    assert store.delete([])
    assert len(store.index) == 5
    assert store.delete()
    assert len(store.index) == 0


def test_a_document_that_is_deleted_while_it_is_got_is_there_or_not(
    store: GritVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = Index.get

    def slowly(index: Index, wanted: Iterable[str]) -> list[Document]:
        wait([threads.submit(index.delete, ["t1"])], timeout=0.5)
        return get(index, wanted)

    monkeypatch.setattr(Index, "get", slowly)
    with ThreadPoolExecutor(1) as threads:
        assert ids(store.get_by_ids(["t0", "t1"])) == ["t0", "t1"]
    assert "t1" not in store.index


def test_of_one_id_twice_in_a_call_the_last_wins_as_in_other_stores(store: GritVectorStore) -> None:
    memory = InMemoryVectorStore(store.embeddings)
    twice = [LangChainDocument(text, id=id) for text, id in (("one", "a"), ("two", "b"), ("three", "a"))]
    for each in (store, memory):
        assert each.add_documents(twice) == ["a", "b", "a"]
        assert [document.page_content for document in each.get_by_ids(["a", "b"])] == ["three", "two"]
        assert each.add_texts(["four", "five"], [{"n": 1}, {"n": 2}], ids=["t1", "t1"]) == ["t1", "t1"]
        assert each.get_by_ids(["t1"]) == [LangChainDocument("five", id="t1", metadata={"n": 2})]
    assert store.add_documents([]) == memory.add_documents([]) == []
    assert len(store.index) == len(TEXTS) + 2
    with pytest.raises(ValueError, match="one id and different contents"):
        store.add_texts(["six", "seven"], ids=["c", "c"], on_conflict="error")
    assert "c" not in store.index


def test_texts_without_ids_are_stored_once_but_once_for_each_source(store: GritVectorStore) -> None:
    pages = [LangChainDocument("one text", metadata={"page": page}) for page in (1, 2, 1)]
    names = store.add_documents(pages)
    assert names[0] == names[2] != names[1]
    assert store.add_documents(pages) == names
    assert len(store.index) == len(TEXTS) + 2


def test_what_loaders_put_into_metadata_goes_in(store: GritVectorStore) -> None:
    metadata = {"title": "Notes", "when": datetime.date(2024, 5, 1), "source": Path("a/b.txt"), "pages": (1, 2)}
    (name,) = store.add_documents([LangChainDocument("loaded", metadata=metadata)])
    (document,) = store.get_by_ids([name])
    assert document.metadata == {"title": "Notes", "when": "2024-05-01", "source": "a/b.txt", "pages": [1, 2]}
    assert store.index.get([name])[0].title == "Notes"
    assert metadata["when"] == datetime.date(2024, 5, 1)


def test_what_is_not_there_and_sets_and_arrays_go_in_and_give_one_name_in_every_process(store: GritVectorStore) -> None:
    """pandas has NaN where nothing is; the order of a set is by chance in each process, and names are made from it."""
    letters = list("zyxwvutsrq")
    one, other = ({"tags": set(order), "share": math.nan, "far": -math.inf} for order in (letters, letters[::-1]))
    names = store.add_documents(LangChainDocument("a table", metadata=each) for each in (one, other))
    assert names[0] == names[1]
    (document,) = store.get_by_ids(names[:1])
    assert document.metadata == {"tags": sorted(letters), "share": None, "far": None}
    assert ids(store.similarity_search(QUERY, filter={"tags": "q"})) == names[:1]
    odd = {"grid": np.arange(2000), "by": {(1, 2): frozenset([2, 1]), 3: Path("a")}}
    store.add_documents([LangChainDocument("odd", metadata=odd)], ids=["odd"])
    (document,) = store.get_by_ids(["odd"])
    assert document.metadata == {"grid": list(range(2000)), "by": {"(1, 2)": [1, 2], "3": "a"}}


@pytest.mark.parametrize("metadata", [{}, {"year": 1}, {"title": "T"}, {"title": 3}, {"a": {"b": [1, None]}}])
def test_documents_come_back_as_they_went_in(metadata: dict[str, Any]) -> None:
    document = LangChainDocument(" text\n", id="a", metadata=metadata)
    assert to_langchain(from_langchain(document)) == document
    titled = Document("text", id="a", title="Title", metadata={"year": 2})
    assert from_langchain(to_langchain(titled)).content == titled.content


def test_from_texts_makes_an_index_that_stays_or_goes(tiny_model: GritModel, tmp_path: Path) -> None:
    embeddings = GritEmbeddings(model=tiny_model)
    kept = GritVectorStore.from_texts(
        ["one", "two"], embeddings, [{"n": 1}, {"n": 2}], ids=["a", "b"], path=tmp_path / "i"
    )
    assert ids(kept.similarity_search("two", k=1, filter={"n": 1})) == ["a"]
    kept.index.close()
    with Index.open(tmp_path / "i", model=tiny_model, mode="r") as index:
        assert sorted(index) == ["a", "b"]
    documents = [LangChainDocument("one", id="x", metadata={"n": 1})]
    passing = GritVectorStore.from_documents(documents, embeddings)
    assert passing.get_by_ids(["x"]) == documents
    folder = passing.index.path
    assert folder.is_dir()
    del passing
    assert not folder.exists()
    with pytest.raises(ValueError, match="GritEmbeddings"):
        GritVectorStore.from_texts(["one"], DeterministicFakeEmbedding(size=4))


def test_no_text_of_a_generator_is_lost(tiny_model: GritModel) -> None:
    embeddings, facts = GritEmbeddings(model=tiny_model), [{"n": 1}, None]
    store = GritVectorStore.from_texts((text for text in ("one text", "two texts")), embeddings, facts, ids=["a", "b"])
    assert [document.metadata for document in store.get_by_ids(["a", "b"])] == [{"n": 1}, {}]
    assert store.add_texts(iter(["three texts"])) == store.add_texts(("three texts",))
    assert len(store.index) == 3


def test_a_misspelt_argument_is_no_silent_success(store: GritVectorStore) -> None:
    vector = store.embeddings.embed_query(QUERY)
    with pytest.raises(TypeError, match="fliter"):
        store.similarity_search(QUERY, fliter={"kind": "odd"})
    with pytest.raises(TypeError, match="fliter"):
        store.similarity_search_by_vector(vector, fliter={"kind": "odd"})
    with pytest.raises(TypeError, match="fliter"):
        store.max_marginal_relevance_search(QUERY, fliter={"kind": "odd"})
    with pytest.raises(TypeError, match="fliter"):
        store.delete(["t1"], fliter={"kind": "odd"})
    with pytest.raises(ValueError, match="must be a mapping"):
        store.similarity_search(QUERY, filter=lambda document: True)
    with pytest.raises(ValueError, match="3 numbers"):
        store.max_marginal_relevance_search_by_vector([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="2 ids"):
        store.add_texts(["one"], ids=["a", "b"])
    with pytest.raises(ValueError, match="2 documents came with 1 ids"):
        store.add_texts(["one", "two"], ids=["a"])
    with pytest.raises(ValueError, match="2 texts came with 1 metadatas"):
        store.add_texts(["one", "two"], [{"n": 1}])
    with pytest.raises(ValueError, match="list of texts"):
        store.add_texts("one")
    with pytest.raises(ValueError, match="'dense' only"):
        store.similarity_search_with_relevance_scores(QUERY, mode="hybrid")


def test_words_and_vectors_search_together_where_asked(store: GritVectorStore) -> None:
    for options in ({}, {"mode": "sparse"}, {"mode": "hybrid"}, {"mode": "dense"}):
        found = store.similarity_search_with_score("heron", k=3, **options)
        hits = store.index.search("heron", 3, **options)
        assert [(document.id, score) for document, score in found] == [(hit.document.id, hit.score) for hit in hits]


def test_a_retriever_takes_its_options_per_call_too(store: GritVectorStore) -> None:
    retriever = GritRetriever(index=store.index, k=3, filter={"kind": "odd"}, mode="dense")
    assert retriever.invoke(QUERY) == store.similarity_search(QUERY, k=3, filter={"kind": "odd"}, mode="dense")
    assert retriever.invoke(QUERY, k=2, filter={}) == store.similarity_search(QUERY, k=2, mode="dense")
    assert retriever.invoke(QUERY, mmr=0.3, fetch_k=5, filter=None) == store.max_marginal_relevance_search(
        QUERY, 3, 5, 0.3, mode="dense"
    )
    for weight in (0.0, 1.0):
        hits = store.index.search(QUERY, 3, mode="hybrid", dense_weight=weight)
        expected = [hit.document.text for hit in hits]
        hybrid = GritRetriever(index=store.index, k=3, dense_weight=weight)
        assert [document.page_content for document in hybrid.invoke(QUERY)] == expected
        other = GritRetriever(index=store.index, k=3).invoke(QUERY, dense_weight=weight)
        assert [document.page_content for document in other] == expected
    with pytest.raises(TypeError, match="fliter"):
        retriever.invoke(QUERY, fliter={})
    with pytest.raises(ValueError, match="fliter"):
        GritRetriever(index=store.index, fliter={})


def test_an_index_outlives_the_store_that_made_it(tiny_model: GritModel, tmp_path: Path) -> None:
    for path in (None, tmp_path / "index"):
        index = GritVectorStore.from_texts(TEXTS, GritEmbeddings(model=tiny_model), path=path, states="none").index
        gc.collect()
        assert len(GritRetriever(index=index, k=3).invoke(QUERY)) == 3
        root = index.path
        del index
        gc.collect()
        assert root.exists() == (path is not None)
    Index.open(tmp_path / "index", model=tiny_model, mode="rw").close()  # its lock has been let go


def test_numbers_of_numpy_are_numbers(store: GritVectorStore) -> None:
    metadata = {"year": np.int64(2020), "share": np.float32(0.5), "is_new": np.bool_(True)}
    store.add_documents([LangChainDocument("a table", metadata=metadata)], ids=["row"])
    assert ids(store.similarity_search(QUERY, filter={"year": {"$gt": 2000}, "share": 0.5, "is_new": True})) == ["row"]
    assert store.get_by_ids(["row"])[0].metadata == {"year": 2020, "share": 0.5, "is_new": True}


def test_a_blank_page_is_left_out_with_a_warning_and_the_others_are_stored(make_index: Callable[..., Index]) -> None:
    store = GritVectorStore(make_index(states="none"))
    pages = [LangChainDocument(text, metadata={"page": n}) for n, text in enumerate(["one", " \n\x0c", "three", ""])]
    with pytest.warns(UserWarning, match=r"2 of 4 documents hold no text .*'page': 1"):
        added = store.add_documents(pages, ids=["a", "b", "c", "d"])
    assert added == ["a", "c"]
    assert list(store.index) == ["a", "c"]
    with pytest.warns(UserWarning, match="1 of 1"):
        assert store.add_documents([LangChainDocument("")]) == []
