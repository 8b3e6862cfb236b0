"""`/v1/vector_stores`: the indexes of this server as OpenAI's vector stores, and new ones in its own folder."""

import logging
import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from gritrag.chunks import Cutting, cut, in_short
from gritrag.index.errors import ClosedIndex
from gritrag.index.index import Index
from gritrag.records import Document, Hit
from gritrag.serve.asked import readable_names
from gritrag.serve.errors import ERRORS, ApiError, as_api_error, bad
from gritrag.serve.filters import where_of
from gritrag.serve.http import Asking, Serving, present, readable, whole, writable
from gritrag.serve.jobs import StoppingError
from gritrag.serve.paging import Cursor
from gritrag.serve.question import Asker
from gritrag.serve.service import Service
from gritrag.serve.store_bodies import (
    FILE_ID,
    AttributesChange,
    Chunking,
    ContentPage,
    FileCounts,
    NewStore,
    NewStoreFile,
    SearchBody,
    SearchContent,
    SearchPage,
    SearchRow,
    StaticChunking,
    StoreBody,
    StoreChange,
    StoreDeleted,
    StoreFile,
    StoreFileDeleted,
    StoreFileList,
    StoreList,
    Wanted,
)
from gritrag.serve.tenants import Tenant
from gritrag.serve.threads import in_thread, in_writer
from gritrag.serve.uploads import Attachment, Upload

logger = logging.getLogger(__name__)

router = APIRouter(tags=["vector stores"])

AT_ONCE = 512
"""Chunks of a file that are stored before it is asked again whether they still are to be."""

RESERVED = {FILE_ID, "filename"}
"""Names in the metadata of a file's documents that attributes do not change."""

# --- stores ----------------------------------------------------------------------------------------------------------


@router.post("/v1/vector_stores", response_model=StoreBody, responses=ERRORS)
async def create_store(body: NewStore, request: Request, service: Serving, asker: Asking) -> StoreBody:
    """A new, empty index in the server's own folder; this key may read and write it."""
    if not asker.tenant.can_create:
        raise ApiError(403, "this key may create no vector stores", "not_allowed")
    _refuse_expiry(body.expires_after)
    uploads = [service.uploads.get(id, asker.tenant.name) for id in body.file_ids]
    chunking = cutting_of(body.chunking_strategy)
    creating = in_writer(service.stores.create, asker.tenant, body.name or "", body.metadata or {})
    store = await whole(service, asker, request, creating)
    for upload in uploads:
        begin(service, store, upload, {}, chunking)
    return await _store(service, asker.tenant, store)


@router.get("/v1/vector_stores", response_model=StoreList, responses=ERRORS)
async def list_stores(service: Serving, asker: Asking, wanted: Annotated[Cursor, Query()]) -> StoreList:
    """The indexes that this key may read, but for those that have been deleted from the disk."""
    names = readable_names(service, asker.tenant)
    rows = [await present(_store(service, asker.tenant, name)) for name in names]
    return StoreList.of([row for row in rows if row is not None], wanted)


@router.get("/v1/vector_stores/{store}", response_model=StoreBody, responses=ERRORS)
async def get_store(store: str, service: Serving, asker: Asking) -> StoreBody:
    return await _store(service, asker.tenant, store)


@router.post("/v1/vector_stores/{store}", response_model=StoreBody, responses=ERRORS)
async def change_store(store: str, body: StoreChange, service: Serving, asker: Asking) -> StoreBody:
    """Give a store that was created here another name or other metadata."""
    writable(service, asker.tenant, store)
    _refuse_expiry(body.expires_after)
    await in_writer(service.stores.change, store, body.name, body.metadata)
    return await _store(service, asker.tenant, store)


