"""Documents, uploads and vector stores: what is sent is found, cited, replaced, and gone when it is deleted."""

import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import openai
import pytest
from serving import Running, running

from gritrag import GritModel
from gritrag.serve.limits import Limits
from gritrag.serve.server import make_service
from gritrag.serve.tenants import Tenants


@pytest.fixture
def own(tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]) -> Running:
    """A server that the test may change."""
    return start(tiny_model, {"docs": make_index(tiny_model)})


@pytest.fixture
def client(own: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{own.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def hits(http: httpx.Client, question: str, **fields: object) -> list[str]:
    body = {"question": question, "max_new_tokens": 1, "k": 3, **fields}
    return [hit["id"] for hit in http.post("/v1/rag", json=body).json()["hits"]]


@pytest.mark.parametrize("id", ["a/b#1", "two\nlines", "ends with one\n", "\r\n", "a?b=%0A", "\u2028", "zoë ☕"])
def test_whatever_a_document_is_called_it_has_a_route(own: Running, id: str) -> None:
    with own.client() as http:
        path = "/v1/indexes/docs/documents"
        http.post(path, json={"documents": [{"id": id, "text": "an owl sleeps in the barn"}]}).raise_for_status()
        assert http.get(f"{path}/{quote(id, safe='')}").json()["id"] == id
        assert http.delete(f"{path}/{quote(id, safe='')}").json() == {"deleted": 1}
        assert http.get(f"{path}/{quote(id, safe='')}").status_code == 404


def test_documents_come_change_and_go(own: Running) -> None:
    with own.client() as http:
        path = "/v1/indexes/docs/documents"
        new = {"id": "owl", "text": "an owl sleeps in the barn", "title": "Owl", "metadata": {"kind": "bird"}}
        added = http.post(path, json={"documents": [new, "a plain text"]}).json()
        assert (added["added"], added["replaced"], added["skipped"]) == (2, 0, 0)
        assert http.post(path, json={"documents": [new]}).json()["skipped"] == 1
        assert hits(http, "owl in the barn", search_mode="sparse")[0] == "owl"
        changed = {**new, "text": "an owl sleeps in the belfry"}
        assert http.post(path, json={"documents": [changed]}).json()["replaced"] == 1
        assert http.get(f"{path}/owl").json() == changed
        conflict = http.post(path, json={"documents": [new], "on_conflict": "error"})
        assert conflict.status_code == 400
        assert hits(http, "belfry", search_mode="sparse", where={"kind": "bird"})[0] == "owl"
        assert (
            hits(http, "belfry", where={"$nor": [{"kind": {"$exists": False}}, {"kind": {"$ne": "bird"}}]})[0] == "owl"
        )
        assert "owl" not in hits(http, "belfry", where={"kind": {"$exists": False}})
        assert http.delete(f"{path}/owl").json() == {"deleted": 1}
        assert http.delete(f"{path}/owl").status_code == http.get(f"{path}/owl").status_code == 404
        assert "owl" not in hits(http, "belfry", search_mode="sparse")
        assert http.post(f"{path}:delete", json={"where": {"kind": "bird"}}).json() == {"deleted": 1}
        assert http.post(f"{path}:delete", json={}).status_code == 400


def test_documents_are_listed_in_pages(http: httpx.Client) -> None:
    ids: list[str] = []
    page = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = {"after": page["last_id"]} if page["last_id"] else {}
        page = http.get("/v1/indexes/docs/documents", params={"limit": 4, **after}).json()
        ids += [document["id"] for document in page["data"]]
    assert ids == ["ferry", "bridge", "geese", "lamp", "bread", "mill"]
    assert http.get("/v1/indexes/docs/documents", params={"after": "none"}).status_code == 404


def test_long_documents_are_cut(own: Running) -> None:
    with own.client() as http:
        body = {"documents": [{"id": "long", "text": "a sentence of words. " * 40}], "chunk_size": 100}
        ids = http.post("/v1/indexes/docs/documents", json=body).json()["ids"]
        assert len(ids) > 3
        assert ids[1] == "long#1"
        assert http.get("/v1/indexes/docs/documents/long%231").json()["metadata"]["source"] == "long"


def test_a_document_that_was_cut_is_replaced_and_deleted_as_a_whole(own: Running) -> None:
    path = "/v1/indexes/docs/documents"
    long, other = "the secret word is here. " * 40, "others stay as they are. " * 40

    def stored(http: httpx.Client) -> list[str]:
        return [row["id"] for row in http.get(path, params={"limit": 1000}).json()["data"] if "#" in row["id"]]

    def add(http: httpx.Client, text: str, **options: object) -> httpx.Response:
        return http.post(path, json={"documents": [{"id": "long", "text": text}], "chunk_size": 100, **options})

    with own.client() as http:
        keeps = {"id": "other", "text": other, "metadata": {"kind": "x"}}
        others = http.post(path, json={"documents": [keeps], "chunk_size": 100}).json()["ids"]
        hers = {"id": "hers", "text": "of a loader", "metadata": {"source": "long"}}
        http.post(path, json={"documents": [hers]}).raise_for_status()
        before = add(http, long).json()["ids"]
        assert len(before) > 3
        assert add(http, long * 2, on_conflict="error").status_code == 400
        report = add(http, long * 2, on_conflict="skip").json()
        assert (report["added"], report["replaced"]) == (0, 0)
        assert stored(http) == [*others, *before], "no second half behind the first"
        fewer = add(http, long[:250]).json()["ids"]
        assert stored(http) == [*others, *fewer]
        assert add(http, "short now").json()["ids"] == ["long"]
        assert stored(http) == others
        assert add(http, long).json()["ids"] == before
        assert http.get(f"{path}/long").status_code == 404
        assert http.delete(f"{path}/long").json() == {"deleted": len(before)}
        assert http.delete(f"{path}/long").status_code == 404
        add(http, long)
        assert http.post(f"{path}:delete", json={"ids": ["long", "none"]}).json() == {"deleted": len(before)}
        assert stored(http) == others
        assert http.get(f"{path}/hers").status_code == 200
        assert http.delete(f"{path}/{others[0].replace('#', '%23')}").json() == {"deleted": 1}
        assert stored(http) == others[1:]


def test_one_bad_row_of_an_upload_is_told_and_the_others_are_found(client: openai.OpenAI) -> None:
    store = client.vector_stores.create(name="Rows")
    rows = b'{"body": "The heron waits at the weir.", "id": 1}\n{"body": \n{"body": "Another of that id.", "id": 1}\n'
    file = client.files.create(file=("rows.jsonl", rows), purpose="assistants")
    attached = client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, poll_interval_ms=20)
    assert attached.status == "completed"
    assert attached.last_error is None or "line 2" in attached.last_error.message
    (found,) = client.vector_stores.search(store.id, query="who waits at the weir?").data
    assert found.file_id == file.id


def test_the_client_uploads_a_file_and_searches_it(own: Running, client: openai.OpenAI) -> None:
    store = client.vector_stores.create(name="Birds", metadata={"topic": "birds"})
    text = "The heron waits at the weir. " * 3 + "\n\nThe wren sings in the hedge."
    file = client.files.create(file=("birds.md", text.encode()), purpose="assistants")
    assert file.filename == "birds.md"
    attached = client.vector_stores.files.create_and_poll(
        file.id, vector_store_id=store.id, attributes={"year": 2020}, poll_interval_ms=20
    )
    assert attached.status == "completed"
    (found, *_) = client.vector_stores.search(store.id, query="who sings in the hedge?").data
    assert (found.file_id, found.filename) == (file.id, "birds.md")
    assert found.attributes is not None
    assert found.attributes["year"] == 2020
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 1
    assert client.files.content(file.id).text == text
    answer = client.responses.create(
        model="tiny",
        input="who sings?",
        tools=[{"type": "file_search", "vector_store_ids": [store.id]}],
        max_output_tokens=2,
    )
    notes = answer.output[1].content[0].annotations  # type: ignore[union-attr]
    assert {note.file_id for note in notes} == {file.id}  # type: ignore[union-attr]
    nothing = client.vector_stores.search(store.id, query="x", filters={"type": "gt", "key": "year", "value": 2021})
    assert nothing.data == []
    assert client.vector_stores.update(store.id, name="Fowl").name == "Fowl"
    assert {each.id for each in client.vector_stores.list()} == {"docs", store.id}
    client.vector_stores.files.delete(file.id, vector_store_id=store.id)
    assert client.vector_stores.search(store.id, query="who sings?").data == []
    client.vector_stores.delete(store.id)
    assert [each.id for each in client.vector_stores.list()] == ["docs"]
    with pytest.raises(openai.PermissionDeniedError):
        client.vector_stores.delete("docs")
    client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_file_that_cannot_be_read_says_why_and_stops_nothing(own: Running, client: openai.OpenAI) -> None:
    bad = {
        "empty.txt": b"  ",
        "latin.txt": "caf\xe9".encode("latin-1"),
        "thing.xyz": b"?",
        "broken.pdf": b"%PDF-1.4 no",
    }
    for name, content in bad.items():
        file = client.files.create(file=(name, io.BytesIO(content)), purpose="assistants")
        attached = client.vector_stores.files.create_and_poll(file.id, vector_store_id="docs", poll_interval_ms=20)
        assert attached.status == "failed", name
        assert attached.last_error is not None
        assert "/" not in attached.last_error.message.replace("and/or", ""), "no path of the server is told"
    assert client.vector_stores.retrieve("docs").file_counts.failed == len(bad)
    good = client.files.create(file=("good.txt", b"a kite over the lighthouse"), purpose="assistants")
    assert client.vector_stores.files.create_and_poll(good.id, vector_store_id="docs").status == "completed"


def test_what_was_created_is_there_after_a_restart(
    tiny_model: GritModel, start: Callable[..., Running], tmp_path: Path
) -> None:

    for round in range(2):
        service = make_service(tiny_model, "tiny", [], Tenants(), Limits(), data=tmp_path / "data")
        with running(service) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            if round == 0:
                store = client.vector_stores.create(name="kept")
                file = client.files.create(file=("a.txt", b"the tide turns at dusk"), purpose="assistants")
                client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, poll_interval_ms=20)
            assert [(each.id, each.name) for each in client.vector_stores.list()] == [(store.id, "kept")]
            assert client.vector_stores.files.retrieve(file.id, vector_store_id=store.id).status == "completed"
            assert client.vector_stores.search(store.id, query="when does the tide turn?").data[0].file_id == file.id


