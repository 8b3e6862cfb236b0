"""Isolation: who may what, and what nobody is told."""

import hashlib
import hmac
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from serving import DOCUMENTS, QUESTIONS, Running

from gritrag import GritModel
from gritrag.serve import tenants as tenants_module
from gritrag.serve.limits import Limits
from gritrag.serve.server import Served, make_service, run
from gritrag.serve.tenants import Tenants, load_tenants

KEYS = [
    {"name": "alice", "key": "alice-key", "read": ["docs"], "write": ["docs"], "create": True},
    {"name": "bob", "key_sha256": hashlib.sha256(b"bob-key").hexdigest(), "read": ["docs", "other"]},
    {"name": "eve", "key": "eve-key"},
]


@pytest.fixture(scope="module")
def locked(
    tiny_model: GritModel,
    make_index: Callable[..., Path],
    start: Callable[..., Running],
    tmp_path_factory: pytest.TempPathFactory,
) -> Running:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    file.write_text(yaml.safe_dump(KEYS))
    folders = {"docs": make_index(tiny_model), "other": make_index(tiny_model)}
    return start(tiny_model, folders, load_tenants(file))


@pytest.fixture(params=["alice-key", "bob-key", "eve-key"])
def holder(request: pytest.FixtureRequest, locked: Running) -> Iterator[httpx.Client]:
    with locked.client(request.param) as client:
        yield client


def test_without_a_key_nothing_is_told_but_health(locked: Running) -> None:
    schema = httpx.get(f"{locked.url}/openapi.json").json()
    open_paths = {"/health", "/ready"}
    for key in ("", "wrong", "alice-keys", "ALICE-KEY"):
        with locked.client(key) as client:
            for path, methods in schema["paths"].items():
                for method in methods:
                    response = client.request(method, path.replace("{", "x").replace("}", ""), json={"a": 1})
                    expected = {200, 401} if path in open_paths else {401}
                    assert response.status_code in expected, (method, path, response.text)
    assert httpx.get(f"{locked.url}/health").status_code == 200
    assert httpx.get(f"{locked.url}/v1/models").headers["www-authenticate"] == "Bearer"


def test_rights_are_per_index(locked: Running) -> None:
    document = {"documents": ["new"]}
    with locked.client("alice-key") as alice, locked.client("bob-key") as bob, locked.client("eve-key") as eve:
        assert {row["id"] for row in alice.get("/v1/indexes").json()["data"]} == {"docs"}
        assert {row["id"] for row in bob.get("/v1/indexes").json()["data"]} == {"docs", "other"}
        assert eve.get("/v1/indexes").json()["data"] == eve.get("/v1/vector_stores").json()["data"] == []
        assert alice.post("/v1/indexes/docs/documents", json=document).status_code == 200
        assert bob.post("/v1/indexes/docs/documents", json=document).status_code == 403
        for client in (alice, eve):
            assert client.post("/v1/indexes/other/documents", json=document).status_code == 404
            for body in ({"index": "other"}, {"index": "no such"}):
                answer = client.post("/v1/rag", json={"question": "x", **body})
                assert answer.status_code == 404
        assert eve.post("/v1/rag", json={"question": "x"}).status_code == 400
        assert (
            eve.post(
                "/v1/chat/completions", json={"model": "rag/docs", "messages": [{"role": "user", "content": "x"}]}
            ).status_code
            == 404
        )
        assert eve.post("/v1/embeddings", json={"input": "x"}).status_code == 200
        assert bob.post("/v1/vector_stores", json={}).status_code == 403
        made = alice.post("/v1/vector_stores", json={"name": "mine"}).json()["id"]
        assert bob.get(f"/v1/vector_stores/{made}").status_code == 404
        assert alice.get(f"/v1/vector_stores/{made}").status_code == 200


def test_files_and_responses_are_ones_own(locked: Running) -> None:
    with locked.client("alice-key") as alice, locked.client("bob-key") as bob:
        file = alice.post("/v1/files", files={"file": ("a.txt", b"secret")}).json()["id"]
        assert alice.get(f"/v1/files/{file}/content").content == b"secret"
        for path in (f"/v1/files/{file}", f"/v1/files/{file}/content"):
            assert bob.get(path).status_code == 404
        assert bob.delete(f"/v1/files/{file}").status_code == 404
        assert bob.get("/v1/files").json()["data"] == []
        said = alice.post("/v1/responses", json={"model": "tiny", "input": "x", "max_output_tokens": 1}).json()["id"]
        assert bob.get(f"/v1/responses/{said}").status_code == 404
        body = {"model": "tiny", "input": "x", "previous_response_id": said}
        assert bob.post("/v1/responses", json=body).status_code == 404