@router.delete("/v1/vector_stores/{store}", response_model=StoreDeleted, responses=ERRORS)
async def delete_store(store: str, service: Serving, asker: Asking) -> StoreDeleted:
    """Delete a store that was created here. Indexes that the server was started with are never deleted."""
    writable(service, asker.tenant, store)
    await in_writer(service.stores.delete, store)
    return StoreDeleted(id=store)


@router.post("/v1/vector_stores/{store}/search", response_model=SearchPage, responses=ERRORS)
async def search(store: str, body: SearchBody, request: Request, service: Serving, asker: Asking) -> SearchPage:
    """The documents of a store that fit a query, the best first."""
    index = readable(service, asker.tenant, store)
    queries = [body.query] if isinstance(body.query, str) else body.query
    if not queries or len(queries) > 16 or not all(query.strip() for query in queries):
        raise bad("a search takes 1 to 16 queries, each with some text", "query")
    where = where_of(body.filters) if body.filters else None
    finding = service.search(asker, index, queries, body.max_num_results, where)
    found = await whole(service, asker, request, finding)
    least = (body.ranking_options.score_threshold if body.ranking_options else None) or 0.0
    best: dict[str, Hit] = {}
    for hit in sorted((hit for hits in found for hit in hits if hit.score >= least), key=lambda hit: -hit.score):
        best.setdefault(hit.document.id, hit)
    rows = [SearchRow.of(hit) for hit in list(best.values())[: body.max_num_results]]
    return SearchPage(search_query=queries, data=rows)


def _refuse_expiry(expires_after: dict[str, Any] | None) -> None:
    if expires_after is not None:
        raise bad(
            "expires_after: a store is kept here until it is deleted; leave this out, and delete the store when it has "
            "served",
            "expires_after",
            "unsupported_parameter",
        )


async def _store(service: Service, tenant: Tenant, name: str) -> StoreBody:
    index = readable(service, tenant, name)
    stats = await in_thread(index.stats)
    counts = FileCounts.of([each.stores[name] for each in service.uploads.attached(name, [tenant.name])])
    created = service.stores.created(name)
    return StoreBody(
        id=name,
        created_at=int(service.started) if created is None else created.created_at,
        name=name if created is None else created.name,
        usage_bytes=sum(stats["bytes"].values()),
        file_counts=counts,
        status="in_progress" if counts.in_progress else "completed",
        last_active_at=int(time.time()),
        metadata={} if created is None else dict(created.metadata),
        documents=stats["documents"],
    )


# --- files of a store ------------------------------------------------------------------------------------------------


@router.post("/v1/vector_stores/{store}/files", response_model=StoreFile, responses=ERRORS)
async def add_file(store: str, body: NewStoreFile, service: Serving, asker: Asking) -> StoreFile:
    """Read an uploaded file into a store. It is read in the background: ask for its status."""
    writable(service, asker.tenant, store)
    upload = service.uploads.get(body.file_id, asker.tenant.name)
    attributes: dict[str, Any] = dict(body.attributes or {})
    begin(service, store, upload, attributes, cutting_of(body.chunking_strategy))
    return StoreFile.of(service.uploads.get(upload.id, asker.tenant.name), store)


@router.get("/v1/vector_stores/{store}/files", response_model=StoreFileList, responses=ERRORS)
async def list_store_files(
    store: str,
    service: Serving,
    asker: Asking,
    wanted: Annotated[Wanted, Query()],
) -> StoreFileList:
    """The files of a store that this key uploaded: all, or those of one status."""
    readable(service, asker.tenant, store)
    files = service.uploads.attached(store, [asker.tenant.name])
    return wanted.page([StoreFile.of(each, store) for each in files])


@router.get("/v1/vector_stores/{store}/files/{file_id}", response_model=StoreFile, responses=ERRORS)
async def get_store_file(store: str, file_id: str, service: Serving, asker: Asking) -> StoreFile:
    readable(service, asker.tenant, store)
    return StoreFile.of(_attached(service, asker, store, file_id), store)


