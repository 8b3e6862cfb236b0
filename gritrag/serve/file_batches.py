"""`/v1/vector_stores/STORE/file_batches`: several uploaded files that are put into a store at once."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from gritrag.chunks import Cutting
from gritrag.serve.errors import ERRORS, ApiError, bad
from gritrag.serve.http import Asking, Serving, new_id, readable, writable
from gritrag.serve.question import Asker
from gritrag.serve.service import Service
from gritrag.serve.store_bodies import (
    FileBatch,
    FileCounts,
    NewFileBatch,
    NewStoreFile,
    StoreFile,
    StoreFileList,
    Wanted,
)
from gritrag.serve.stores import begin, cutting_of
from gritrag.serve.uploads import Upload

router = APIRouter(tags=["vector stores"])


@router.post("/v1/vector_stores/{store}/file_batches", response_model=FileBatch, responses=ERRORS)
async def create_batch(store: str, body: NewFileBatch, service: Serving, asker: Asking) -> FileBatch:
    """Read several uploaded files into a store. They are read in the background: ask for the batch's status."""
    writable(service, asker.tenant, store)
    if bool(body.file_ids) == bool(body.files):
        raise bad("give the files of the batch, as file_ids or as files", "file_ids")
    alike = {"attributes": body.attributes, "chunking_strategy": body.chunking_strategy}
    given = body.files or [NewStoreFile(file_id=id, **alike) for id in dict.fromkeys(body.file_ids)]
    found: list[tuple[Upload, NewStoreFile, Cutting]] = []  # all are checked before the first is begun
    for each in given:
        found.append((service.uploads.get(each.file_id, asker.tenant.name), each, cutting_of(each.chunking_strategy)))
    batch = new_id("vsfb_")
    for upload, each, cutting in found:
        begin(service, store, upload, dict(each.attributes or {}), cutting, batch)
    return _batch(store, batch, _files(service, asker, store, batch))


@router.get("/v1/vector_stores/{store}/file_batches/{batch}", response_model=FileBatch, responses=ERRORS)
async def get_batch(store: str, batch: str, service: Serving, asker: Asking) -> FileBatch:
    """How far the reading of a batch is. A file that was put in anew or taken out since belongs to it no more."""
    readable(service, asker.tenant, store)
    return _batch(store, batch, _files(service, asker, store, batch))


@router.post("/v1/vector_stores/{store}/file_batches/{batch}/cancel", response_model=FileBatch, responses=ERRORS)
async def cancel_batch(store: str, batch: str, service: Serving, asker: Asking) -> FileBatch:
    """Read no more files of a batch: those that have been read stay, and nothing of the others does."""
    writable(service, asker.tenant, store)
    for upload in _files(service, asker, store, batch):
        service.uploads.cancel(upload, store, batch)
    return _batch(store, batch, _files(service, asker, store, batch))


@router.get("/v1/vector_stores/{store}/file_batches/{batch}/files", response_model=StoreFileList, responses=ERRORS)
async def list_batch(
    store: str, batch: str, service: Serving, asker: Asking, wanted: Annotated[Wanted, Query()]
) -> StoreFileList:
    """The files of a batch."""
    readable(service, asker.tenant, store)
    return wanted.page([StoreFile.of(each, store) for each in _files(service, asker, store, batch)])


def _files(service: Service, asker: Asker, store: str, batch: str) -> list[Upload]:
    """Files of a batch of this tenant.

    Raises:
        ApiError: 404 if there are none.
    """
    attached = service.uploads.attached(store, [asker.tenant.name])
    files = [each for each in attached if batch and each.stores[store].batch == batch]
    if not files:
        raise ApiError(404, "there is no batch of files of that id", "batch_not_found", "batch_id")
    return files


def _batch(store: str, batch: str, files: Sequence[Upload]) -> FileBatch:
    counts = FileCounts.of([each.stores[store] for each in files])
    ended: Literal["completed", "cancelled"] = "cancelled" if counts.cancelled else "completed"
    return FileBatch(
        id=batch,
        created_at=min(each.stores[store].created_at for each in files),
        vector_store_id=store,
        status="in_progress" if counts.in_progress else ended,
        file_counts=counts,
    )
