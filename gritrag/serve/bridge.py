"""Between the event loop, where requests live, and the engine's thread: streams of events, and a model for an index.

Shape letters: `N` states.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import numpy as np

from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState, Reading
from gritrag.records import Document, Fingerprint
from gritrag.serve.engine import Engine
from gritrag.serve.generation import Generation
from gritrag.serve.jobs import Event, Failed, Finished
from gritrag.serve.ranking import RankingJob
from gritrag.serve.reading import Outcome, ReadingJob
from gritrag.serve.threads import in_thread
from gritrag.tokens import TokenIds


async def generate(engine: Engine, job: Generation) -> AsyncGenerator[Event, None]:
    """Pieces of text, and `Finished` last. Whoever stops listening ends the generation."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def sink(event: Event) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, event)

    job.sink = sink
    engine.submit(job)
    try:
        while True:
            event = await events.get()
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Finished):
                return
    finally:
        job.is_cancelled = True


async def read(
    engine: Engine,
    prompts: Sequence[TokenIds],
    client: str,
    deadline: float,
    is_urgent: bool = False,
    wants_states: bool = False,
) -> list[Outcome]:
    """Vectors and, where wanted, states. Whoever stops waiting ends the reading."""
    if not prompts:
        return []
    job = ReadingJob(prompts, client, deadline, is_urgent, wants_states)
    engine.submit(job)
    return await asyncio.wrap_future(job.future)


async def rank(
    engine: Engine, question: str, states: Sequence[DocumentState], client: str, deadline: float
) -> np.ndarray:
    """How probable each token of a question is behind each state: float32 `[N, S]`, in nats.

    Raises:
        ValueError: the model's states cannot be used, or question and document are too long for it.
    """
    scored = await in_thread(engine.model.prompts.scored_question, question)
    job = RankingJob(scored, states, client, deadline)
    engine.submit(job)
    return await asyncio.wrap_future(job.future)


class EngineReader:
    """A model as an index sees it, whose forwards are the engine's: an index can be written while others are answered.

    Calls block, so they belong in a thread of their own.

    Args:
        engine: runs.
        client: whose turns it takes.
        seconds: after which a call gives up.
    """

    def __init__(self, engine: Engine, client: str, seconds: float) -> None:
        self._engine, self._client, self._seconds = engine, client, seconds

    @property
    def model(self) -> GritModel:
        return self._engine.model

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def fingerprint(self) -> Fingerprint:
        return self.model.fingerprint

    @property
    def loaded_as(self) -> Mapping[str, Any]:
        return self.model.loaded_as

    @property
    def max_document_tokens(self) -> int:
        return self.model.max_document_tokens

    @property
    def state_elements_per_token(self) -> int:
        return self.model.state_elements_per_token

    def document_token_ids(self, document: str | Document) -> list[int]:
        return self.model.document_token_ids(document)

    def encode_query(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        outcomes = self._read(query_prompts(self.model, texts, instruction), wants_states=False)
        return np.stack([outcome.vector for outcome in outcomes])

    def encode_document(self, texts: Sequence[str | Document], *, show_progress_bar: bool = False) -> np.ndarray:
        outcomes = self._read(document_prompts(self.model, texts), wants_states=False)
        return np.stack([outcome.vector for outcome in outcomes])

    def read_documents(self, texts: Sequence[str | Document], *, show_progress_bar: bool = False) -> list[Reading]:
        outcomes = self._read(document_prompts(self.model, texts), wants_states=True)
        return [Reading(outcome.vector, outcome.state) for outcome in outcomes if outcome.state is not None]

    def _read(self, prompts: Sequence[TokenIds], wants_states: bool) -> list[Outcome]:
        job = ReadingJob(prompts, self._client, time.monotonic() + self._seconds, wants_states=wants_states)
        self._engine.submit(job)
        return job.future.result()


def document_prompts(model: GritModel, documents: Sequence[str | Document]) -> list[TokenIds]:
    """As the read pass takes them.

    Raises:
        ValueError: one is empty, no text, or too long.
    """
    return model.prompts.documents(documents)


def query_prompts(model: GritModel, texts: Sequence[str], instruction: str | None = None) -> list[TokenIds]:
    """As `GritModel.encode_query` takes them.

    Raises:
        ValueError: one is empty, no text, or too long.
    """
    return model.prompts.queries(texts, instruction)
