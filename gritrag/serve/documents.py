"""`/v1/indexes/NAME/documents`: add, replace, list and delete the documents of an index."""

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.convertors import Convertor, register_url_convertor

from gritrag.index.index import Index
from gritrag.index.sources import delete_whole, put_whole, whole_ids
from gritrag.records import Document, as_document
from gritrag.serve.bodies import DocumentBody, Metadata, Where
from gritrag.serve.errors import ERRORS, ApiError, bad
from gritrag.serve.http import Asking, Serving, readable, whole, writable
from gritrag.serve.service import Service
from gritrag.serve.threads import in_thread, in_writer
from gritrag.tokens import chunk_documents

router = APIRouter(tags=["documents"])


class AddBody(BaseModel):
    """Documents to store. Longer ones are cut into chunks of at most `chunk_size` tokens."""

    documents: list[str | DocumentBody] = Field(min_length=1, max_length=4096)
    on_conflict: Literal["replace", "skip", "error"] = "replace"
    chunk_size: int = Field(256, ge=16, le=4096)
    overlap: int = Field(0, ge=0, le=1024)


class AddedBody(BaseModel):
    """How many documents were new, took the place of another, or changed nothing; and their ids."""

    added: int
    replaced: int
    skipped: int
    ids: list[str]


class StoredBody(BaseModel):
    """A document of an index."""

    id: str
    title: str
    text: str
    metadata: Metadata

    @classmethod
    def of(cls, document: Document) -> "StoredBody":
        metadata = dict(document.metadata)
        return cls(id=document.id, title=document.title, text=document.text, metadata=metadata)


class DocumentList(BaseModel):
    object: Literal["list"] = "list"
    data: list[StoredBody]
    has_more: bool
    last_id: str | None


class IdConvertor(Convertor[str]):
    """The rest of a path: slashes, and line breaks, which the one of the name ``path`` stops at."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        """As it is."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


register_url_convertor("id", IdConvertor())


class DeleteBody(BaseModel):
    """Which documents to delete: by id, by metadata, or those that satisfy both."""

    ids: list[str] | None = Field(None, max_length=100_000)
    where: Where | None = None


class DeletedBody(BaseModel):
    deleted: int


@router.post("/v1/indexes/{index}/documents", response_model=AddedBody, responses=ERRORS)
async def add(index: str, body: AddBody, request: Request, service: Serving, asker: Asking) -> AddedBody:
    """Read documents into an index; what is unchanged is not read again, and what is replaced leaves no chunk."""
    opened = writable(service, asker.tenant, index)
    documents = [d if isinstance(d, str) else Document(d.text, d.id, d.title, d.metadata) for d in body.documents]
    cut = await in_thread(chunked, service, documents, body.chunk_size, body.overlap)
    report = await whole(service, asker, request, in_writer(put_whole, opened, cut, body.on_conflict))
    ids = [chunk.id for _, chunks in cut for chunk in chunks]
    return AddedBody(added=report.added, replaced=report.replaced, skipped=report.skipped, ids=ids)


@router.get("/v1/indexes/{index}/documents", response_model=DocumentList, responses=ERRORS)
async def list_documents(
    index: str,
    service: Serving,
    asker: Asking,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: str | None = None,
) -> DocumentList:
    """Documents in the order in which they were stored, a page at a time."""
    opened = readable(service, asker.tenant, index)
    documents, has_more = await in_thread(_page, opened, limit, after)
    rows = [StoredBody.of(document) for document in documents]
    return DocumentList(data=rows, has_more=has_more, last_id=rows[-1].id if rows else None)


@router.get("/v1/indexes/{index}/documents/{id:id}", response_model=StoredBody, responses=ERRORS)
async def get_document(index: str, id: str, service: Serving, asker: Asking) -> StoredBody:
    """One document."""
    return StoredBody.of(await in_thread(_one, readable(service, asker.tenant, index), id))


@router.delete("/v1/indexes/{index}/documents/{id:id}", response_model=DeletedBody, responses=ERRORS)
async def delete_document(index: str, id: str, service: Serving, asker: Asking) -> DeletedBody:
    """Delete one document, or one chunk; with the id of a document that was cut, all of its chunks."""
    opened = writable(service, asker.tenant, index)
    if not (deleted := await in_writer(delete_whole, opened, [id])):
        raise _not_found("id")
    return DeletedBody(deleted=deleted)


@router.post("/v1/indexes/{index}/documents:delete", response_model=DeletedBody, responses=ERRORS)
async def delete_documents(index: str, body: DeleteBody, service: Serving, asker: Asking) -> DeletedBody:
    """Delete documents, with all of their chunks, by id or by metadata; unknown ids are no error."""
    opened = writable(service, asker.tenant, index)
    if body.ids is None and not body.where:
        raise bad("say what to delete: ids or where", "ids")
    ids = None if body.ids is None else await in_thread(whole_ids, opened, body.ids)
    return DeletedBody(deleted=await in_writer(opened.delete, ids=ids, where=body.where))


def chunked(
    service: Service, documents: Sequence[str | Document], chunk_size: int, overlap: int
) -> list[tuple[str, list[Document]]]:
    """The id and the chunks of each document.

    Raises:
        ValueError: a document has no text, or the overlap leaves no room.
    """
    count_tokens = service.model.count_tokens
    given = [as_document(document) for document in documents]
    return [(each.id, list(chunk_documents([each], count_tokens, chunk_size, overlap))) for each in given]


def _page(index: Index, limit: int, after: str | None) -> tuple[list[Document], bool]:
    with index.snapshot():
        if after is not None and after not in index:
            raise _not_found("after")
        ids = iter(index)
        if after is not None:
            for id in ids:
                if id == after:
                    break
        page = list(islice(ids, limit + 1))
        return index.get(page[:limit]), len(page) > limit


def _one(index: Index, id: str) -> Document:
    with index.snapshot():
        if id not in index:
            raise _not_found("id")
        return index.get([id])[0]


def _not_found(param: str) -> ApiError:
    return ApiError(404, "there is no document of that id", "document_not_found", param)