SECRET = 20
"""So many tokens of what is said below are the one who says it's own."""


def cached(client: httpx.Client, path: str, body: dict[str, Any]) -> int:
    usage = client.post(path, json=body).json()["usage"]
    tokens: int = usage["prompt_tokens_details"]["cached_tokens"]
    return tokens


def test_what_one_tenant_said_is_never_a_hit_of_another(locked: Running) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "my very own secret words"}], "max_tokens": 2}
    rag = {"question": "what?", "documents": ["a very secret document", "and one more"], "max_new_tokens": 2}
    with locked.client("alice-key") as alice, locked.client("bob-key") as bob:
        for path, body in (("/v1/chat/completions", chat), ("/v1/rag", rag)):
            for client in (alice, bob):
                assert cached(client, path, body) < SECRET, "but for scaffold, which holds nothing of anybody"
                assert cached(client, path, body) >= SECRET
    salts = {tenant.salt for _, tenant in locked.service.tenants._keys}
    assert len(salts) == 3
    assert all(len(salt) == 32 for salt in salts)


def test_another_process_salts_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump(KEYS))
    one, other = (load_tenants(file).of_key("alice-key") for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.salt != other.salt


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compared: list[tuple[bytes, bytes]] = []

    class Watched:
        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return hmac.compare_digest(one, other)

    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump(KEYS))
    known = load_tenants(file)
    monkeypatch.setattr(tenants_module, "hmac", Watched)
    for key in ("alice-key", "eve-key", "nobody", ""):
        compared.clear()
        known.of_key(key)
        assert len(compared) == len(KEYS), "also those behind the one that fits"
        assert all(len(one) == len(other) == 32 for one, other in compared), "hashes, not keys"
    tenant = known.of_key("bob-key")
    assert tenant is not None
    assert tenant.name == "bob"


@pytest.mark.parametrize(
    "text",
    ["- name: a\n", "- name: a\n  key: x\n  key_sha256: '00'\n", "- nme: a\n", "[]", "{: :", "- name: a\n  key: ''\n"],
)
def test_a_broken_file_of_keys_is_told_without_its_keys(text: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text + "#secret-in-a-comment")
    with pytest.raises(ValueError, match=r"keys\.yaml") as error:
        load_tenants(file)
    assert "secret" not in str(error.value)


def test_no_two_share_a_key_and_nobody_has_the_rights_of_the_owner_by_name(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("- {name: owner, key: hers, read: [docs]}\n")
    mine = load_tenants(file).of_key("hers")
    assert mine is not None
    assert not mine.may_write("docs")
    with pytest.raises(ValueError, match="'owner' is who has GRITRAG_API_KEY; give another name"):
        load_tenants(file, "the key that may do everything")
    file.write_text("- {name: a, key: one, read: [x]}\n- {name: b, key: one, read: [y]}\n")
    with pytest.raises(ValueError, match="a and b have the same key") as error:
        load_tenants(file)
    assert "one" not in str(error.value)
    file.write_text("- {name: a, key: one, read: [x]}\n- {name: a, key: two, read: [y]}\n")
    both = load_tenants(file)
    assert both.of_key("one") is both.of_key("two"), "two keys of one tenant"


def test_a_server_without_keys_stays_on_this_machine(tiny_model: GritModel) -> None:
    service = make_service(tiny_model, "tiny", [], Tenants(), Limits())
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org"):
        with pytest.raises(ValueError, match="keys"):
            run(service, host, 0)


def test_bodies_and_texts_have_limits(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    server = start(tiny_model, {"docs": make_index(tiny_model)}, body_bytes=2000, upload_bytes=4000, input_tokens=100)
    steps = server.service.metrics.steps
    before = steps._sum.get()
    with server.client() as client:
        assert client.post("/v1/rag", json={"question": "x" * 2500}).status_code == 413

        def pieces() -> Iterator[bytes]:
            yield b'{"question": "'
            yield from [b"x" * 500] * 8
            yield b'"}'

        chunked = client.post("/v1/rag", content=pieces(), headers={"content-type": "application/json"})
        assert chunked.status_code == 413
        assert chunked.json()["error"]["type"] == "invalid_request_error"
        assert client.post("/v1/files", files={"file": ("a.txt", b"x" * 100_000)}).status_code == 413
        assert client.post("/v1/files", files={"file": ("a.txt", b"x" * 3500)}).status_code == 200
        long = "word " * 30
        bodies: dict[str, dict[str, Any]] = {
            "/v1/rag": {"question": long},
            "/v1/embeddings": {"input": ["short", long]},
            "/v1/rerank": {"query": "short", "documents": [long]},
            "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": long}]},
            "/v1/completions": {"model": "tiny", "prompt": long},
            "/v1/responses": {"model": "tiny", "input": long},
        }
        for path, body in bodies.items():
            response = client.post(path, json=body)
            assert response.status_code == 413, path
            assert response.json()["error"]["code"] == "context_length_exceeded"
        room = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 99}
        assert client.post("/v1/chat/completions", json=room).status_code == 413
    assert steps._sum.get() == before, "refused before any work"


