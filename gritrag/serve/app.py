"""The application: all routes over one service, its page, its health and its guards."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import gritrag
from gritrag.serve import chat, completions, documents, embeddings, files, models, rag, responses, stores
from gritrag.serve.errors import ApiError, as_api_error, install_errors
from gritrag.serve.service import Service

PAGE = Path(__file__).parent / "page"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " + (
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""The page loads nothing from elsewhere, and nobody frames it."""


FORM_BYTES = 1 << 16
"""Around an uploaded file, in its form."""


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
    for module in (rag, chat, completions, embeddings, models, documents, files, stores, responses):
        app.include_router(module.router)
    if PAGE.is_dir():
        app.mount("/", Page(directory=PAGE, html=True), name="page")
    return app


class Guard:
    """Counts every request by the route that answered it; refuses bodies that are too large, and pages of other sites:
    none of them is to use a server through the browser of somebody who reaches it."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._service.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            refused = ApiError(403, "requests from pages of other sites are refused", "cross_origin")
            await refused.response(scope, receive, counted)
            return
        most = self._service.limits.body_bytes
        if scope["path"] == "/v1/files":
            most = self._service.limits.upload_bytes + FORM_BYTES
        size = headers.get("content-length", "")
        if size.isdigit() and int(size) > most:
            refused = ApiError(413, f"a request may have {most} bytes here", "too_large")
            await refused.response(scope, receive, counted)
            return
        # what does not say its size is counted while it comes
        await RequestBodyLimitMiddleware(self._safely, most)(scope, self._in_time(receive), counted)

    def _in_time(self, receive: Receive) -> Receive:
        """Messages of a request whose body must have come before a request would be given up."""
        end = time.monotonic() + self._service.limits.seconds
        is_whole = False

        async def received() -> Message:
            nonlocal is_whole
            if is_whole:
                return await receive()  # that the client goes away, whenever that is
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except TimeoutError:
                raise HTTPException(408, "the body of this request did not come in time") from None
            is_whole = not message.get("more_body", False)
            return message

        return received

    async def _safely(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whatever goes wrong is an answer in the shape of all errors, and the connection stays."""
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except HTTPException:
            raise  # of the limit of bodies, which answers it
        except Exception as error:
            if has_begun:
                raise
            await as_api_error(error).response(scope, receive, send)
