"""The OpenAPI description is complete, and nothing that fits it, or does not, makes the server fail."""

from collections.abc import Callable
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from serving import Running

from gritrag import GritModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def described(
    tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]
) -> schemathesis.schemas.BaseSchema:
    server = start(tiny_model, {"docs": make_index(tiny_model)}, default_new_tokens=2, new_tokens=8, seconds=30)
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(
    max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
)
def test_no_request_makes_the_server_fail(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=[not_a_server_error], timeout=60)


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
        if name[0] == "post":
            assert told["requestBody"]["content"], name
        if name[1] not in ("/health",):
            assert "413" in told["responses"], name
