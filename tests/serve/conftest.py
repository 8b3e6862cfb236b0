"""A real server on loopback over a tiny random model, and clients for it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from serving import DOCUMENTS, Running, running

from gritrag import Document, GritModel, Index
from gritrag.serve.limits import Limits
from gritrag.serve.server import Served, make_service
from gritrag.serve.tenants import Tenants


@pytest.fixture(scope="session")
def make_index(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_index(model)`: the folder of a new index of `DOCUMENTS`."""

    def make(model: GritModel, documents: list[Document] = DOCUMENTS, states: str = "float32") -> Path:
        folder = tmp_path_factory.mktemp("indexes") / "docs"
        with Index.create(folder, model=model, states=states) as index:
            index.add(documents)
        return folder

    return make


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """`start(model, {"docs": folder})`: a server that is stopped when the tests are over."""
    with ExitStack() as stack:

        def begin(
            model: GritModel,
            folders: dict[str, Path],
            tenants: Tenants | None = None,
            reads_only: bool = False,
            **limits: object,
        ) -> Running:
            served = [Served(name, folder) for name, folder in folders.items()]
            bounds = Limits(**limits)  # type: ignore[arg-type]
            service = make_service(model, "tiny", served, tenants or Tenants(), bounds, reads_only=reads_only)
            return stack.enter_context(running(service))

        yield begin


@pytest.fixture(scope="module")
def server(tiny_model: GritModel, make_index: Callable[..., Path], start: Callable[..., Running]) -> Running:
    return start(tiny_model, {"docs": make_index(tiny_model)})


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
