"""The application: all routes over one service, its page, its health and its guard."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

import gritrag
from gritrag.serve import (
    chat,
    completions,
    documents,
    embeddings,
    file_batches,
    files,
    models,
    rag,
    responses,
    stores,
)
from gritrag.serve.errors import install_errors
from gritrag.serve.guard import Guard
from gritrag.serve.service import Service

PAGE = Path(__file__).parent / "page"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " + (
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""The page loads nothing from elsewhere, and nobody frames it."""


class Page(StaticFiles):
    """The files of the page, with headers that keep everything else out."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(
            {
                "Content-Security-Policy": POLICY,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-cache",
            }
        )
        return response


def create_app(service: Service) -> FastAPI:
    """The application of a service whose engine has not been started yet."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        stores.go_on_reading(service)
        yield
        await service.finish()

    app = FastAPI(
        title="GritRAG",
        version=gritrag.__version__,
        description="Retrieval-augmented generation with one model that reads every document once.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; /docs is a page of ours
        redoc_url=None,
    )
    app.state.service = service
    install_errors(app)
    app.add_middleware(Guard, service=service)
    for module in (rag, chat, completions, embeddings, models, documents, files, stores, file_batches, responses):
        app.include_router(module.router)
    if PAGE.is_dir():
        app.mount("/", Page(directory=PAGE, html=True), name="page")
    return app
