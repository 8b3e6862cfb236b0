"""Bodies of vector stores, their files and their search, as OpenAI names them."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from gritrag.records import Document, Hit
from gritrag.serve.bodies import Metadata
from gritrag.serve.paging import Cursor, Page
from gritrag.serve.uploads import Attachment, Upload

FILE_ID = "file_id"
"""Metadata field of every document that came from an uploaded file."""


class FileCounts(BaseModel):
    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    total: int = 0

    @classmethod
    def of(cls, attached: Sequence[Attachment]) -> "FileCounts":
        counts = cls(total=len(attached))
        for each in attached:
            setattr(counts, each.status, getattr(counts, each.status) + 1)
        return counts


class StoreBody(BaseModel):
    """A vector store, which is an index."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["completed", "in_progress"] = "completed"
    last_active_at: int
    metadata: Metadata = {}
    expires_after: None = None
    expires_at: None = None
    documents: int


class StoreList(Page):
    data: list[StoreBody]


class StaticChunking(BaseModel):
    max_chunk_size_tokens: int = Field(256, ge=16, le=4096)
    chunk_overlap_tokens: int = Field(0, ge=0, le=1024)


class Chunking(BaseModel):
    type: Literal["auto", "static"] = "auto"
    static: StaticChunking | None = None


class NewStore(BaseModel):
    name: str | None = Field(None, max_length=256)
    file_ids: list[str] = Field([], max_length=100)
    metadata: dict[str, str] | None = None
    chunking_strategy: Chunking | None = None
    expires_after: dict[str, Any] | None = None


class StoreChange(BaseModel):
    name: str | None = Field(None, max_length=256)
    metadata: dict[str, str] | None = None
    expires_after: dict[str, Any] | None = None


class StoreDeleted(BaseModel):
    id: str
    object: Literal["vector_store.deleted"] = "vector_store.deleted"
    deleted: bool = True


class NewStoreFile(BaseModel):
    file_id: str
    attributes: dict[str, str | float | bool] | None = None
    chunking_strategy: Chunking | None = None


class NewFileBatch(BaseModel):
    """Files to put into a store: those of `file_ids` in one way, or each of `files` in its own."""

    file_ids: list[str] = Field([], max_length=500)
    files: list[NewStoreFile] = Field([], max_length=500)
    attributes: dict[str, str | float | bool] | None = None
    chunking_strategy: Chunking | None = None


class FileBatch(BaseModel):
    """Files that were put into a store together."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled"]
    file_counts: FileCounts


class LastError(BaseModel):
    code: Literal["server_error", "unsupported_file", "invalid_file"] = "invalid_file"
    message: str


class StoreFile(BaseModel):
    """A file in a vector store. It is searched once its status is ``completed``."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "failed", "cancelled"]
    last_error: LastError | None
    usage_bytes: int
    attributes: dict[str, Any]
    chunking_strategy: Chunking
    filename: str
    chunks: int
    notes: str

    @classmethod
    def of(cls, upload: Upload, store: str) -> "StoreFile":
        attached = upload.stores[store]
        failed = attached.status == "failed"
        size = StaticChunking(max_chunk_size_tokens=attached.chunk_size, chunk_overlap_tokens=attached.overlap)
        return cls(
            id=upload.id,
            created_at=attached.created_at,
            vector_store_id=store,
            status=attached.status,
            last_error=LastError(message=attached.error) if failed else None,
            usage_bytes=attached.bytes,
            attributes=attached.attributes,
            chunking_strategy=Chunking(type="static", static=size),
            filename=upload.name,
            chunks=attached.chunks,
            notes="" if failed else attached.error,
        )


class StoreFileList(Page):
    data: list[StoreFile]


class Wanted(Cursor):
    """Which files of a store a client wants to have listed."""

    filter: Literal["in_progress", "completed", "failed", "cancelled"] | None = None

    def page(self, files: list[StoreFile]) -> StoreFileList:
        """Of files, the oldest first."""
        return StoreFileList.of(files, self, lambda file: self.filter in (None, file.status))


class AttributesChange(BaseModel):
    attributes: dict[str, str | float | bool] | None


class ContentPage(BaseModel):
    """What is stored of a file, a text for each of its chunks."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list["SearchContent"]
    has_more: bool = False
    next_page: str | None = None


class StoreFileDeleted(BaseModel):
    id: str
    object: Literal["vector_store.file.deleted"] = "vector_store.file.deleted"
    deleted: bool = True


class RankingOptions(BaseModel):
    """Scores below the threshold are left out; they lie in [0, 1]. There is one ranker, whatever is asked for."""

    score_threshold: float | None = Field(None, ge=0, le=1)


class SearchBody(BaseModel):
    query: str | list[str]
    max_num_results: int = Field(10, ge=1, le=50)
    filters: dict[str, Any] | None = None
    ranking_options: RankingOptions | None = None
    rewrite_query: bool | None = False


class SearchContent(BaseModel):
    type: Literal["text"] = "text"
    text: str


class SearchRow(BaseModel):
    file_id: str
    filename: str
    score: float
    attributes: Metadata
    content: list[SearchContent]

    @classmethod
    def of(cls, hit: Hit) -> "SearchRow":
        id, name = file_of(hit.document)
        metadata = dict(hit.document.metadata)
        content = [SearchContent(text=hit.document.content)]
        return cls(file_id=id, filename=name, score=hit.score, attributes=metadata, content=content)


class SearchPage(BaseModel):
    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[SearchRow]
    has_more: bool = False
    next_page: str | None = None


def file_of(document: Document) -> tuple[str, str]:
    """Id and name of the file that a document came from; of the document itself where it came from none."""
    metadata = document.metadata
    id = str(metadata.get(FILE_ID) or document.id)
    name = str(metadata.get("filename") or metadata.get("source_file") or document.title or document.id)
    return id, name
