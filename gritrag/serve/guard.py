"""The guard: what comes before every route. Counts, and refuses what no route is to see."""

import asyncio
import time
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gritrag.serve.errors import ApiError, as_api_error
from gritrag.serve.service import Service

FORM_BYTES = 1 << 16
"""Around an uploaded file, in its form."""


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
        if (refused := self._refused(headers)) is not None:
            await refused.response(scope, receive, counted)
            return
        most = self._service.limits.body_bytes
        if scope["path"] == "/v1/files":
            most = self._service.limits.upload_bytes + FORM_BYTES
        size = headers.get("content-length", "")
        if size.isdigit() and int(size) > most:
            too_large = ApiError(413, f"a request may have {most} bytes here", "too_large")
            await too_large.response(scope, receive, counted)
            return
        # what does not say its size is counted while it comes
        await RequestBodyLimitMiddleware(self._safely, most)(scope, self._in_time(receive), counted)

    def _refused(self, headers: Headers) -> ApiError | None:
        """Why a page of another site may have sent this; None if none can have."""
        host, origin = headers.get("host"), headers.get("origin")
        if origin is not None and _split(origin).netloc != host:
            return ApiError(403, "requests from pages of other sites are refused", "cross_origin")
        if self._service.tenants.are_open and host is not None and not is_of_nobody_else(host):
            return ApiError(
                403,
                f"a server without keys is not asked as {host!r}, which a page of another site may have named so: ask "
                "127.0.0.1 or localhost, or serve with keys",
                "unknown_host",
            )
        return None

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


def is_of_nobody_else(host: str) -> bool:
    """Whether what a request calls its server is an address or ``localhost``.

    The owner of any other name can have it mean this machine after a page of theirs has been loaded (DNS rebinding),
    and the browser takes that page for one of this server then.
    """
    name = _split(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _split(url: str) -> SplitResult:
    """The parts of a URL; none of one that makes no sense."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
