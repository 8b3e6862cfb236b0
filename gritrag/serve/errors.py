"""Errors in the shape of OpenAI's: what happened and what to do, and never a path, a stack or somebody else's data."""

import errno
import logging
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from gritrag.index.errors import ClosedIndex, ReplacedIndex
from gritrag.serve.jobs import DeadlineError, StoppingError

logger = logging.getLogger(__name__)

PATH = re.compile(r"(?<![\w/:.])/[\w.@+-]+(?:/[\w.@+-]*)+")
"""A path of this machine, which is nobody's business."""


GONE = "index_not_found"
"""Code of an index that there is not, or no more."""


NO_ROUTE = "there is no such route; /docs lists those that there are"
NO_METHOD = "this route does not take this method; /docs lists what it takes"
ELSEWHERE = {
    "/v1/chat/completions": "chats are answered here (POST), and not stored: /v1/responses stores what it answers",
    "/v1/responses/compact": "responses are not compacted here: send the messages that are to be kept",
    "/v1/models/": "models are those that the server was started with, and are not changed here",
}
"""What OpenAI's clients call and this server has not, and what to do."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """What every error of this server looks like."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: for the one who asked.
        code: a word for programs.
        param: the field of the request that is at fault.
        retry_after: seconds after which to ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """What the one who asked did wrong."""
    return ApiError(400, message, code, param)


def too_long(tokens: int, most: int, param: str) -> ApiError:
    """An input that the model cannot take, found before any work was done for it."""
    message = f"this input has {tokens} tokens with the answer it leaves room for, at most {most} are taken; shorten it"
    return ApiError(413, message, "context_length_exceeded", param)


def as_api_error(error: Exception) -> ApiError:
    """Whatever went wrong, as it may be told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DeadlineError):
        return ApiError(504, str(error), "timeout")
    if isinstance(error, StoppingError):
        return ApiError(503, str(error), "stopping", retry_after=5)
    if isinstance(error, ReplacedIndex):
        logger.error("%s: start the server again", error)
        return ApiError(503, "the index has been deleted or made anew: the server must be started again", "index_gone")
    if isinstance(error, ClosedIndex):  # while it was asked, or written
        return ApiError(404, "the vector store has been deleted", GONE, "index")
    if isinstance(error, ValueError):
        return bad(PATH.sub("(a file of the server)", str(error)))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        logger.error("the disk is full", exc_info=error)
        return ApiError(507, "the disk of the server is full, and nothing was stored; tell who runs it", "disk_full")
    if isinstance(error, TimeoutError):  # another process has been writing the index all the time
        return ApiError(503, "the index is held by another process; ask again later", "index_held", retry_after=5)
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "something went wrong in the server; its log says what", "internal_error")


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 504, 507)
}
"""For the description of every route."""


def install_errors(app: FastAPI) -> None:
    """Answer every error in this shape."""

    @app.exception_handler(ApiError)
    async def of_api(request: Request, error: ApiError) -> JSONResponse:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def of_body(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return bad(f"{place or 'the body'}: {first['msg']}", place or None, "invalid_body").response

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, OSError):  # of the disk, on which large uploads wait until they are whole
            return as_api_error(error.__cause__).response
        is_page = isinstance(request.scope.get("endpoint"), StaticFiles)  # which gets whatever no route takes
        status = 404 if is_page and error.status_code == 405 else error.status_code
        message = {404: NO_ROUTE, 405: NO_METHOD}.get(status, str(error.detail))
        if status in (404, 405):
            message = next((told for path, told in ELSEWHERE.items() if request.url.path.startswith(path)), message)
        answer = ApiError(status, message).response
        answer.headers.update((error.headers if status == error.status_code else None) or {})
        return answer
