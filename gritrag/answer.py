"""Hits to an answer: which states, in which order, which tokens remain. Only this file knows the order of a context.

Shape letters: `B` batch, `T` tokens.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from time import perf_counter
from typing import Any

import torch

from gritrag.index.index import Index
from gritrag.index.search import MODES as SEARCH_MODES
from gritrag.model.decode import Completion, Sampling
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState
from gritrag.records import Answer, Citation, Event, Hit, Timings, Usage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mode:
    """One row of the table of modes: what the context holds, and what of it is reused."""

    name: str
    has_documents: bool
    reuses_documents: bool


MODES = {
    mode.name: mode
    for mode in (
        Mode("no-retrieval", has_documents=False, reuses_documents=False),
        Mode("doc-query", has_documents=True, reuses_documents=False),
        Mode("doc-cache", has_documents=True, reuses_documents=True),
    )
}


@dataclass(frozen=True)
class ContextPlan:
    """The context of one answer: states first, at positions from 0, then the tokens that are still to be read.

    Args:
        states: in context order; empty where nothing is reused.
        prompt_ids: what follows them: documents that are not reused, the question, the start of the answer.
        citations: the documents of the context and their token spans.
        is_exact: whether the uncached run of the same segments would give the same tokens.
    """

    states: tuple[DocumentState, ...]
    prompt_ids: tuple[int, ...]
    citations: tuple[Citation, ...]
    is_exact: bool

    @property
    def cached_tokens(self) -> int:
        return sum(map(len, self.states))

    @property
    def prompt_tokens(self) -> int:
        return self.cached_tokens + len(self.prompt_ids)


def plan_context(
    model: GritModel, question: str, hits: Sequence[Hit], states: Sequence[DocumentState] | None, room: int
) -> ContextPlan:
    """Documents, then the question. Cached and uncached plans are the same token ids in the same order.

    Documents that do not fit beside question and answer are left out from the end, with a warning: they are hits, but
    not citations.

    Args:
        states: of the hits, where they are to be reused; None to read the documents again.
        room: tokens to leave for the answer.

    Raises:
        ValueError: not even one document fits.
    """
    question_ids = model.question_token_ids(question, has_documents=bool(hits))
    token_ids = [state.token_ids.tolist() for state in states] if states is not None else None
    token_ids = token_ids or [model.document_token_ids(hit.document) for hit in hits]
    ends = list(accumulate(map(len, token_ids)))
    fitting = sum(end + len(question_ids) + room <= model.max_tokens for end in ends)
    if fitting < len(hits):
        if fitting == 0:
            raise ValueError(
                f"document {hits[0].document.id!r} has {ends[0]} tokens, the question {len(question_ids)}, the answer "
                f"up to {room}: more than the {model.max_tokens} this model takes; index shorter chunks"
            )
        logger.warning("only the first %d of %d documents fit the context; the others are left out", fitting, len(hits))
    citations = tuple(
        Citation(hit.document.id, hit.document.title, end - len(ids), end)
        for hit, ids, end in zip(hits[:fitting], token_ids, ends, strict=False)
    )
    reused = tuple(states[:fitting]) if states is not None else ()
    if model.rotation is None:
        reused = reused[:1]  # a state that cannot be moved is of use only where it was read
    read_again = [i for ids in token_ids[len(reused) : fitting] for i in ids]
    # in fewer bits, keys are rounded again where they are placed
    is_lossless = model.shape.dtype == torch.float32 and all(
        state.keys.dtype == torch.float32 and state.reading == "causal" for state in reused
    )
    return ContextPlan(
        reused, (*read_again, *question_ids), citations, not reused or (len(reused) == 1 and is_lossless)
    )


@dataclass
class _Clock:
    """Seconds since the call, split into parts."""

    start: float = field(default_factory=perf_counter)
    parts: dict[str, float] = field(default_factory=dict)

    def lap(self, part: str, since: float) -> float:
        now = perf_counter()
        self.parts[part] = now - since
        return now

    def timings(self) -> Timings:
        parts = {"retrieve": 0.0, "load": 0.0, "place": 0.0, **self.parts}
        return Timings(**parts, total=perf_counter() - self.start)


class RAG:
    """Answers questions from an index, with or without reuse of the documents' states.

    Args:
        index: opened with its model.
        mode: ``"doc-cache"`` answers from states; ``"doc-query"`` reads the documents again with every question;
            ``"no-retrieval"`` asks the model alone.
        k: documents per question.
        search_mode: ``"hybrid"``, ``"dense"`` or ``"sparse"``.

    Raises:
        ValueError: an unknown mode, k below 1, or an index without a model.
    """

    def __init__(self, index: Index, mode: str = "doc-cache", k: int = 5, search_mode: str = "hybrid") -> None:
        if mode not in MODES:
            raise ValueError(f"no mode {mode!r}; there are: {', '.join(MODES)}")
        if search_mode not in SEARCH_MODES:
            raise ValueError(f"no search_mode {search_mode!r}; there are: {', '.join(SEARCH_MODES)}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}; to answer without documents use mode='no-retrieval'")
        if not isinstance(index.model, GritModel):
            raise ValueError("this index was opened without a model; open it with Index.open(path, model=model)")
        self.index, self.model, self.mode, self.k, self.search_mode = index, index.model, MODES[mode], k, search_mode

    def ask(
        self,
        question: str,
        *,
        where: Mapping[str, Any] | None = None,
        hits: Sequence[Hit] | None = None,
        **sampling: Any,
    ) -> Answer:
        """Answer one question.

        Args:
            question: the question.
            where: metadata filter for the search.
            hits: documents to answer from, in context order, instead of a search.
            **sampling: fields of `Sampling`, such as max_new_tokens.

        Raises:
            ValueError: an empty question, a broken filter, or a context that is too long for the model.
        """
        *_, last = self.stream(question, where=where, hits=hits, **sampling)
        assert last.answer is not None
        return last.answer

    def stream(
        self,
        question: str,
        *,
        where: Mapping[str, Any] | None = None,
        hits: Sequence[Hit] | None = None,
        **sampling: Any,
    ) -> Iterator[Event]:
        """As `ask`, in events: the hits first, then pieces of text, and the whole `Answer` last."""
        clock = _Clock()
        options = self._options(sampling)
        if hits is None:
            hits = self._search([question], where)[0]
        now = clock.lap("retrieve", clock.start)
        yield Event(hits=hits)
        clock.start += perf_counter() - now  # what the caller did with the hits is not our time
        now = perf_counter()
        plan = self._plan(question, hits, options)
        now = clock.lap("load", now)
        cache = self.model.place([plan.states], [plan.prompt_ids], options)
        clock.lap("place", now)
        decoding = self.model.decode_placed(cache, [plan.states], [plan.prompt_ids], options)
        for pieces in decoding:
            clock.parts.setdefault("first_token", perf_counter() - clock.start)
            if pieces[0]:
                yield Event(text=pieces[0])
        yield Event(answer=self._answer(hits, plan, decoding.completions[0], clock, options))

    def ask_many(
        self,
        questions: Sequence[str],
        *,
        batch_size: int = 8,
        where: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """Answers in the order of the questions, decoded `batch_size` at a time.

        Timings are those of the batch: `first_token` when the first token of every row was there.
        """
        if isinstance(questions, str):
            raise ValueError("expected a list of questions, got one string; use ask, or put it into a list")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self.model.has_window:
            batch_size = 1  # gaps between contexts and questions would eat into the window
        options = self._options(sampling)
        starts = range(0, len(questions), batch_size)
        return [
            answer
            for start in starts
            for answer in self._ask_batch(questions[start : start + batch_size], where, options)
        ]

    def _ask_batch(self, questions: Sequence[str], where: Mapping[str, Any] | None, options: Sampling) -> list[Answer]:
        clock = _Clock()
        hits = self._search(questions, where)
        now = clock.lap("retrieve", clock.start)
        plans = [self._plan(question, found, options) for question, found in zip(questions, hits, strict=True)]
        now = clock.lap("load", now)
        contexts, prompts = [plan.states for plan in plans], [plan.prompt_ids for plan in plans]
        cache = self.model.place(contexts, prompts, options)
        clock.lap("place", now)
        decoding = self.model.decode_placed(cache, contexts, prompts, options)
        for _ in decoding:
            clock.parts.setdefault("first_token", perf_counter() - clock.start)
        rows = zip(hits, plans, decoding.completions, strict=True)
        return [self._answer(found, plan, completion, clock, options) for found, plan, completion in rows]

    def _options(self, sampling: Mapping[str, Any]) -> Sampling:
        """The template's stop strings are always among those that end an answer."""
        options = Sampling.of(sampling)
        return replace(options, stop=(*options.stop, *self.model.template.stop))

    def _search(self, questions: Sequence[str], where: Mapping[str, Any] | None) -> list[list[Hit]]:
        if not self.mode.has_documents:
            return [[] for _ in questions]
        return self.index.search_many(questions, self.k, where=where, mode=self.search_mode)

    def _plan(self, question: str, hits: Sequence[Hit], options: Sampling) -> ContextPlan:
        states = self._states(hits) if self.mode.reuses_documents and hits else None
        return plan_context(self.model, question, hits, states, options.max_new_tokens)

    def _states(self, hits: Sequence[Hit]) -> list[DocumentState]:
        """States of all hits. What is not stored is read, used, and stored where the index can be written."""
        states = self.index.states_of(hit.document for hit in hits)
        missing = [position for position, state in enumerate(states) if state is None]
        if missing:
            readings = self.model.read_documents([hits[position].document for position in missing])
            for position, reading in zip(missing, readings, strict=True):
                document, states[position] = hits[position].document, reading.state
                if self.index.get([document.id] if document.id in self.index else []) == [document]:
                    self.index.store_state(document.id, reading.state)
        return [state for state in states if state is not None]

    def _answer(
        self, hits: Sequence[Hit], plan: ContextPlan, completion: Completion, clock: _Clock, options: Sampling
    ) -> Answer:
        return Answer(
            text=completion.text.strip(),
            hits=tuple(hits),
            citations=plan.citations,
            usage=Usage(plan.prompt_tokens, plan.cached_tokens, len(completion.token_ids)),
            timings=clock.timings(),
            exact=plan.is_exact and (options.temperature == 0 or not plan.states),
            mode=self.mode.name,
            finish_reason=completion.finish_reason,
        )
