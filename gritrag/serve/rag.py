"""`/v1/rag`: a question to an answer with documents, citations, times, and whether it is exact."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gritrag.serve.asked import DEFAULT, index_of, question_of, question_tokens, sampling_of
from gritrag.serve.bodies import AnswerBody, HitBody, RagBody
from gritrag.serve.errors import ERRORS, bad
from gritrag.serve.http import Asking, Serving, event, streamed, whole
from gritrag.serve.question import Asker, Question
from gritrag.serve.service import Service
from gritrag.serve.threads import in_thread

router = APIRouter(tags=["rag"])


@router.post("/v1/rag", response_model=AnswerBody, responses=ERRORS)
async def rag(body: RagBody, request: Request, service: Serving, asker: Asking) -> Response:
    """Answer a question from an index, or from documents that come with it."""
    question = await question_in(service, asker, body)
    if body.stream:
        return await streamed(service, asker, request, _events(service, asker, question))
    answer = await whole(service, asker, request, _answer(service, asker, question))
    return JSONResponse(answer.model_dump(mode="json"))


async def question_in(service: Service, asker: Asker, body: RagBody) -> Question:
    """Checked before any work is done.

    Raises:
        ApiError: no such index, no index at all, or a question that is empty or too long.
    """
    index = index_of(service, asker.tenant, DEFAULT, body)
    if index is None and body.documents is None and body.mode != "no-retrieval":
        raise bad("this server has no index for this key: name one, or send documents", "index")
    tokens = await in_thread(question_tokens, service, body.question, body)
    sampling = sampling_of(service, body, body.max_new_tokens, tokens, "question")
    return question_of(body.question, sampling, index, body)


async def _answer(service: Service, asker: Asker, question: Question) -> AnswerBody:
    async with aclosing(service.answer(asker, question)) as steps:
        async for step in steps:
            if step.answer is not None:
                return AnswerBody.of(step.answer)
    raise AssertionError("an answer ends with an answer")


async def _events(service: Service, asker: Asker, question: Question) -> AsyncGenerator[bytes, None]:
    async with aclosing(service.answer(asker, question)) as steps:
        async for step in steps:
            if step.hits is not None:
                hits = [HitBody.of(hit).model_dump(mode="json") for hit in step.hits]
                yield event({"hits": hits}, "hits")
            elif step.piece is not None and step.piece.text:
                yield event({"text": step.piece.text}, "text")
            elif step.answer is not None:
                yield event(AnswerBody.of(step.answer), "answer")