def test_an_index_that_is_deleted_from_the_disk_stops_no_other(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    """Its documents are in no answer any more, and nothing is acknowledged that would be lost."""
    folders = {"gone": make_index(tiny_model), "docs": make_index(tiny_model)}
    with start(tiny_model, folders).client() as http:
        shutil.rmtree(folders["gone"])
        for path, body in {
            "/v1/rag": {"index": "gone", "question": "when does the ferry leave?", "max_new_tokens": 1},
            "/v1/indexes/gone/documents": {"documents": ["it would be lost"]},
            "/v1/indexes/gone/documents:delete": {"ids": ["ferry"]},
        }.items():
            answer = http.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "index_gone"), answer.text
        assert hits(http, "when does the ferry leave?", index="docs")
        assert [row["id"] for row in http.get("/v1/indexes").json()["data"]] == ["docs"]
        assert [row["id"] for row in http.get("/v1/vector_stores").json()["data"]] == ["docs"]


def test_indexing_does_not_stop_answers(own: Running) -> None:
    """While a long upload is read, questions are answered; and when it is done, it is found."""
    lines = "\n".join(f'{{"text": "note {n} about the harbour and its boats"}}' for n in range(300))
    with own.client() as http:
        file = http.post("/v1/files", files={"file": ("notes.jsonl", lines)}).json()
        path = f"/v1/vector_stores/docs/files/{file['id']}"
        http.post("/v1/vector_stores/docs/files", json={"file_id": file["id"]})
        answered = 0
        while http.get(path).json()["status"] == "in_progress":
            assert http.post("/v1/rag", json={"question": "ferry?", "max_new_tokens": 2}).status_code == 200
            answered += 1
            time.sleep(0.01)
        assert answered > 0
        assert http.get(path).json()["chunks"] == 300
        assert http.get("/v1/indexes/docs").json()["documents"] == 306
