"""Whoever sends nonsense, too much or nothing at all gets an error or waits alone, and the server goes on."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from serving import QUESTIONS, Running

from gritrag import GritModel

JSON = {"content-type": "application/json"}
BROKEN = [
    b"",
    b"{",
    b"nonsense",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"question": "\\ud800"}',
    b'{"question": 1' + b"0" * 5000 + b"}",
    b'{"question": "x", "k": 1e999}',
    b'{"question": "x", "k": NaN}',
    b'{"question": ["x"], "question": {"y": 1}}',
    b'{"question": "x", "where": ' + b'{"$and": [' * 500 + b"1" + b"]}" * 500 + b"}",
    b'{"question": "\\u0000", "index": "\\u0000"}',
    b'{"question": "x", "max_new_tokens": -1}',
    b'{"question": "x", "max_new_tokens": 99999999999999999999}',
    b'{"question": "x", "documents": [{"text": 1}]}',
    b'{"question": "x", "documents": [{"text": "y", "metadata": {"a": {"b": ["c"]}}}], "mode": "../"}',
    b'{"input": [[1], "x", null], "model": [], "messages": "x", "documents": {}, "query": 1}',
    b'{"input": [-1, 99999999999], "prompt": [-1], "messages": [{"role": "root", "content": {}}], "model": "tiny"}',
]
ROUTES = [
    "/v1/rag",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/vector_stores",
    "/v1/indexes/docs/documents",
]
IDS = ["%00", "..%2f..%2fetc%2fpasswd", "....//", "%2e%2e", "file-" + "a" * 5000, "a%0d%0aSet-Cookie:%20x=1", "';--"]


def answers(client: httpx.Client) -> bool:
    response = client.post("/v1/rag", json={"question": QUESTIONS[0], "max_new_tokens": 2})
    return response.status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_nonsense_is_refused(route: str, http: httpx.Client) -> None:
    for body in BROKEN:
        response = http.post(route, content=body, headers=JSON)
        assert 400 <= response.status_code < 500 or (response.status_code == 200 and body.startswith(b'{"')), body[:60]
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}, body[:60]
    for kind in (
        "text/plain",
        "multipart/form-data",
        "application/x-www-form-urlencoded",
        "application/json; charset=x",
    ):
        assert http.post(route, content=b"question=x", headers={"content-type": kind}).status_code in (400, 415, 422)
    assert answers(http)


def test_ids_that_are_none_are_not_found(http: httpx.Client) -> None:
    paths = ["/v1/files/{}", "/v1/files/{}/content", "/v1/vector_stores/{}", "/v1/responses/{}", "/v1/models/{}"]
    paths += ["/v1/indexes/{}", "/v1/indexes/docs/documents/{}", "/v1/vector_stores/docs/files/{}"]
    for path in paths:
        for id in IDS:
            for method in ("GET", "DELETE"):
                response = http.request(method, path.format(id))
                assert response.status_code in (400, 403, 404, 405), (method, path, id, response.text)
                assert "set-cookie" not in response.headers
    assert answers(http)


@pytest.mark.parametrize(
    "name", ["../../evil.txt", "/etc/passwd", "a\x00b.txt", "..", "x" * 5000 + ".txt", "con\r\nX: y"]
)
def test_names_of_uploads_are_names(name: str, http: httpx.Client, server: Running) -> None:
    before = set(Path("/tmp").glob("evil*"))
    response = http.post("/v1/files", files={"file": (name, b"text")})
    assert response.status_code in (200, 400, 422), response.text
    if response.status_code == 200:
        told = response.json()
        assert "/" not in told["filename"]
        content = http.get(f"/v1/files/{told['id']}/content")
        assert content.content == b"text"
        assert "\n" not in content.headers["content-disposition"]
        assert http.delete(f"/v1/files/{told['id']}").status_code == 200
    assert set(Path("/tmp").glob("evil*")) == before


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=20)


def test_connections_that_say_nothing_keep_nobody_waiting(server: Running, http: httpx.Client) -> None:
    with ExitStack() as stack:
        for number in range(200):
            idle = stack.enter_context(connected(server.url))
            if number % 2:
                idle.sendall(b"POST /v1/rag HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Le")
        began = time.monotonic()
        assert answers(http)
        assert time.monotonic() - began < 10


def test_a_body_that_does_not_come_is_given_up(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    server = start(tiny_model, {"docs": make_index(tiny_model)}, seconds=1.0)
    with connected(server.url) as slow, server.client() as http:
        head = (
            b"POST /v1/rag HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        )
        slow.sendall(head + b'{"question"')
        began = time.monotonic()
        told = slow.recv(1000)
        assert told.startswith(b"HTTP/1.1 408")
        assert 0.5 < time.monotonic() - began < 10

        def pieces() -> Iterator[bytes]:
            yield b'{"question": "x", '
            time.sleep(0.3)
            yield b'"max_new_tokens": 1}'

        assert http.post("/v1/rag", content=pieces(), headers=JSON).status_code == 200, "slow, but in time"


def test_garbage_on_the_wire_is_refused(server: Running, http: httpx.Client) -> None:
    for sent in (b"\x16\x03\x01\x02\x00", b"GET / FTP/1.1\r\n\r\n", b"GET " + b"/a" * 40_000 + b" HTTP/1.1\r\n\r\n"):
        with connected(server.url) as raw:
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            assert not raw.recv(100).startswith((b"HTTP/1.1 2", b"HTTP/1.1 5"))
    assert answers(http)


def test_the_api_page_loads_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/docs", follow_redirects=True)
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    script = http.get("/docs/docs.js")
    assert script.status_code == 200
    for text in (page.text, script.text):
        assert "//" not in "\n".join(line for line in text.splitlines() if not line.startswith("//"))
    assert http.get("/redoc").status_code == 404
