"""`RAG`: a question to hits, a plan of their context, and the answer that is decoded from it.

Shape letters: `B` batch, `T` tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from time import perf_counter
from typing import Any

import numpy as np

from gritrag.config import RELEVANCE_BIAS
from gritrag.index.index import Index
from gritrag.index.search import MODES as SEARCH_MODES
from gritrag.model.decode import Completion, Sampling
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState, Reading
from gritrag.plan import MODES, ContextPlan, Mode, Retrieved, check_relevance_bias, plan_context
from gritrag.records import Answer, Document, Event, Hit, Timings, Usage, as_hits

__all__ = ["MODES", "RAG", "ContextPlan", "Mode", "Retrieved", "check_relevance_bias", "plan_context"]

Where = Mapping[str, Any] | None
Given = Sequence[Hit | Document | str]


def _is_ranked(given: Given) -> bool:
    """Whether the first is the best: of what a search has found, and not of documents in an order of their own."""
    return all(isinstance(each, Hit) for each in given)


@dataclass(frozen=True)
class _Found:
    """A question, what it is answered from, and what embedding it left.

    Args:
        question: its text.
        hits: as they were found or given.
        is_ranked: see `_is_ranked`.
        state: of the question, where the mode reuses it.
        vector: of the question `[dim]`, where documents that came without scores are weighed by it.
    """

    question: str
    hits: Sequence[Hit]
    is_ranked: bool
    state: DocumentState | None = None
    vector: np.ndarray | None = None


@dataclass
class _Clock:
    """Seconds since the call, split into parts."""

    start: float = field(default_factory=perf_counter)
    parts: dict[str, float] = field(default_factory=lambda: {"retrieve": 0.0, "load": 0.0, "place": 0.0})

    def lap(self, part: str, since: float) -> float:
        now = perf_counter()
        self.parts[part] = now - since
        return now


class RAG:
    """Answers questions from an index, with or without reuse of the documents' states.

    Args:
        index: opened with its model.
        mode: ``"doc-cache"`` answers from the documents' states; ``"doc-query"`` reads them again with every question;
            ``"no-retrieval"`` asks the model alone. `MODES` has all seven.
        k: documents per question.
        search_mode: ``"hybrid"``, ``"dense"`` or ``"sparse"``.
        relevance_bias: documents that were read one by one look alike to an answer, which takes words from the wrong
            one. So scores of the search are added to those of attention, as MARGE does (Lewis et al. 2020, arXiv
            2006.15020, section 2.2): each token of a state gets ``relevance_bias * (score / best - 1)``, of the scores
            of its hit and of the best one. Documents that are given without scores, or with none above 0, are weighed
            by the similarity of their vectors to the question's. Documents that are weighed stand abreast: each ends
            where what comes behind the documents begins, so that their order says nothing. 0 leaves attention to
            itself and documents in a row, and embeds no question for it. There is no bias on texts that are read again,
            and for models with sliding windows or keys that cannot be moved.

    Raises:
        ValueError: an unknown mode, k below 1, a `relevance_bias` below 0, or an index without a model.
    """

    def __init__(
        self,
        index: Index,
        mode: str = "doc-cache",
        k: int = 5,
        search_mode: str = "hybrid",
        relevance_bias: float = RELEVANCE_BIAS,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"no mode {mode!r}; there are: {', '.join(MODES)}")
        if search_mode not in SEARCH_MODES:
            raise ValueError(f"no search_mode {search_mode!r}; there are: {', '.join(SEARCH_MODES)}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}; to answer without documents use mode='no-retrieval'")
        check_relevance_bias(relevance_bias)
        if not isinstance(index.model, GritModel):
            raise ValueError("this index was opened without a model; open it with Index.open(path, model=model)")
        self.index, self.model, self.mode, self.k, self.search_mode = index, index.model, MODES[mode], k, search_mode
        self.relevance_bias = relevance_bias

    def ask(self, question: str, *, where: Where = None, hits: Given | None = None, **sampling: Any) -> Answer:
        """Answer one question.

        Args:
            question: the question.
            where: metadata filter for the search.
            hits: to answer from instead of a search: hits, the best first, which stands last in the context, next to
                the question or the answer; or documents or strings, in context order.
            **sampling: fields of `Sampling`, such as max_new_tokens.

        Raises:
            ValueError: an empty question, a broken filter, hits that are none, or a context too long for the model.
        """
        *_, last = self.stream(question, where=where, hits=hits, **sampling)
        assert last.answer is not None
        return last.answer

    def stream(
        self, question: str, *, where: Where = None, hits: Given | None = None, **sampling: Any
    ) -> Iterator[Event]:
        """As `ask`, in events: the hits first, then pieces of text, and the whole `Answer` last."""
        clock = _Clock()
        options = self._options(sampling)
        (found,) = self._retrieve([question], where, None if hits is None else [hits])
        now = clock.lap("retrieve", clock.start)
        yield Event(hits=found.hits)
        clock.start += perf_counter() - now  # what the caller did with the hits is not our time
        now = perf_counter()
        plan = self._plan(found, options)
        now = clock.lap("load", now)
        cache = self.model.decoder.place([plan.context], options)
        clock.lap("place", now)
        decoding = self.model.decoder.decode_placed(cache, [plan.context], options)
        for pieces in decoding:
            clock.parts.setdefault("first_token", perf_counter() - clock.start)
            if pieces[0]:
                yield Event(text=pieces[0])
        yield Event(answer=self._answer(found.hits, plan, decoding.completions[0], clock, options))

    def ask_many(
        self,
        questions: Sequence[str],
        *,
        batch_size: int = 8,
        where: Where = None,
        hits: Sequence[Given] | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """Answers in the order of the questions, decoded `batch_size` at a time; `hits` as in `ask`, for each of them.

        Timings are those of the batch: `first_token` when the first token of every row was there.
        """
        if isinstance(questions, str):
            raise ValueError("expected a list of questions, got one string; use ask, or put it into a list")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if hits is not None and len(hits) != len(questions):
            raise ValueError(f"got {len(questions)} questions and {len(hits)} lists of hits; give one list for each")
        if self.model.decoder.has_window:
            batch_size = 1  # gaps between contexts and questions would eat into the window
        options = self._options(sampling)
        batches = [slice(start, start + batch_size) for start in range(0, len(questions), batch_size)]
        answers = [self._ask_batch(questions[rows], where, hits and hits[rows], options) for rows in batches]
        return list(chain.from_iterable(answers))

    def _ask_batch(
        self, questions: Sequence[str], where: Where, given: Sequence[Given] | None, options: Sampling
    ) -> list[Answer]:
        clock = _Clock()
        found = self._retrieve(questions, where, given)
        now = clock.lap("retrieve", clock.start)
        plans = [self._plan(each, options) for each in found]
        now = clock.lap("load", now)
        contexts = [plan.context for plan in plans]
        cache = self.model.decoder.place(contexts, options)
        clock.lap("place", now)
        decoding = self.model.decoder.decode_placed(cache, contexts, options)
        for _ in decoding:
            clock.parts.setdefault("first_token", perf_counter() - clock.start)
        rows = zip(found, plans, decoding.completions, strict=True)
        return [self._answer(each.hits, plan, completion, clock, options) for each, plan, completion in rows]

    def _options(self, sampling: Mapping[str, Any]) -> Sampling:
        """The template's stop strings are always among those that end an answer."""
        options = Sampling.of(sampling)
        return replace(options, stop=(*options.stop, *self.model.prompts.template.stop))

    def _retrieve(self, questions: Sequence[str], where: Where, given: Sequence[Given] | None) -> list[_Found]:
        """Hits for each question, and its state where the mode reuses it: embedded once, for all that needs it."""
        states: Sequence[DocumentState | None] = [None] * len(questions)
        vectors: np.ndarray | None = None
        if self.mode.reuses_question:
            readings = self.model.read_queries(questions)
            states, vectors = [r.state for r in readings], np.stack([r.vector for r in readings])
        if not self.mode.has_documents:
            given = [[] for _ in questions]
        elif given is None:
            given = self.index.search_many(questions, self.k, where=where, mode=self.search_mode, vectors=vectors)
        hits = [as_hits(each) for each in given]
        ranked = [_is_ranked(each) for each in given]
        found = [_Found(*each) for each in zip(questions, hits, ranked, states, strict=True)]
        unscored = [row for row, each in enumerate(hits) if self._lacks_scores(each)]
        if unscored and vectors is None:
            of_unscored = self.model.encode_query([questions[row] for row in unscored])
        elif vectors is not None:
            of_unscored = vectors[unscored]
        for place, row in enumerate(unscored):
            found[row] = replace(found[row], vector=of_unscored[place])
        return found

    def _lacks_scores(self, hits: Sequence[Hit]) -> bool:
        """Whether states are to be weighed, and nothing says how."""
        is_biased = self.relevance_bias > 0 and self.mode.reuses_documents and self.model.decoder.takes_biases
        return is_biased and len(hits) > 1 and not any(hit.score > 0 for hit in hits)

    def _plan(self, found: _Found, options: Sampling) -> ContextPlan:
        hits, readings = found.hits, dict[int, Reading]()
        states: list[DocumentState] | None = None
        if self.mode.reuses_documents and hits:
            states, readings = self._states(hits)
        if found.vector is not None:
            hits = self._scored(hits, found.vector, readings)
        retrieved = Retrieved(found.question, hits, states, found.state, readings, found.is_ranked)
        return plan_context(
            self.model, self.mode, retrieved, room=options.max_new_tokens, relevance_bias=self.relevance_bias
        )

    def _states(self, hits: Sequence[Hit]) -> tuple[list[DocumentState], dict[int, Reading]]:
        """States of all hits; and, by their numbers, readings of those that were missing: stored if nobody writes."""
        states = self.index.states_of(hit.document for hit in hits)
        missing = [number for number, state in enumerate(states) if state is None]
        if not missing:
            return [state for state in states if state is not None], {}
        readings = dict(zip(missing, self.model.read_documents([hits[n].document for n in missing]), strict=True))
        for number, reading in readings.items():
            states[number] = reading.state
            self.index.keep_state(hits[number].document, reading.state)
        return [state for state in states if state is not None], readings

    def _scored(self, hits: Sequence[Hit], vector_D: np.ndarray, readings: Mapping[int, Reading]) -> list[Hit]:
        """The hits with the similarity to the question as score: of vectors that are stored, or have just been read."""
        stored = self.index.vectors_of(hit.document for hit in hits)
        vectors = [readings[n].vector if n in readings else vector for n, vector in enumerate(stored)]
        return [
            replace(hit, score=float(vector @ vector_D) if vector is not None else 0.0)
            for hit, vector in zip(hits, vectors, strict=True)
        ]

    def _answer(
        self, hits: Sequence[Hit], plan: ContextPlan, completion: Completion, clock: _Clock, options: Sampling
    ) -> Answer:
        return Answer(
            text=completion.text.strip(),
            hits=tuple(hits),
            citations=plan.citations,
            usage=Usage(len(plan.context), plan.cached_tokens, len(completion.token_ids)),
            timings=Timings(**clock.parts, total=perf_counter() - clock.start),
            exact=plan.is_exact and (options.temperature == 0 or not plan.context.states),
            mode=self.mode.name,
            finish_reason=completion.finish_reason,
        )