def test_pages_of_other_sites_are_refused_and_no_header_invites_them(http: httpx.Client, server: Running) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://[", ""):
        response = http.post("/v1/rag", json={"question": "x"}, headers={"Origin": origin})
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "cross_origin"
        assert "access-control-allow-origin" not in response.headers
    own = http.post("/v1/rag", json={"question": "x", "max_new_tokens": 1}, headers={"Origin": server.url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


def test_a_name_that_others_can_give_this_machine_is_refused_without_keys(http: httpx.Client, locked: Running) -> None:
    """A page of evil.example is loaded, then that name is made to mean 127.0.0.1: all its requests have one origin."""
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "[", "x"):
        for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
            refused = http.get("/v1/indexes/docs/documents", headers=headers)
            assert refused.status_code == 403, host
            assert "the ferry" not in refused.text
    for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "notes.localhost", "192.168.1.7:80"):
        assert http.get("/v1/indexes", headers={"Host": host}).status_code == 200, host
    with locked.client("alice-key") as alice:
        assert alice.get("/v1/indexes", headers={"Host": "notes.example"}).status_code == 200, "a key is what protects"


def test_no_path_of_the_server_is_an_argument_or_an_answer(server: Running, http: httpx.Client) -> None:
    folder = str(server.service.indexes["docs"].path)
    outside = ["../../etc/passwd", "/etc/passwd", folder, "..%2f..%2fetc%2fpasswd"]
    for name in outside:
        answers = [
            http.post("/v1/rag", json={"question": "x", "index": name}),
            http.get(f"/v1/indexes/{name}"),
            http.get(f"/v1/files/{name}/content"),
            http.get(f"/v1/vector_stores/{name}"),
            http.post(
                "/v1/chat/completions", json={"model": f"rag/{name}", "messages": [{"role": "user", "content": "x"}]}
            ),
            http.post("/v1/embeddings", json={"model": name, "input": "x"}),
        ]
        for answer in answers:
            assert answer.status_code in (400, 404), (name, answer.text)
            assert "root:" not in answer.text
    told = [http.get("/v1/indexes").text, http.get("/v1/indexes/docs").text, http.get("/metrics").text]
    told.append(http.post("/v1/rag", json={"question": QUESTIONS[0], "where": {"$bad": 1}}).text)
    assert not any(folder in text or "Traceback" in text for text in told)
    upload = http.post("/v1/files", files={"file": ("../../evil/name.txt", b"text")}).json()
    assert upload["filename"] == "name.txt"


def test_a_fault_of_ours_tells_nothing(server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"secret {server.service.indexes['docs'].path}")

    monkeypatch.setattr(server.service.indexes["docs"], "search_many", fail)
    response = http.post("/v1/rag", json={"question": "x"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    monkeypatch.undo()
    assert http.post("/v1/rag", json={"question": "x", "max_new_tokens": 1}).status_code == 200


def test_names_of_indexes(tmp_path: Path) -> None:
    assert Served.of(f"wiki={tmp_path}") == Served("wiki", tmp_path)
    assert Served.of(str(tmp_path / "docs")).name == "docs"
    for bad in ("a/b=x", "=x", "two words=x", "-x=y"):
        with pytest.raises(ValueError, match="name"):
            Served.of(bad)


def test_the_page_brings_its_own_rules(http: httpx.Client) -> None:
    page = http.get("/")
    if page.status_code == 200:
        assert "default-src 'none'" in page.headers["content-security-policy"]
    assert http.get("/../serve/app.py").status_code == 404
    assert len(DOCUMENTS) == 6
