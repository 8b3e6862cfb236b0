"""`/v1/embeddings` and `/v1/rerank`: vectors of texts, and texts in the order of their likeness to a query."""

import base64
import time

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gritrag.serve.asked import check_model
from gritrag.serve.bridge import document_prompts, query_prompts, read
from gritrag.serve.errors import ERRORS, bad
from gritrag.serve.http import Asking, Serving, new_id, whole
from gritrag.serve.openai_bodies import (
    EmbeddingBody,
    EmbeddingRow,
    Embeddings,
    EmbeddingUsage,
    RerankBody,
    RerankDocument,
    Reranked,
    RerankRow,
)
from gritrag.serve.question import Asker
from gritrag.serve.service import Service
from gritrag.serve.threads import in_thread
from gritrag.tokens import TokenIds

router = APIRouter(tags=["openai"])


@router.post("/v1/embeddings", response_model=Embeddings, responses=ERRORS)
async def embeddings(body: EmbeddingBody, request: Request, service: Serving, asker: Asking) -> Response:
    """Vectors of texts, float32, normalised; in base64 (little-endian) if asked for, as SDKs do by default."""
    check_model(service, asker.tenant, body.model)
    dim = service.model.dim
    if body.dimensions is not None and body.dimensions > dim:
        raise bad(f"dimensions: vectors of this model have {dim}, not {body.dimensions}", "dimensions")
    is_query = body.input_type in ("query", "search_query")
    prompts = await in_thread(_prompts, service, body, is_query)
    outcomes = await whole(service, asker, request, read(service.engine, prompts, asker.client, asker.deadline))
    vectors = [shortened(outcome.vector, body.dimensions) for outcome in outcomes]
    tokens = sum(len(prompt.ids) for prompt in prompts)
    return Response(await in_thread(_answer, body, vectors, tokens), media_type="application/json")


@router.post("/v1/rerank", response_model=Reranked, response_model_exclude_none=True, responses=ERRORS)
@router.post("/rerank", response_model=Reranked, response_model_exclude_none=True, responses=ERRORS)
async def rerank(body: RerankBody, request: Request, service: Serving, asker: Asking) -> Response:
    """Documents by the cosine of the angle between their vectors and the query's, the best first."""
    check_model(service, asker.tenant, body.model)
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    _check_count(service, len(texts), "documents")
    began = time.perf_counter()
    prompts = await in_thread(_rerank_prompts, service, body, texts)
    scores = await whole(service, asker, request, _scores(service, asker, prompts))
    ranked = sorted(range(len(texts)), key=lambda number: -scores[number])[: body.top_n]
    rows = [
        RerankRow(
            index=number,
            relevance_score=scores[number],
            document=RerankDocument(text=texts[number]) if body.return_documents else None,
        )
        for number in ranked
    ]
    tokens = sum(len(prompt.ids) for prompt in prompts)
    if service.observer is not None:
        service.observer.reranked(len(texts), tokens, time.perf_counter() - began)
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    answer = Reranked(id=new_id("rerank-"), model=body.model, results=rows, usage=usage)
    return JSONResponse(answer.model_dump(mode="json", exclude_none=True))


def texts_of(service: Service, given: str | list[str] | list[int] | list[list[int]], param: str) -> list[str]:
    """Strings as they are; lists of token ids of this model as the text that they stand for.

    Raises:
        ApiError: nothing, too much, or ids that the model does not have.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise bad(f"{param} is empty", param)
    items = [given] if isinstance(given[0], int) else given
    _check_count(service, len(items), param)
    size = len(service.model.tokenizer)
    texts = []
    for item in items:
        if isinstance(item, str):
            texts.append(item)
            continue
        assert isinstance(item, list)
        if not all(0 <= id < size for id in item):
            raise bad(
                f"{param}: token ids of this model are below {size}; those of other tokenizers (such as tiktoken's, "
                "which LangChain's OpenAIEmbeddings sends unless check_embedding_ctx_length=False) mean nothing here",
                param,
            )
        texts.append(str(service.model.tokenizer.decode(item, skip_special_tokens=True)))
    return texts


def _check_count(service: Service, count: int, param: str) -> None:
    if count > service.limits.inputs:
        raise bad(f"{param}: at most {service.limits.inputs} texts in one request, not {count}", param)


def _answer(body: EmbeddingBody, vectors: list[np.ndarray], tokens: int) -> str:
    """As JSON, which may be 20 MB of numbers: writing it takes a while, in which other answers are to go on."""
    rows = [
        EmbeddingRow(index=number, embedding=_encoded(vector) if body.encoding_format == "base64" else vector.tolist())
        for number, vector in enumerate(vectors)
    ]
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    return Embeddings(data=rows, model=body.model, usage=usage).model_dump_json()


def _prompts(service: Service, body: EmbeddingBody, is_query: bool) -> list[TokenIds]:
    texts = texts_of(service, body.input, "input")
    model = service.model
    for number, text in enumerate(texts):
        if not text.strip():
            raise bad(f"input {number} is empty: there is nothing to embed", "input")
        service.check_length(model.count_tokens(text), "input")
    return query_prompts(model, texts, body.instruction) if is_query else document_prompts(model, texts)


def _rerank_prompts(service: Service, body: RerankBody, texts: list[str]) -> list[TokenIds]:
    for text in (body.query, *texts):
        service.check_length(service.model.count_tokens(text), "documents")
    queries = query_prompts(service.model, [body.query], body.instruction)
    return [*queries, *document_prompts(service.model, texts)]


async def _scores(service: Service, asker: Asker, prompts: list[TokenIds]) -> list[float]:
    outcomes = await read(service.engine, prompts, asker.client, asker.deadline)
    query_D, *documents = (outcome.vector for outcome in outcomes)
    return [float(query_D @ vector_D) for vector_D in documents]


def shortened(vector_D: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first dimensions, normalised again."""
    if dimensions is None or dimensions == len(vector_D):
        return vector_D
    short = vector_D[:dimensions]
    return short / max(float(np.linalg.norm(short)), 1e-12)


def _encoded(vector_D: np.ndarray) -> str:
    return base64.b64encode(np.asarray(vector_D, "<f4").tobytes()).decode()
