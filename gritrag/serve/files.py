"""`/v1/files`: upload, list, fetch and delete files."""

from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from gritrag.serve.errors import ERRORS, ApiError, bad
from gritrag.serve.http import Asking, Serving, whole
from gritrag.serve.paging import Cursor, Page
from gritrag.serve.stores import take_out
from gritrag.serve.threads import in_thread, in_writer
from gritrag.serve.uploads import Upload

router = APIRouter(tags=["files"])


class FileBody(BaseModel):
    """A file, as OpenAI describes it."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, upload: Upload) -> "FileBody":
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=upload.created_at,
            filename=upload.name,
            purpose=upload.purpose,
        )


class FileList(Page):
    data: list[FileBody]


class WantedFiles(Cursor):
    """Which files a client wants to have listed."""

    limit: int = Field(10_000, ge=1, le=10_000)
    purpose: str | None = None


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


@router.post("/v1/files", response_model=FileBody, responses=ERRORS)
async def upload(
    request: Request,
    service: Serving,
    asker: Asking,
    file: Annotated[UploadFile, File(description="The file.")],
    purpose: Annotated[str, Form(max_length=64)] = "assistants",
) -> FileBody:
    """Upload a file. It is read when it is put into a vector store."""
    if any(name.startswith("expires_after") for name in await request.form()):
        raise bad(
            "expires_after: a file is kept here until it is deleted; leave this out",
            "expires_after",
            "unsupported_parameter",
        )
    if (file.size or 0) > service.limits.upload_bytes:
        raise ApiError(413, f"a file may have {service.limits.upload_bytes} bytes", "too_large", "file")
    name = file.filename or "upload"
    saving = in_thread(service.uploads.save, file.file, name, purpose, asker.tenant.name)
    return FileBody.of(await whole(service, asker, request, saving))


@router.get("/v1/files", response_model=FileList, responses=ERRORS)
async def list_files(service: Serving, asker: Asking, wanted: Annotated[WantedFiles, Query()]) -> FileList:
    """The files of this key."""
    files = [FileBody.of(each) for each in service.uploads.of(asker.tenant.name)]
    return FileList.of(files, wanted, lambda file: wanted.purpose in (None, file.purpose))


@router.get("/v1/files/{file_id}", response_model=FileBody, responses=ERRORS)
async def get_file(file_id: str, service: Serving, asker: Asking) -> FileBody:
    return FileBody.of(service.uploads.get(file_id, asker.tenant.name))


@router.get("/v1/files/{file_id}/content", response_class=FileResponse, responses=ERRORS)
async def get_content(file_id: str, service: Serving, asker: Asking) -> Response:
    """The bytes of a file, never as something that a browser would run."""
    record = service.uploads.get(file_id, asker.tenant.name)
    headers = {"X-Content-Type-Options": "nosniff"}
    return FileResponse(
        service.uploads.content(record), media_type="application/octet-stream", filename=record.name, headers=headers
    )


@router.delete("/v1/files/{file_id}", response_model=FileDeleted, responses=ERRORS)
async def delete_file(file_id: str, service: Serving, asker: Asking) -> FileDeleted:
    """Delete a file, and take it out of all vector stores that this key may write."""
    record = service.uploads.get(file_id, asker.tenant.name)
    for store in record.stores:
        index = service.indexes.get(store)
        if index is not None and index.writable and asker.tenant.may_write(store):
            await in_writer(take_out, service, index, store, record)
    await in_thread(service.uploads.delete, record)
    return FileDeleted(id=file_id)
