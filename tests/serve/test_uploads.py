"""Uploads: none takes the place of another, none comes back, and nothing is lost when a server or its disk fails."""

import errno
import io
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import Running, running

from gritrag import GritModel, Index
from gritrag.index.storage.quota import StateQuota
from gritrag.serve import stores
from gritrag.serve.bridge import EngineReader
from gritrag.serve.limits import Limits
from gritrag.serve.server import Served, make_service
from gritrag.serve.tenants import Tenants
from gritrag.serve.threads import WRITERS


@pytest.fixture
def own(tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]) -> Running:
    """A server that the test may change."""
    return start(tiny_model, {"docs": make_index(tiny_model)})


@pytest.fixture
def http(own: Running) -> Iterator[httpx.Client]:
    with own.client() as http:
        yield http


@pytest.fixture
def client(own: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{own.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def upload(http: httpx.Client, name: str, content: str) -> str:
    answer = http.post("/v1/files", files={"file": (name, content.encode())}, data={"purpose": "assistants"})
    assert answer.status_code == 200, answer.text
    id: str = answer.json()["id"]
    return id


def put_in(http: httpx.Client, file: str, store: str = "docs", waits: bool = True) -> str:
    """The status of a file once it is in a store."""
    status: str = http.post(f"/v1/vector_stores/{store}/files", json={"file_id": file}).json()["status"]
    return wait_for(http, file, store) if waits else status


def wait_for(http: httpx.Client, file: str, store: str = "docs") -> str:
    status, end = "in_progress", time.monotonic() + 20
    while status == "in_progress" and time.monotonic() < end:
        time.sleep(0.01)
        status = http.get(f"/v1/vector_stores/{store}/files/{file}").json()["status"]
    return status


def texts(http: httpx.Client) -> list[str]:
    rows = http.get("/v1/indexes/docs/documents", params={"limit": 1000}).json()["data"]
    return [row["text"] for row in rows]


def test_rows_of_two_files_with_the_same_ids_are_rows_of_two_files(http: httpx.Client) -> None:
    http.post("/v1/indexes/docs/documents", json={"documents": [{"id": "1", "text": "it was there before"}]})
    rows = {"birds": '{"id": 1, "text": "the wren sings"}', "fish": '{"id": 1, "text": "the pike waits"}'}
    files = {name: upload(http, f"{name}.jsonl", row) for name, row in rows.items()}
    for file in files.values():
        assert put_in(http, file) == "completed"
    assert {"it was there before", "the wren sings", "the pike waits"} <= set(texts(http))
    assert put_in(http, files["fish"]) == "completed"
    assert texts(http).count("the pike waits") == 1, "a second time changes nothing"
    http.delete(f"/v1/vector_stores/docs/files/{files['fish']}").raise_for_status()
    left = texts(http)
    assert {"it was there before", "the wren sings"} <= set(left)
    assert "the pike waits" not in left


@pytest.fixture
def gate(own: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Whatever is added to the index waits for it."""
    opened, index = threading.Event(), own.service.indexes["docs"]
    add = index.add

    def waits(*args: Any, **options: Any) -> Any:
        opened.wait(20)
        return add(*args, **options)

    monkeypatch.setattr(index, "add", waits)
    yield opened
    opened.set()


def finish(own: Running) -> None:
    """Wait until nothing is done in the background."""
    end = time.monotonic() + 20
    while own.service._tasks and time.monotonic() < end:
        time.sleep(0.01)
    assert not own.service._tasks


@pytest.mark.parametrize("route", ["/v1/vector_stores/docs/files/{}", "/v1/files/{}"])
def test_a_file_that_is_deleted_while_it_is_read_leaves_nothing(
    route: str, own: Running, http: httpx.Client, gate: threading.Event
) -> None:
    file = upload(http, "secret.txt", "the cellar holds a secret")
    assert put_in(http, file, waits=False) == "in_progress"
    http.delete(route.format(file)).raise_for_status()
    gate.set()
    finish(own)
    assert "the cellar holds a secret" not in texts(http)
    assert http.get(f"/v1/vector_stores/docs/files/{file}").status_code == 404


def test_a_file_that_is_put_in_anew_while_it_is_read_is_read_anew(
    own: Running, http: httpx.Client, gate: threading.Event
) -> None:
    file = upload(http, "long.txt", "\n\n".join(f"line {n} of the poem goes here" for n in range(20)))
    body: dict[str, Any] = {"file_id": file, "chunking_strategy": {"type": "static"}}
    for size in (16, 256, 128):
        body["chunking_strategy"]["static"] = {"max_chunk_size_tokens": size, "chunk_overlap_tokens": 0}
        http.post("/v1/vector_stores/docs/files", json=body).raise_for_status()
    gate.set()
    finish(own)
    assert wait_for(http, file) == "completed"
    chunks = [id for id in own.service.indexes["docs"] if id.startswith(file)]
    assert http.get(f"/v1/vector_stores/docs/files/{file}").json()["chunks"] == len(chunks)
    lengths = [len(own.service.model.document_token_ids(text)) for text in texts(http) if "poem" in text]
    assert max(lengths) > 64, "chunks of the last size are left, and no others"


def test_a_deleted_file_is_in_no_store_any_more(http: httpx.Client) -> None:
    store = http.post("/v1/vector_stores", json={"name": "own"}).json()["id"]
    file = upload(http, "a.txt", "the tide turns at dusk")
    for each in ("docs", store):
        assert put_in(http, file, each) == "completed"
    http.delete(f"/v1/files/{file}").raise_for_status()
    assert "the tide turns at dusk" not in texts(http)
    assert http.post(f"/v1/vector_stores/{store}/search", json={"query": "tide"}).json()["data"] == []


def test_what_a_killed_server_was_reading_is_read_by_the_next(tiny_model: GritModel, tmp_path: Path) -> None:
    Index.create(tmp_path / "empty", model=tiny_model).close()

    def served() -> Any:
        indexes = [Served("empty", tmp_path / "empty")]
        return running(make_service(tiny_model, "tiny", indexes, Tenants(), Limits(), True, data=tmp_path / "data"))

    with served() as server, server.client() as http:
        store = http.post("/v1/vector_stores", json={"name": "kept"}).json()["id"]
        file, other = upload(http, "a.txt", "the tide turns at dusk"), upload(http, "b.txt", "a kite flies")
        for each in (file, other):
            assert put_in(http, each, store) == "completed"
        http.post(f"/v1/indexes/{store}/documents:delete", json={"where": {"filename": "a.txt"}}).raise_for_status()
    record = tmp_path / "data" / "files" / f"{file}.json"  # as it is while the file is read
    written = json.loads(record.read_text("utf-8"))
    written["stores"][store] |= {"status": "in_progress", "chunks": 0, "bytes": 0}
    written["stores"] |= dict.fromkeys(("vs_gone", "empty"), written["stores"][store])
    record.write_text(json.dumps(written), "utf-8")
    with served() as server, server.client() as http:
        assert wait_for(http, file, store) == "completed"
        found = http.post(f"/v1/vector_stores/{store}/search", json={"query": "when does the tide turn?"}).json()
        assert found["data"][0]["file_id"] == file
        assert server.service.uploads.unfinished() == [], "a store that is gone keeps nobody waiting"
        problem = http.get(f"/v1/vector_stores/empty/files/{file}").json()["last_error"]["message"]
        assert "this server only reads the store" in problem
        assert "no such store" in json.loads(record.read_text("utf-8"))["stores"]["vs_gone"]["error"]


def begin_long(server: Running, http: httpx.Client, store: str, is_begun: Callable[[], bool]) -> str:
    """A file of 200 chunks that takes long to be read, once it `is_begun`."""
    server.service.engine.on_step = lambda rows, seconds: time.sleep(0.1)
    file = upload(http, "long.txt", "\n\n".join(f"line {n} of the poem goes here" for n in range(200)))
    body: dict[str, Any] = {"file_id": file, "chunking_strategy": {"type": "static"}}
    body["chunking_strategy"]["static"] = {"max_chunk_size_tokens": 32, "chunk_overlap_tokens": 0}
    http.post(f"/v1/vector_stores/{store}/files", json=body).raise_for_status()
    end = time.monotonic() + 20
    while not is_begun() and time.monotonic() < end:
        time.sleep(0.01)
    assert is_begun()
    return file


def test_a_server_that_is_stopped_leaves_what_it_reads_to_the_next(tiny_model: GritModel, tmp_path: Path) -> None:
    """Indexing a file may take hours, and whoever stops the server is not to wait for it."""
    data = tmp_path / "data"

    def served() -> Any:
        return running(make_service(tiny_model, "tiny", [], Tenants(), Limits(), data=data))

    with served() as server, server.client() as http:
        store = http.post("/v1/vector_stores", json={"name": "kept"}).json()["id"]
        file = begin_long(server, http, store, lambda: bool(server.service.engine._background))
    record = json.loads((data / "files" / f"{file}.json").read_text("utf-8"))
    assert record["stores"][store]["status"] == "in_progress"
    with served() as server, server.client() as http:
        assert wait_for(http, file, store) == "completed"
        assert http.get(f"/v1/vector_stores/{store}/files/{file}").json()["chunks"] == 200


def test_a_server_that_keeps_no_uploads_leaves_no_part_of_one(
    tiny_model: GritModel, make_index: Callable[..., Path]
) -> None:
    """Nobody goes on with it, and nobody could take it out."""
    folder = make_index(tiny_model)
    with Index.open(folder, model=tiny_model) as index:
        before = list(index)
    service = make_service(tiny_model, "tiny", [Served("docs", folder)], Tenants(), Limits())
    with running(service) as server, server.client() as http:
        read, number, read_file = [], len(before), service.uploads.documents
        service.uploads.documents = lambda *args: (read.append(args), read_file(*args))[1]
        begin_long(server, http, "docs", lambda: len(service.indexes["docs"]) > number)
        for n in range(WRITERS):  # wait for a thread, or for the one that writes
            put_in(http, upload(http, f"{n}.txt", f"a short one, number {n}"), waits=False)
    with Index.open(folder, model=tiny_model) as index:
        assert list(index) == before
    assert len(read) <= WRITERS, "files that nobody had begun are not read"


def test_files_are_put_in_together_as_the_client_does(own: Running, http: httpx.Client) -> None:
    with openai.OpenAI(base_url=f"{own.url}/v1", api_key="none", max_retries=0) as client:
        stores = client.vector_stores
        given: Any = [("a.txt", b"the tide turns at dusk"), ("b.txt", b"a kite flies"), ("broken.docx", b"no")]
        batch = stores.file_batches.upload_and_poll(vector_store_id="docs", files=given, poll_interval_ms=20)
        assert (batch.object, batch.status, batch.vector_store_id) == ("vector_store.files_batch", "completed", "docs")
        counts = batch.file_counts
        assert (counts.completed, counts.failed, counts.in_progress, counts.total) == (2, 1, 0, 3)
        assert {"the tide turns at dusk", "a kite flies"} <= set(texts(http))
        whole = [file.id for file in stores.file_batches.list_files(batch.id, vector_store_id="docs", limit=1)]
        assert whole == [file.id for file in stores.files.list("docs")]
        (broken,) = stores.file_batches.list_files(batch.id, vector_store_id="docs", filter="failed")
        assert stores.files.retrieve(broken.id, vector_store_id="docs").last_error is not None
        one = upload(http, "c.txt", "the mill turns\n\nand turns")
        options: Any = {"attributes": {"kind": "mill"}, "chunking_strategy": {"type": "auto"}}
        alike = stores.file_batches.create("docs", file_ids=[one, one], **options)
        assert alike.file_counts.total == 1
        own_way = stores.file_batches.create("docs", files=[{"file_id": whole[0], **options}])
        stores.file_batches.poll(own_way.id, vector_store_id="docs", poll_interval_ms=20)
        assert stores.files.retrieve(whole[0], vector_store_id="docs").attributes == {"kind": "mill"}
        assert stores.file_batches.retrieve(batch.id, vector_store_id="docs").file_counts.total == 2, "one has left it"
        before = len(list(stores.files.list("docs")))
        strategy: Any = {"type": "static", "static": {"max_chunk_size_tokens": 16, "chunk_overlap_tokens": 16}}
        two = [{"file_id": upload(http, "d.txt", "words")}, {"file_id": one, "chunking_strategy": strategy}]
        for refused in (
            {},
            {"file_ids": [one], "files": two},
            {"files": two},
            {"file_ids": [two[0]["file_id"], "file-x"]},
        ):
            with pytest.raises(openai.APIStatusError) as error:
                stores.file_batches.create("docs", **refused)  # type: ignore[arg-type]
            assert error.value.status_code in (400, 404)
        assert len(list(stores.files.list("docs"))) == before, "of a batch that is refused nothing is begun"
        for unknown in ("vsfb_x", " "):
            with pytest.raises(openai.NotFoundError):
                stores.file_batches.retrieve(unknown, vector_store_id="docs")


def read_in(client: openai.OpenAI, name: str, content: str, **options: Any) -> str:
    """A file that has been read into the index `docs`."""
    given = (name, content.encode())
    file = client.vector_stores.files.upload_and_poll(
        vector_store_id="docs", file=given, poll_interval_ms=20, **options
    )
    assert file.status == "completed", file.last_error
    return file.id


def test_what_a_store_holds_of_a_file_is_told_chunk_by_chunk(client: openai.OpenAI, http: httpx.Client) -> None:
    strategy: Any = {"type": "static", "static": {"max_chunk_size_tokens": 16, "chunk_overlap_tokens": 0}}
    lines = [f"line {n} of the poem" for n in range(12)]
    file = read_in(client, "poem.txt", "\n\n".join(lines), chunking_strategy=strategy)
    other = read_in(client, "other.txt", "a kite flies")
    page = client.vector_stores.files.content(file, vector_store_id="docs")
    told = [each.text or "" for each in page]
    assert len(told) == http.get(f"/v1/vector_stores/docs/files/{file}").json()["chunks"] > 1
    assert " ".join(told).split() == " ".join(lines).split()
    assert [(each.type, each.text) for each in client.vector_stores.files.content(other, vector_store_id="docs")] == [
        ("text", "a kite flies")
    ]
    store = client.vector_stores.create(name="empty")
    with pytest.raises(openai.NotFoundError, match="not in this vector store"):
        client.vector_stores.files.content(other, vector_store_id=store.id)
    (name,) = [each.name for each in client.vector_stores.list() if each.id == store.id]
    assert name == "empty"


def test_other_attributes_are_those_of_all_documents_of_a_file(
    client: openai.OpenAI, own: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = '{"text": "the wren sings", "page": 3}\n{"text": "the pike waits", "page": 4}'
    file = read_in(client, "birds.jsonl", rows, attributes={"kind": "song", "year": 1890})
    files, index = client.vector_stores.files, own.service.indexes["docs"]

    def found(key: str, value: Any) -> list[str]:
        condition: Any = {"type": "eq", "key": key, "value": value}
        return sorted(row.content[0].text for row in client.vector_stores.search("docs", query="x", filters=condition))

    assert found("kind", "song") == ["the pike waits", "the wren sings"]
    monkeypatch.setattr(EngineReader, "read_documents", None)  # nothing is read again
    monkeypatch.setattr(EngineReader, "encode_document", None)
    changed = files.update(file, vector_store_id="docs", attributes={"kind": "animal", "wild": True, "filename": "x"})
    assert changed.attributes == {"kind": "animal", "wild": True, "filename": "x"}
    assert files.retrieve(file, vector_store_id="docs").attributes == changed.attributes
    assert (found("kind", "song"), found("year", 1890)) == ([], [])
    assert found("wild", True) == found("kind", "animal") == ["the pike waits", "the wren sings"]
    assert found("page", 4) == ["the pike waits"]
    assert found("filename", "birds.jsonl") == found("file_id", file) == ["the pike waits", "the wren sings"]
    states = index.load_states([each for each in index.get(list(index)) if each.metadata.get("file_id") == file])
    assert None not in states
    with pytest.raises(openai.BadRequestError, match="'page'"):
        files.update(file, vector_store_id="docs", attributes={"page": 7})
    assert files.update(file, vector_store_id="docs", attributes=None).attributes == {}
    assert (found("wild", True), found("page", 3)) == ([], ["the wren sings"])
    assert found("filename", "birds.jsonl") == found("file_id", file) == ["the pike waits", "the wren sings"]
    files.delete(file, vector_store_id="docs")
    assert found("page", 3) == []


def test_attributes_wait_until_a_file_has_been_read(
    client: openai.OpenAI, own: Running, http: httpx.Client, gate: threading.Event
) -> None:
    file = upload(http, "a.txt", "the tide turns at dusk")
    put_in(http, file, waits=False)
    with ThreadPoolExecutor(1) as other:
        update = other.submit(client.vector_stores.files.update, file, vector_store_id="docs", attributes={"a": 1})
        gate.set()
        with suppress(openai.ConflictError):  # where it came first
            assert update.result().attributes == {"a": 1}
    finish(own)
    again = client.vector_stores.files.update(file, vector_store_id="docs", attributes={"a": 2})
    assert again.attributes == {"a": 2}


def test_a_batch_that_is_cancelled_is_read_no_further(
    client: openai.OpenAI, own: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, index = client.vector_stores.file_batches, own.service.indexes["docs"]
    first = upload(http, "first.txt", "the tide turns at dusk")
    assert put_in(http, first) == "completed"
    waiting, opened, add = threading.Event(), threading.Event(), index.add

    def waits(documents: Any) -> Any:
        report = add(documents)
        waiting.set()
        opened.wait(20)
        return report

    monkeypatch.setattr(index, "add", waits)
    monkeypatch.setattr(stores, "AT_ONCE", 1)
    long = upload(http, "long.jsonl", "\n".join(json.dumps({"text": f"line {n} of the poem"}) for n in range(6)))
    batch = batches.create("docs", file_ids=[long])
    assert waiting.wait(20)
    cancelled = batches.cancel(batch.id, vector_store_id="docs")
    assert (cancelled.status, cancelled.file_counts.cancelled, cancelled.file_counts.in_progress) == ("cancelled", 1, 0)
    opened.set()
    finish(own)
    assert not any("poem" in text for text in texts(http))
    assert "the tide turns at dusk" in texts(http)
    assert [file.status for file in batches.list_files(batch.id, vector_store_id="docs", filter="cancelled")] == [
        "cancelled"
    ]
    done = batches.create_and_poll("docs", file_ids=[first], poll_interval_ms=20)
    after = batches.cancel(done.id, vector_store_id="docs")
    assert (after.status, after.file_counts.completed) == ("completed", 1), "what has been read stays"
    assert batches.create_and_poll("docs", file_ids=[long], poll_interval_ms=20).file_counts.completed == 1
    with pytest.raises(openai.NotFoundError):
        batches.cancel("vsfb_x", vector_store_id="docs")


def test_reading_ends_between_chunks_where_a_batch_is_cancelled(
    client: openai.OpenAI, own: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, added = own.service.indexes["docs"], list[int]()
    add = index.add

    def cancels(documents: Any) -> Any:
        added.append(len(documents))
        own.service.uploads.cancel(own.service.uploads.get(file, "anyone"), "docs", batch_of())
        return add(documents)

    def batch_of() -> str:
        return own.service.uploads.get(file, "anyone").stores["docs"].batch

    monkeypatch.setattr(index, "add", cancels)
    monkeypatch.setattr(stores, "AT_ONCE", 2)
    file = upload(http, "long.jsonl", "\n".join(json.dumps({"text": f"line {n} of the poem"}) for n in range(6)))
    client.vector_stores.file_batches.create("docs", file_ids=[file])
    finish(own)
    assert added == [2]
    assert not any("poem" in text for text in texts(http))


def test_lists_are_told_a_page_at_a_time(client: openai.OpenAI, http: httpx.Client) -> None:
    files = [upload(http, f"{n}.txt", "words") for n in range(5)]
    whole = [file.id for file in client.files.list()]
    assert sorted(whole) == sorted(files)
    assert [file.id for file in client.files.list(limit=2)] == whole, "the client asks for all pages"
    assert client.files.list(limit=2).has_more
    assert [file.id for file in client.files.list(limit=2, order="desc", after=whole[3]).data] == [whole[2], whole[1]]
    assert client.files.list(purpose="user_data").data == []
    made = [client.vector_stores.create(name=str(n)).id for n in range(3)]
    stores = [store.id for store in client.vector_stores.list()]
    assert sorted(stores) == sorted(["docs", *made])
    assert [store.id for store in client.vector_stores.list(limit=1)] == stores
    page = client.vector_stores.list(limit=2, before=stores[3])
    assert ([store.id for store in page.data], page.has_more) == (stores[1:3], True)
    assert [store.id for store in client.vector_stores.list(order="desc", limit=1).data] == [stores[-1]]
    client.vector_stores.delete(made[0])
    for list_from in (client.vector_stores.list, client.files.list):
        with pytest.raises(openai.NotFoundError, match="begin it anew"):
            list_from(after=made[0])


def test_a_store_that_is_to_expire_is_refused(client: openai.OpenAI) -> None:
    store = client.vector_stores.create(name="kept", metadata={"a": "b"})
    assert store.expires_after is None
    for call in (client.vector_stores.create, partial(client.vector_stores.update, store.id)):
        with pytest.raises(openai.BadRequestError, match="expires_after: a store is kept here until it is deleted"):
            call(name="x", expires_after={"anchor": "last_active_at", "days": 1})
    changed = client.vector_stores.update(store.id, name="other", expires_after=None)
    assert (changed.name, changed.metadata) == ("other", {"a": "b"})


def test_a_search_leaves_out_what_scores_less_than_asked(http: httpx.Client) -> None:
    def scores(**asked: Any) -> list[float]:
        answer = http.post("/v1/vector_stores/docs/search", json={"query": "when does the ferry leave?", **asked})
        return [row["score"] for row in answer.json()["data"]]

    every = scores()
    assert len(every) > 2
    assert scores(ranking_options={"ranker": "auto"}) == every
    assert scores(ranking_options={"ranker": "auto", "score_threshold": every[1]}) == every[:2]


def test_files_of_a_store_are_listed_by_status_and_from_either_end(http: httpx.Client) -> None:
    files = [upload(http, name, "words") for name in ("a.txt", "broken.docx", "b.txt")]
    told = [put_in(http, file) for file in files]
    assert told == ["completed", "failed", "completed"]

    def listed(**asked: Any) -> list[str]:
        answer = http.get("/v1/vector_stores/docs/files", params=asked)
        return [each["id"] for each in answer.json()["data"]]

    assert listed(filter="failed") == [files[1]]
    assert sorted(listed(filter="completed")) == sorted([files[0], files[2]])
    assert listed(filter="in_progress") == []
    assert listed(order="desc") == listed()[::-1]
    assert listed(order="desc", limit=1, after=listed()[1]) == [listed()[0]]


def test_stores_and_files_may_go_in_the_middle_of_a_call(
    own: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client deletes a store while all are listed, or while a file of it is deleted."""
    stores = [http.post("/v1/vector_stores", json={"name": name}).json()["id"] for name in ("one", "two")]
    file = upload(http, "a.txt", "the tide turns at dusk")
    for store in ("docs", *stores):
        assert put_in(http, file, store) == "completed"
    stats, delete = Index.stats, Index.delete

    def gone(index: Index, store: str) -> None:
        if store in str(index.path) and store in own.service.indexes:
            own.service.stores.delete(store)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "stats", lambda index: (gone(index, stores[0]), stats(index))[1])
        listed = http.get("/v1/vector_stores")
        assert listed.status_code == 200, listed.text
        assert {each["id"] for each in listed.json()["data"]} == {"docs", stores[1]}
    with monkeypatch.context() as patch:
        patch.setattr(Index, "delete", lambda index, **which: (gone(index, stores[1]), delete(index, **which))[1])
        assert http.delete(f"/v1/files/{file}").status_code == 200
    assert http.get(f"/v1/files/{file}").status_code == 404
    assert "the tide turns at dusk" not in texts(http)


def test_a_store_that_cannot_be_noted_is_not_made(own: Running, http: httpx.Client) -> None:
    before = {each["id"] for each in http.get("/v1/vector_stores").json()["data"]}
    headers = {"content-type": "application/json"}
    refused = http.post("/v1/vector_stores", content=r'{"name": "\ud800"}', headers=headers)
    assert refused.status_code == 400
    assert {each["id"] for each in http.get("/v1/vector_stores").json()["data"]} == before
    folder = own.service.stores._folder
    assert folder is not None
    assert list(folder.glob("vs_*")) == []


def test_a_full_disk_is_told_and_leaves_no_half_file(
    own: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(source: Any, target: Any, *args: Any) -> None:
        target.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = own.service.uploads._folder
    assert folder is not None
    before = sorted(folder.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", fails)
        refused = http.post("/v1/files", files={"file": ("a.txt", b"whole")}, data={"purpose": "assistants"})
    assert refused.status_code == 507
    assert refused.json()["error"]["code"] == "disk_full"
    assert sorted(folder.iterdir()) == before
    assert put_in(http, upload(http, "a.txt", "whole again")) == "completed"


def test_a_full_disk_is_told_while_an_upload_comes(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one waits in a temporary file."""

    class Full(tempfile.SpooledTemporaryFile[bytes]):
        def write(self, *args: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", Full)
    refused = http.post("/v1/files", files={"file": ("a.txt", b"whole")}, data={"purpose": "assistants"})
    assert refused.status_code == 507, refused.text
    assert refused.json()["error"]["code"] == "disk_full"


def test_an_upload_whose_client_goes_away_leaves_no_half_file(own: Running) -> None:
    """The file of a request is closed with it, while a thread copies it."""

    class Closed(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            part = super().read(4)
            self.close()
            return part

    uploads = own.service.uploads
    assert uploads._folder is not None
    with pytest.raises(ValueError, match="closed"):
        uploads.save(Closed(b"whole"), "a.txt", "assistants", "anyone")
    assert list(uploads._folder.iterdir()) == []


def test_a_store_is_not_made_for_files_that_cannot_be_cut_so(http: httpx.Client) -> None:
    before = {each["id"] for each in http.get("/v1/vector_stores").json()["data"]}
    static = {"max_chunk_size_tokens": 16, "chunk_overlap_tokens": 16}
    body = {"file_ids": [upload(http, "a.txt", "words")], "chunking_strategy": {"type": "static", "static": static}}
    refused = http.post("/v1/vector_stores", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "chunking_strategy"
    assert {each["id"] for each in http.get("/v1/vector_stores").json()["data"]} == before


def test_a_store_that_is_deleted_while_it_is_asked_is_not_found(
    own: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = http.post("/v1/vector_stores", json={"name": "short-lived"}).json()["id"]
    http.post(f"/v1/indexes/{store}/documents", json={"documents": ["the tide turns at dusk"]}).raise_for_status()
    load = Index.load_states

    def too_late(index: Index, documents: Any) -> Any:
        own.service.stores.delete(store)
        return load(index, documents)

    monkeypatch.setattr(Index, "load_states", too_late)
    answer = http.post("/v1/rag", json={"question": "when does the tide turn?", "index": store})
    assert answer.status_code == 404, answer.text
    assert answer.json()["error"]["code"] == "index_not_found"
    assert "Index.open" not in answer.text


def test_an_answer_needs_no_room_on_the_disk(own: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state that it misses is read for it, and cannot be kept."""

    def fails(quota: StateQuota, *args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.rmtree(own.service.indexes["docs"].path / "states")
    monkeypatch.setattr(StateQuota, "put", fails)
    answer = http.post("/v1/rag", json={"question": "when does the ferry leave?", "k": 2, "max_new_tokens": 2})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["citations"]) == 2


def test_answers_never_wait_for_those_who_write(own: Running, http: httpx.Client) -> None:
    """Of whom there are more than threads, all waiting for one that has begun."""
    index: Index = own.service.indexes["docs"]
    path = "/v1/indexes/docs/documents"
    with ThreadPoolExecutor(2 * WRITERS) as clients:
        with index._parts.writing():
            adding = [
                clients.submit(http.post, path, json={"documents": [f"text number {n}"]}) for n in range(2 * WRITERS)
            ]
            while own.service.admission.taken < len(adding):
                time.sleep(0.01)
            body = {"question": "when does the ferry leave?", "max_new_tokens": 1}
            answer = http.post("/v1/rag", json=body, timeout=20)
            assert answer.status_code == 200
            assert not any(each.done() for each in adding)
        assert [each.result().status_code for each in adding] == [200] * len(adding)
