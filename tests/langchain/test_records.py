"""The record manager under LangChain's indexing API: nothing twice, no ghosts, and no record without a document."""

import math
from collections.abc import Callable

import pytest
from langchain_core.documents import Document as LangChainDocument
from langchain_core.indexing import aindex, index

from gritrag import GritModel, Index
from gritrag.langchain import GritRecordManager, GritVectorStore

OPTIONS = {"source_id_key": "source", "key_encoder": "sha256"}


def page(text: str, source: str) -> LangChainDocument:
    return LangChainDocument(text, metadata={"source": source})


FIRST = [page("alpha", "a"), page("beta", "a"), page("gamma", "b")]


@pytest.fixture
def store(make_index: Callable[..., Index]) -> GritVectorStore:
    return GritVectorStore(make_index(states="none"))


@pytest.fixture
def records(store: GritVectorStore) -> GritRecordManager:
    return GritRecordManager(store.index)


def texts(store: GritVectorStore) -> list[str]:
    return sorted(document.page_content for document in store.get_by_ids(list(store.index)))


def counts(result: object) -> tuple[int, ...]:
    return tuple(result[f"num_{what}"] for what in ("added", "updated", "skipped", "deleted"))  # type: ignore[index]


def test_a_second_run_reads_nothing_again(store: GritVectorStore, records: GritRecordManager) -> None:
    assert counts(index(FIRST, records, store, cleanup=None, **OPTIONS)) == (3, 0, 0, 0)
    assert counts(index([*FIRST, FIRST[0]], records, store, cleanup=None, **OPTIONS))[0] == 0
    assert texts(store) == ["alpha", "beta", "gamma"]


@pytest.mark.parametrize(
    ("cleanup", "left"),
    [
        (None, ["alpha", "alpha 2", "beta", "gamma"]),
        ("incremental", ["alpha 2", "gamma"]),
        ("scoped_full", ["alpha 2", "gamma"]),
        ("full", ["alpha 2"]),
    ],
)
def test_what_has_gone_from_its_source_is_deleted(
    store: GritVectorStore, records: GritRecordManager, cleanup: str | None, left: list[str]
) -> None:
    index(FIRST, records, store, cleanup="full", **OPTIONS)
    index([page("alpha 2", "a")], records, store, cleanup=cleanup, **OPTIONS)
    assert texts(store) == left
    assert sorted(records.list_keys()) == sorted(store.index)


async def test_async_gives_the_same(store: GritVectorStore, records: GritRecordManager) -> None:
    assert counts(await aindex(FIRST, records, store, cleanup="full", **OPTIONS)) == (3, 0, 0, 0)
    assert counts(await aindex(FIRST[:1], records, store, cleanup="full", **OPTIONS)) == (0, 0, 1, 2)
    assert texts(store) == ["alpha"]
    assert await records.aexists(list(store.index)) == [True]


def test_records_outlive_the_process(store: GritVectorStore, records: GritRecordManager, tiny_model: GritModel) -> None:
    index(FIRST, records, store, cleanup="full", **OPTIONS)
    records.close()
    store.index.close()
    with Index.open(store.index.path, model=tiny_model, mode="rw") as again:
        reopened = GritRecordManager(again)
        assert counts(index(FIRST[1:], reopened, GritVectorStore(again), cleanup="full", **OPTIONS)) == (0, 0, 2, 1)
        assert sorted(again) == sorted(reopened.list_keys())
        reopened.close()


def test_a_record_without_its_document_is_written_again(store: GritVectorStore, records: GritRecordManager) -> None:
    index(FIRST, records, store, cleanup="full", **OPTIONS)
    lost = next(iter(store.index))
    store.delete([lost])
    assert [
        key for key, there in zip(records.list_keys(), records.exists(records.list_keys()), strict=True) if not there
    ] == [lost]
    assert counts(index(FIRST, records, store, cleanup="full", **OPTIONS)) == (1, 0, 2, 0)
    assert texts(store) == ["alpha", "beta", "gamma"]


def test_records_can_be_listed_by_time_and_group(store: GritVectorStore, records: GritRecordManager) -> None:
    records.update(["a", "b"], group_ids=["one", None])
    between = records.get_time()
    records.update(["c"], group_ids=["one"], time_at_least=between)
    assert records.list_keys() == ["a", "b", "c"]
    assert records.list_keys(before=between) == ["a", "b"]
    assert records.list_keys(after=math.nextafter(between, 0)) == ["c"]
    assert records.list_keys(group_ids=["one", "two"]) == ["a", "c"]
    assert records.list_keys(group_ids=[]) == []
    assert records.list_keys(limit=2) == ["a", "b"]
    records.delete_keys(["a", "never there"])
    assert records.list_keys() == ["b", "c"]


def test_namespaces_are_apart(store: GritVectorStore, records: GritRecordManager) -> None:
    records.update(["a"])
    other = GritRecordManager(store.index, namespace="wiki")
    assert other.list_keys() == []
    other.delete_keys(["a"])
    assert records.list_keys() == ["a"]
    other.close()


def test_time_never_stands_still_or_runs_back(records: GritRecordManager, monkeypatch: pytest.MonkeyPatch) -> None:
    records.update(["a"])
    monkeypatch.setattr("time.time", lambda: 0.0)  # a clock that was set back
    assert records.list_keys(before=records.get_time()) == ["a"]


def test_many_keys_fit(records: GritRecordManager) -> None:
    keys = [f"key {number}" for number in range(40_000)]
    records.update(keys, group_ids=keys)
    assert len(records.list_keys(group_ids=keys)) == len(keys)
    assert records.exists(keys) == [False] * len(keys)
    records.delete_keys(keys)
    assert records.list_keys() == []


def test_closed_records_say_so(store: GritVectorStore, records: GritRecordManager) -> None:
    records.update(["a"])
    records.close()
    records.close()
    for act in (
        records.get_time,
        records.create_schema,
        records.list_keys,
        lambda: records.update(["b"]),
        lambda: records.exists(["a"]),
        lambda: records.delete_keys(["a"]),
        lambda: index(FIRST, records, store, cleanup="full", **OPTIONS),
    ):
        with pytest.raises(ValueError, match=r"records\.sqlite are closed: make a new GritRecordManager"):
            act()
    assert GritRecordManager(store.index).list_keys() == ["a"]
    assert len(store.index) == 0


def test_errors_say_what_to_do(store: GritVectorStore, records: GritRecordManager) -> None:
    with pytest.raises(ValueError, match="2 keys came with 1 group_ids"):
        records.update(["a", "b"], group_ids=["one"])
    with pytest.raises(ValueError, match="ahead of now"):
        records.update(["a"], time_at_least=records.get_time() + 100)
    records.close()
    records.path.write_bytes(b"this is no SQLite file at all" * 100)
    with pytest.raises(ValueError, match="cannot keep records"):
        GritRecordManager(store.index)
