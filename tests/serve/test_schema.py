"""The OpenAPI description is complete, and nothing that fits it, or does not, makes the server fail."""

from collections.abc import Callable
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from serving import Running

from gritrag import GritModel


def test_no_request_makes_the_server_fail(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> None:
    server = start(tiny_model, {"docs": make_index(tiny_model)}, default_new_tokens=2, new_tokens=8, seconds=30)
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried: dict[str, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=10, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @seed(7)
        @given(case=operation.as_strategy())
        def fits_or_is_refused(case: schemathesis.Case) -> None:
            response = case.call(timeout=60)
            assert response.status_code < 500, (case.as_curl_command(), response.text)
            tried[case.path] = tried.get(case.path, 0) + 1

        fits_or_is_refused()
    assert len(tried) >= 25
    assert sum(tried.values()) >= 200


def test_every_route_describes_what_it_takes_answers_and_refuses(server: Running) -> None:
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    operations = {(method, path): told for path, methods in paths.items() for method, told in methods.items()}
    assert {
        ("post", "/v1/chat/completions"),
        ("post", "/v1/completions"),
        ("post", "/v1/responses"),
        ("post", "/v1/embeddings"),
        ("post", "/v1/rerank"),
        ("post", "/rerank"),
        ("get", "/v1/models"),
        ("post", "/v1/rag"),
        ("post", "/v1/files"),
        ("post", "/v1/vector_stores"),
        ("post", "/v1/vector_stores/{store}/files"),
        ("post", "/v1/indexes/{index}/documents"),
        ("get", "/metrics"),
        ("get", "/health"),
        ("get", "/ready"),
    } <= set(operations)
    for name, told in operations.items():
        (content,) = told["responses"]["200"].get("content", {"": {}}).values()
        is_json = "application/json" in told["responses"]["200"].get("content", {})
        assert not is_json or content["schema"], name
        if name[0] == "post" and not name[1].endswith("/cancel"):  # which says all by its path
            assert told["requestBody"]["content"], name
        if name[1] not in ("/health",):
            assert "413" in told["responses"], name
