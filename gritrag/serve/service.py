"""Service: what a running server holds, and the steps from a question to an answer.

Shape letters: `D` length of a vector, `N` hits.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gritrag.answered import Decoded, answer_of
from gritrag.index.index import Index
from gritrag.index.rerank import ranked
from gritrag.model.context import Context, Part
from gritrag.model.grit import GritModel
from gritrag.model.sampling import Sampling
from gritrag.model.state import DocumentState, Reading
from gritrag.modes import MODES
from gritrag.plan import ContextPlan, Retrieved, check_takes_recompute, plan_context
from gritrag.records import Citation, Hit, Timings
from gritrag.relevance import lacks_scores, scored
from gritrag.serve.admission import Admission
from gritrag.serve.bridge import document_prompts, generate, query_prompts, rank, read
from gritrag.serve.created import CreatedStores
from gritrag.serve.engine import Engine
from gritrag.serve.errors import too_long
from gritrag.serve.generation import Generation
from gritrag.serve.jobs import Finished, Piece
from gritrag.serve.limits import Limits
from gritrag.serve.memory import Memory
from gritrag.serve.metrics import Metrics
from gritrag.serve.question import Asker, Found, Observer, Question, States, Told
from gritrag.serve.stored import Responses
from gritrag.serve.tenants import Tenants
from gritrag.serve.threads import in_thread
from gritrag.serve.uploads import Uploads


@dataclass
class Service:
    """Everything that requests share.

    Args:
        model: of all indexes.
        model_id: what clients call it.
        indexes: by the names that clients know them by.
        observer: is told of answers, if there is one.
    """

    model: GritModel
    model_id: str
    indexes: dict[str, Index]
    engine: Engine
    tenants: Tenants
    limits: Limits
    uploads: Uploads
    stores: CreatedStores
    started: float = field(default_factory=time.time)
    observer: Observer | None = None

    def __post_init__(self) -> None:
        self.admission = Admission(self.limits)
        self.metrics = Metrics()
        self.responses = Responses(self.limits.responses, self.limits.responses_bytes)
        self._tasks: set[asyncio.Task[None]] = set()
        self.engine.on_step = self.metrics.step
        self.metrics.running.set_function(lambda: self.engine.running)
        self.metrics.waiting.set_function(lambda: self.admission.taken)
        self.metrics.memory.set_function(lambda: self.memory.bytes)

    @property
    def memory(self) -> Memory:
        return self.engine.memory

    @property
    def system_fingerprint(self) -> str:
        """Which model answers, for clients that want to know when that changes."""
        return "fp_" + self.model.fingerprint.digest[:12]

    @property
    def most_tokens(self) -> int:
        """Of a context with its answer."""
        return min(self.limits.input_tokens or self.model.context_length, self.model.context_length)

    def check_length(self, tokens: int, param: str) -> None:
        """Refuse what the model cannot take.

        Raises:
            ApiError: 413.
        """
        if tokens > self.most_tokens:
            raise too_long(tokens, self.most_tokens, param)

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what nobody waits for; the server does not stop before it is done or given up."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Take nothing more on, finish what was taken on, and let go of everything.

        Uploads that are read into a store may take hours. They are left: where they are kept, the next server goes on
        with them, and otherwise they are gone.
        """
        self.admission.is_draining = True
        self.engine.leave_background()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await in_thread(self.engine.stop)
        for index in self.indexes.values():
            index.close()
        self.stores.close()
        self.uploads.close()

    # --- plain text -------------------------------------------------------------------------------------------------

    async def go_on(
        self,
        asker: Asker,
        ids: Sequence[int],
        sampling: Sampling,
        top_logprobs: int | None = None,
        remembers: bool = True,
    ) -> AsyncGenerator[Piece | Finished, None]:
        """From a prompt of token ids, without documents."""
        began, first = time.perf_counter(), 0.0
        salt = asker.tenant.salt if remembers else None
        job = Generation(Context.of(ids), sampling, asker.client, asker.deadline, salt, top_logprobs)
        stream = generate(self.engine, job)
        async with aclosing(stream) as events:
            async for event in events:
                assert isinstance(event, Piece | Finished)
                first = first or time.perf_counter() - began
                if isinstance(event, Finished):
                    self.metrics.answer(len(ids), event.cached_tokens, len(event.completion.token_ids), first)
                yield event

    async def search(
        self, asker: Asker, index: Index, queries: Sequence[str], k: int, where: Mapping[str, Any] | None
    ) -> list[list[Hit]]:
        """Hits of each query, by vectors and words."""
        prompts = await in_thread(query_prompts, self.model, queries)
        outcomes = await read(self.engine, prompts, asker.client, asker.deadline, is_urgent=True)
        vectors = np.stack([outcome.vector for outcome in outcomes])
        return await in_thread(index.search_many, queries, k, where=where, mode="hybrid", vectors=vectors)

    # --- answers ----------------------------------------------------------------------------------------------------

    async def answer(self, asker: Asker, question: Question) -> AsyncGenerator[Told, None]:
        """Hits, pieces of text, and the whole `Answer` last: what `RAG.stream` tells.

        Raises:
            ValueError, ApiError: see `RAG.ask`; 413 for what is too long.
        """
        began = time.perf_counter()
        check_takes_recompute(self.model, question.recompute)
        sampling = question.sampling.stopping_at(self.model.prompts.template.stop)
        parts = {"retrieve": 0.0, "load": 0.0, "place": 0.0}
        asked = await in_thread(self.model.prompts.question_ids, question.text, True)
        self.check_length(len(asked) + len(question.history) + sampling.max_new_tokens, "max_tokens")
        found = await self._find(asker, question)
        parts["retrieve"] = time.perf_counter() - began
        yield Told(hits=found.hits)
        loading = time.perf_counter()
        plan = await self._plan(asker, question, found, sampling)
        parts["load"] = time.perf_counter() - loading
        salt = asker.tenant.salt if question.remembers else None
        job = Generation(
            plan.context,
            sampling,
            asker.client,
            asker.deadline,
            salt,
            question.top_logprobs,
            question.recompute,
            plan.refusal,
        )
        stream = generate(self.engine, job)
        async with aclosing(stream) as events:
            async for event in events:
                parts.setdefault("first_token", time.perf_counter() - began)
                if isinstance(event, Piece):
                    yield Told(piece=event)
                    continue
                assert isinstance(event, Finished)
                parts["place"] = event.place
                timings = Timings(**parts, total=time.perf_counter() - began)
                decoded = Decoded(event.completion, timings, sampling, event.read_again, event.cached_tokens)
                answer = answer_of(self.model, question.mode, found.hits, plan, decoded)
                usage = answer.usage
                self.metrics.answer(
                    usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens, timings.first_token
                )
                if self.observer is not None:
                    name = next((name for name, each in list(self.indexes.items()) if each is question.index), "")
                    self.observer.answered([question.text], [answer], name, sampling)
                yield Told(answer=answer, logprobs=event.logprobs)

    async def _find(self, asker: Asker, question: Question) -> Found:
        """Hits, with the question's state or vector where they are needed."""
        mode = MODES[question.mode]
        hits = list(question.hits) if question.hits is not None else []
        searches = mode.has_documents and question.hits is None and question.index is not None
        is_ranked = question.hits is None
        unscored = lacks_scores(self.model, mode, question.relevance_bias, hits)
        needs_vector = (searches and question.search_mode != "sparse") or unscored
        vector: np.ndarray | None = None
        state: DocumentState | None = None
        if needs_vector or mode.reuses_question:
            prompts = await in_thread(query_prompts, self.model, [question.text])
            (outcome,) = await read(
                self.engine, prompts, asker.client, asker.deadline, True, wants_states=mode.reuses_question
            )
            vector, state = outcome.vector, outcome.state
        if searches:
            assert question.index is not None
            (hits,) = await in_thread(
                question.index.search_many,
                [question.text],
                question.rerank or question.k,
                where=question.where,
                mode=question.search_mode,
                vectors=None if vector is None else vector[None],
            )
            states: States | None = None
            if question.rerank is not None and hits:
                hits, states = await self._reranked(asker, question, hits)
            unscored = lacks_scores(self.model, mode, question.relevance_bias, hits)
            return Found(hits, is_ranked, state, vector if unscored else None, states)
        return Found(hits if mode.has_documents else [], is_ranked, state, vector if unscored else None)

    async def _reranked(self, asker: Asker, question: Question, hits: Sequence[Hit]) -> tuple[list[Hit], States]:
        """The best `k` by how probable the question is behind each of their states, and these states."""
        states = await self._states(asker, question.index, hits)
        logs_NS = await rank(self.engine, question.text, states.states, asker.client, asker.deadline)
        kept = ranked(hits, logs_NS, question.k)
        numbers = {id(hit.document): number for number, hit in enumerate(hits)}
        return kept, states.of([numbers[id(hit.document)] for hit in kept])

    async def _plan(self, asker: Asker, question: Question, found: Found, sampling: Sampling) -> ContextPlan:
        mode, hits = MODES[question.mode], found.hits
        states: list[DocumentState] | None = None
        computed: set[int] = set()
        vectors: dict[int, np.ndarray] = {}
        if mode.reuses_documents and question.recompute < 1 and hits:  # all of it read again is text
            loaded = found.states or await self._states(asker, question.index, hits)
            states, computed, vectors = loaded
        if found.vector is not None:
            known = await self._vectors(question.index, hits)
            hits = scored(hits, [vectors.get(n, vector) for n, vector in enumerate(known)], found.vector)
        retrieved = Retrieved(
            question.text,
            hits,
            states,
            question_state=found.state if question.recompute < 1 else None,
            computed=computed,
            is_best_last=found.is_ranked,
        )
        plan = await in_thread(
            plan_context,
            self.model,
            mode,
            retrieved,
            room=sampling.max_new_tokens + len(question.history),
            relevance_bias=question.relevance_bias,
            recompute=question.recompute,
            unanswerable_above=question.unanswerable_above,
        )
        return _behind(question.history, plan) if question.history else plan

    async def _states(self, asker: Asker, index: Index | None, hits: Sequence[Hit]) -> States:
        """Loaded from the index, or remembered, or read now."""
        documents = [hit.document for hit in hits]
        states: list[DocumentState | None] = [None] * len(hits)
        vectors: dict[int, np.ndarray] = {}
        if index is not None:
            states = await in_thread(index.load_states, documents)
        missing = [number for number, state in enumerate(states) if state is None]
        if not missing:
            return States([state for state in states if state is not None], set(), vectors)
        salt = asker.tenant.salt
        dressed = await in_thread(document_prompts, self.model, [documents[n] for n in missing])
        prompts = dict(zip(missing, dressed, strict=True))
        known = {n: reading for n in missing if (reading := self.memory.document(salt, prompts[n].ids)) is not None}
        computed = [n for n in missing if n not in known]
        outcomes = await read(
            self.engine, [prompts[n] for n in computed], asker.client, asker.deadline, True, wants_states=True
        )
        for number, reading in known.items():
            states[number], vectors[number] = reading.state, reading.vector
        for number, outcome in zip(computed, outcomes, strict=True):
            states[number], vectors[number] = outcome.state, outcome.vector
        for number, outcome in zip(computed, outcomes, strict=True):
            assert outcome.state is not None
            if index is not None:
                await in_thread(index.keep_state, documents[number], outcome.state)
            else:
                self.memory.keep_document(salt, prompts[number].ids, Reading(outcome.vector, outcome.state))
        return States([state for state in states if state is not None], set(computed), vectors)

    async def _vectors(self, index: Index | None, hits: Sequence[Hit]) -> list[np.ndarray | None]:
        """Of the documents, as far as an index holds them."""
        if index is None:
            return [None] * len(hits)
        return await in_thread(index.load_vectors, [hit.document for hit in hits])


def _behind(history: tuple[int, ...], plan: ContextPlan) -> ContextPlan:
    """The plan behind what was said before: documents and question stand further on. Whether documents hold an answer
    is calibrated for questions that stand alone."""
    context = plan.context
    moved = replace(context, parts=(Part(history), *context.parts))
    citations = tuple(Citation(c.id, c.title, c.start + len(history), c.end + len(history)) for c in plan.citations)
    is_exact = plan.is_exact and not context.states
    return replace(plan, context=moved, citations=citations, is_exact=is_exact, refusal=None)