@router.post("/v1/vector_stores/{store}/files/{file_id}", response_model=StoreFile, responses=ERRORS)
async def change_store_file(
    store: str, file_id: str, body: AttributesChange, service: Serving, asker: Asking
) -> StoreFile:
    """Give a file other attributes: its documents have them as metadata from now on. None of them is read again."""
    index = writable(service, asker.tenant, store)
    upload = _attached(service, asker, store, file_id)
    await in_writer(_describe, service, index, store, upload, dict(body.attributes or {}))
    return StoreFile.of(_attached(service, asker, store, file_id), store)


@router.get("/v1/vector_stores/{store}/files/{file_id}/content", response_model=ContentPage, responses=ERRORS)
async def get_store_file_content(store: str, file_id: str, service: Serving, asker: Asking) -> ContentPage:
    """What is stored of a file, chunk by chunk: as much as has been read."""
    index = readable(service, asker.tenant, store)
    upload = _attached(service, asker, store, file_id)
    chunks = await in_thread(_chunks_of, index, upload)
    return ContentPage(data=[SearchContent(text=chunk.content) for chunk in chunks])


@router.delete("/v1/vector_stores/{store}/files/{file_id}", response_model=StoreFileDeleted, responses=ERRORS)
async def delete_store_file(store: str, file_id: str, service: Serving, asker: Asking) -> StoreFileDeleted:
    """Take a file out of a store: its documents are deleted there, the file is kept."""
    index = writable(service, asker.tenant, store)
    upload = _attached(service, asker, store, file_id)
    await in_writer(take_out, service, index, store, upload)
    return StoreFileDeleted(id=file_id)


def _attached(service: Service, asker: Asker, store: str, file_id: str) -> Upload:
    upload = service.uploads.get(file_id, asker.tenant.name)
    if store not in upload.stores:
        raise ApiError(404, "this file is not in this vector store", "file_not_found", "file_id")
    return upload


def cutting_of(chunking: Chunking | None) -> Cutting:
    """How files are to be cut.

    Raises:
        ApiError: 400 for an overlap that leaves no room.
    """
    static = (chunking.static if chunking else None) or StaticChunking()
    if static.chunk_overlap_tokens >= static.max_chunk_size_tokens:
        raise bad("chunk_overlap_tokens must be less than max_chunk_size_tokens", "chunking_strategy")
    return Cutting(static.max_chunk_size_tokens, static.chunk_overlap_tokens)


def begin(
    service: Service, store: str, upload: Upload, attributes: dict[str, Any], cutting: Cutting, batch: str = ""
) -> None:
    """Start to read a file into a store."""
    attachment = Attachment(
        batch=batch,
        created_at=int(time.time()),
        attributes=attributes,
        chunk_size=cutting.chunk_size,
        overlap=cutting.overlap,
    )
    service.uploads.attach(upload, store, attachment)
    if (index := service.indexes.get(store)) is not None:  # it may be deleted in another thread
        service.in_background(in_writer(_read_in, service, index, store, upload, attachment))


def _chunks_of(index: Index, upload: Upload) -> list[Document]:
    """All that is stored of a file."""
    with index.snapshot():
        return index.get([id for id in index if id.startswith(f"{upload.id}/")])


def _describe(service: Service, index: Index, store: str, upload: Upload, attributes: dict[str, Any]) -> None:
    """In a thread: other attributes for a file that is in a store.

    Raises:
        ApiError: 409 while it is read; 400 for a name that the file itself gives to its documents.
    """
    with service.uploads.turn(upload):
        current = service.uploads.get(upload.id, upload.owner)
        attachment = current.stores.get(store)
        if attachment is None or attachment.status == "in_progress":
            raise ApiError(409, "the file is being read; ask again when its status is completed", "in_progress")
        chunks, before = _chunks_of(index, upload), attachment.attributes.keys() - RESERVED
        changed = []
        for chunk in chunks:
            own = {name: value for name, value in chunk.metadata.items() if name not in before}
            if taken := sorted(attributes.keys() & own.keys() - RESERVED):
                raise bad(
                    f"attributes: the file itself says {taken[0]!r} of its documents; use another name", "attributes"
                )
            changed.append(replace(chunk, metadata={**attributes, **own}))
        index.add(changed)
        service.uploads.settle(upload, store, attachment.model_copy(update={"attributes": attributes}))


