"""What all routes share: who asks, what they may, how long they stay, and how streams are written."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from gritrag.index.errors import ClosedIndex, ReplacedIndex
from gritrag.index.index import Index
from gritrag.serve.errors import GONE, ApiError, as_api_error
from gritrag.serve.question import Asker
from gritrag.serve.service import Service
from gritrag.serve.tenants import Tenant

T = TypeVar("T")

logger = logging.getLogger(__name__)

DONE = format_sse_event(data_str="[DONE]")
"""What ends a stream of OpenAI's."""

GRACE = 10.0
"""Seconds after its deadline in which a client may still take what was written for it."""

bearer = HTTPBearer(auto_error=False, description="An API key of the server, if it asks for any.")


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def asker_of(
    request: Request,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    service: Annotated[Service, Depends(service_of)],
) -> Asker:
    """Who asks, by the key in the header.

    Raises:
        ApiError: 401 without a key that is known.
    """
    tenant = service.tenants.of_key(given.credentials if given else "")
    if tenant is None:
        raise ApiError(401, "give an API key of this server: Authorization: Bearer KEY", "invalid_api_key")
    host = request.client.host if request.client else "unknown"
    client = host if service.tenants.are_open else tenant.name
    return Asker(tenant, client, time.monotonic() + service.limits.seconds)


Serving = Annotated[Service, Depends(service_of)]
Asking = Annotated[Asker, Depends(asker_of)]


def readable(service: Service, tenant: Tenant, name: str) -> Index:
    """The index, if this tenant may read it.

    Raises:
        ApiError: 404 if there is none, or none that it may know of.
    """
    index = service.indexes.get(name)  # once: it may be deleted in another thread
    if index is None or not tenant.may_read(name):
        raise ApiError(404, f"there is no index {name!r} for this key", GONE, "index")
    return index


def writable(service: Service, tenant: Tenant, name: str) -> Index:
    """The index, if this tenant may write it.

    Raises:
        ApiError: 404 as above; 403 if it may only be read.
    """
    index = readable(service, tenant, name)
    if not tenant.may_write(name):
        raise ApiError(403, f"this key may read the index {name!r}, and not write it", "read_only", "index")
    if not index.writable:
        raise ApiError(403, f"the index {name!r} is served for reading only", "read_only", "index")
    return index


async def present(of_index: Coroutine[Any, Any, T]) -> T | None:
    """What is said of an index; None for one that has been deleted, here or from the disk, or made anew there."""
    try:
        return await of_index
    except ReplacedIndex as error:
        logger.error("%s: start the server again", error)
        return None
    except (ApiError, ClosedIndex) as error:
        if as_api_error(error).code != GONE:
            raise
        return None


def new_id(prefix: str) -> str:
    return f"{prefix}{uuid.uuid4().hex}"


def event(body: BaseModel | dict[str, Any], name: str | None = None) -> bytes:
    """One event of a stream."""
    data = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
    return format_sse_event(data_str=json.dumps(data, ensure_ascii=False), event=name)


async def whole(service: Service, asker: Asker, request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of a request in its place of the queue; given up when nobody waits for it any more."""
    began = time.perf_counter()
    has_place = False
    try:
        with service.admission(asker.client):
            has_place = True
            outcome = await _while_connected(request, work)
            service.admission.learn(time.perf_counter() - began)
            return outcome
    finally:
        if not has_place:
            work.close()


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of what a client waits for; it is ended when the client goes away.

    Raises:
        ApiError: 499, which nobody gets.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client went away", "client_closed_request")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def streamed(
    service: Service,
    asker: Asker,
    request: Request,
    events: AsyncGenerator[bytes, None],
) -> "Stream":
    """A stream of events. What fails before the first is an error of HTTP; later ones are told in an event."""
    held = _holding_a_place(service, asker, events)
    first = await _while_connected(request, _next(held))
    return Stream(first, held, asker.deadline + GRACE)


class Stream(EventSourceResponse):
    """Events that are sent as they come. What they hold is let go of when the client goes away, or does not take them.

    Args:
        first, rest: events.
        end: of `time.monotonic`; what the client has not taken then it does not get.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], end: float) -> None:
        self._rest, self._events, self._end = rest, _after(first, rest), end
        super().__init__(self._events, headers={"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(max(0.0, self._end - time.monotonic())):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.warning("a client has not taken its stream in time, and gets no more of it")
        finally:
            await self._events.aclose()
            await self._rest.aclose()  # where the first event has not been sent


async def _next(events: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(events, b"")


async def _holding_a_place(
    service: Service, asker: Asker, events: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    began = time.perf_counter()
    async with aclosing(events):
        with service.admission(asker.client):
            async for each in events:
                yield each
            service.admission.learn(time.perf_counter() - began)


async def _after(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        try:
            async for each in rest:
                yield each
        except Exception as error:  # the status line has been sent: all that is left is to say so in the stream
            yield event(as_api_error(error).body)


async def merged(streams: list[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Several streams in one, each item with the number of its stream. An error of one ends all."""
    items: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def drain(number: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    items.put_nowait((number, item))
            items.put_nowait(None)
        except Exception as error:  # raised again where the items are taken
            items.put_nowait(error)

    tasks = [asyncio.create_task(drain(*each)) for each in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            item = await items.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
