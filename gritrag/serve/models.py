"""What there is to ask and how the server is: models, indexes, health, readiness, metrics."""

from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel

from gritrag.serve.asked import DEFAULT, RAG, readable_names
from gritrag.serve.bodies import ModelBody, Models
from gritrag.serve.errors import ERRORS, ApiError
from gritrag.serve.http import Asking, Serving, present, readable
from gritrag.serve.service import Service
from gritrag.serve.tenants import Tenant
from gritrag.serve.threads import in_thread

router = APIRouter()


class IndexBody(BaseModel):
    """An index as this key sees it."""

    id: str
    object: Literal["index"] = "index"
    documents: int
    writable: bool
    stats: dict[str, Any]


class Indexes(BaseModel):
    object: Literal["list"] = "list"
    data: list[IndexBody]


class Health(BaseModel):
    status: str


def _models(service: Service, tenant: Tenant) -> list[ModelBody]:
    names = [(DEFAULT, None), (service.model_id, None)]
    names += [(RAG + name, name) for name in readable_names(service, tenant)]  # type: ignore[misc]
    return [
        ModelBody(id=id, created=int(service.started), max_model_len=service.most_tokens, index=index)
        for id, index in names
    ]


@router.get("/v1/models", response_model=Models, responses=ERRORS, tags=["openai"])
async def list_models(service: Serving, asker: Asking) -> Models:
    """The model by itself, and one that answers from each index."""
    return Models(data=_models(service, asker.tenant))


@router.get("/v1/models/{model:path}", response_model=ModelBody, responses=ERRORS, tags=["openai"])
async def get_model(model: str, service: Serving, asker: Asking) -> ModelBody:
    for each in _models(service, asker.tenant):
        if each.id == model:
            return each
    raise ApiError(404, f"there is no model {model!r}", "model_not_found", "model")


@router.get("/v1/indexes", response_model=Indexes, responses=ERRORS, tags=["indexes"])
async def list_indexes(service: Serving, asker: Asking) -> Indexes:
    """The indexes that this key may read, but for those that have been deleted from the disk."""
    names = readable_names(service, asker.tenant)
    rows = [await present(_index(service, asker.tenant, name)) for name in names]
    return Indexes(data=[row for row in rows if row is not None])


@router.get("/v1/indexes/{index}", response_model=IndexBody, responses=ERRORS, tags=["indexes"])
async def get_index(index: str, service: Serving, asker: Asking) -> IndexBody:
    return await _index(service, asker.tenant, index)


async def _index(service: Service, tenant: Tenant, name: str) -> IndexBody:
    index = readable(service, tenant, name)
    stats = await in_thread(index.stats)
    stats.pop("path", None)
    is_writable = index.writable and tenant.may_write(name)
    return IndexBody(id=name, documents=stats["documents"], writable=is_writable, stats=stats)


@router.get("/health", response_model=Health, tags=["health"])
async def health() -> Health:
    """Whether the process answers."""
    return Health(status="ok")


@router.get("/metrics", response_class=PlainTextResponse, responses=ERRORS, tags=["health"])
async def metrics(service: Serving, asker: Asking) -> Response:
    """Counters for Prometheus."""
    return service.metrics.response()


@router.get("/ready", response_model=Health, responses=ERRORS, tags=["health"])
async def ready(service: Serving) -> Response:
    """Whether requests are taken on."""
    if service.admission.is_draining or not service.engine.is_alive:
        raise ApiError(503, "the server is not taking requests on", "not_ready", retry_after=5)
    return JSONResponse({"status": "ready"})