def go_on_reading(service: Service) -> None:
    """Read what a server that was killed had begun to read; what cannot be read here any more says so."""
    for upload, store, attachment in service.uploads.unfinished():
        index = service.indexes.get(store)
        if index is not None and index.writable:
            service.in_background(in_writer(_read_in, service, index, store, upload, attachment))
            continue
        problem = "this server has no such store" if index is None else "this server only reads the store"
        failed = {"status": "failed", "error": f"it had not been read when the server was stopped, and {problem}"}
        service.uploads.settle(upload, store, attachment.model_copy(update=failed))


def take_out(service: Service, index: Index, store: str, upload: Upload) -> None:
    """In a thread: a file is no longer in a store, and none of its documents is."""
    service.uploads.detach(upload, store)  # first: whoever reads it now finds that it is to be no longer
    try:
        index.delete(where={FILE_ID: upload.id})
    except ClosedIndex:  # the store has been deleted, with all that was in it
        return
    except OSError:  # of the disk: it can be tried again
        service.uploads.attach(upload, store, upload.stores[store])
        raise


def _read_in(service: Service, index: Index, store: str, upload: Upload, attachment: Attachment) -> None:
    """In a thread: the file's documents take the place of those that it gave before."""
    with service.uploads.turn(upload):
        if service.admission.is_draining or not service.uploads.is_current(upload, store, attachment):
            return
        try:
            done = _read(service, index, store, upload, attachment)
        except StoppingError as error:
            if service.uploads.are_kept:  # the next server goes on with it
                return
            if not index.closed:  # the file is gone with this server: nobody could take out what was stored of it
                index.delete(where={FILE_ID: upload.id})
            done = {"status": "failed", "error": str(error)}
        service.uploads.settle(upload, store, attachment.model_copy(update=done))
        if not service.uploads.is_current(upload, store, attachment) and not index.closed:
            # taken out while it was read; if it was put in anew, it is read anew behind this one
            index.delete(where={FILE_ID: upload.id})


def _read(service: Service, index: Index, store: str, upload: Upload, attachment: Attachment) -> dict[str, Any]:
    """What is to be noted of it; it ends early where the file is taken out, put in anew or cancelled meanwhile.

    Raises:
        StoppingError: the server was stopped; a part of it may be stored.
    """
    try:
        metadata = {**attachment.attributes, FILE_ID: upload.id, "filename": upload.name}
        documents, losses = service.uploads.documents(upload, metadata)
        cutting = Cutting(attachment.chunk_size, attachment.overlap)
        problems: list[str] = []
        chunks = list(cut(documents, service.model.count_tokens, cutting, problems.append))
        losses += [in_short(problems)] if problems else []
        if losses and not chunks:
            raise ValueError("; ".join(losses))
        for begin in range(0, len(chunks), AT_ONCE):
            if not service.uploads.is_current(upload, store, attachment):
                return {}  # what came of it is taken out again
            index.add(chunks[begin : begin + AT_ONCE])
        kept = {chunk.id for chunk in chunks}
        outdated = [id for id in index if id.startswith(f"{upload.id}/") and id not in kept]
        index.delete(ids=outdated)
        size = sum(len(chunk.text.encode()) for chunk in chunks)
        return {"status": "completed", "chunks": len(chunks), "bytes": size, "error": "; ".join(losses)}
    except StoppingError:
        raise
    except Exception as error:  # nobody waits for it: what went wrong is told in its status
        return {"status": "failed", "error": as_api_error(error).message}
