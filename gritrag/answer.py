"""Hits to an answer: which states, in which order, which tokens remain. Only this file knows the order of a context.

Shape letters: `B` batch, `T` tokens.
"""

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from time import perf_counter
from typing import Any

import numpy as np
import torch

from gritrag.config import RELEVANCE_BIAS
from gritrag.index.index import Index
from gritrag.index.search import MODES as SEARCH_MODES
from gritrag.model.context import Context, Piece
from gritrag.model.decode import Completion, Sampling
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState
from gritrag.records import Answer, Citation, Document, Event, Hit, Timings, Usage, as_hits

logger = logging.getLogger(__name__)

Where = Mapping[str, Any] | None
Given = Sequence[Hit | Document | str]


@dataclass(frozen=True)
class Mode:
    """One row of the table of modes: the order of a context, and what of it is reused.

    Args:
        name: as in the table.
        has_documents: whether there is anything but the question.
        is_question_first: question before documents.
        reuses_documents: their states are loaded; else they are read again.
        reuses_question: the state that embedding the question left is used; else the question is read again.
    """

    name: str
    has_documents: bool = True
    is_question_first: bool = False
    reuses_documents: bool = False
    reuses_question: bool = False

    def frame(self, model: GritModel, question: str, asked: DocumentState | None) -> tuple[list[Piece], list[Piece]]:
        """What stands before and behind the documents; `asked` is the question's state where the mode reuses it."""
        if not self.has_documents:
            return [], [tuple(model.question_token_ids(question, has_documents=False))]
        if self.is_question_first:
            first = asked or tuple(model.question_first_token_ids(question))
            return [first], [tuple(model.answer_start_ids(question_is_last=False))]
        if asked is not None:
            return [], [asked, tuple(model.answer_start_ids(question_is_last=True))]
        return [], [tuple(model.question_token_ids(question, has_documents=True))]


MODES = {
    mode.name: mode
    for mode in (
        Mode("no-retrieval", has_documents=False),
        Mode("query-doc", is_question_first=True),
        Mode("doc-query"),
        Mode("query-cache", is_question_first=True, reuses_question=True),
        Mode("doc-cache", reuses_documents=True),
        Mode("query-doc-cache", is_question_first=True, reuses_documents=True, reuses_question=True),
        Mode("doc-query-cache", reuses_documents=True, reuses_question=True),
    )
}
NO_RETRIEVAL = MODES["no-retrieval"]


@dataclass(frozen=True)
class ContextPlan:
    """What one answer is decoded from.

    Args:
        context: states and the tokens that are still to be read, in order.
        citations: the documents of the context and their token spans.
        is_exact: whether the uncached run of the same segments would give the same tokens.
        cached_tokens: those of states that were there; a state that was missing has been read for this answer.
    """

    context: Context
    citations: tuple[Citation, ...]
    is_exact: bool
    cached_tokens: int


def plan_context(
    model: GritModel,
    mode: Mode,
    question: str,
    hits: Sequence[Hit],
    states: Sequence[DocumentState] | None = None,
    asked: DocumentState | None = None,
    room: int = 0,
    computed: Collection[int] = (),
    is_best_last: bool = False,
    relevance_bias: float = 0.0,
) -> ContextPlan:
    """Documents and question in the order of the mode. Cached and uncached plans are the same token ids.

    Documents that do not fit beside question and answer are left out from the end, with a warning: they are hits, but
    not citations.

    Args:
        states: of the hits, where they are to be reused; None to read the documents again.
        asked: state of the question, likewise.
        room: tokens to leave for the answer.
        computed: numbers of the states that were missing and have been read for this answer.
        is_best_last: the context has the hits in reverse, the first one next to what comes behind the documents.
        relevance_bias: of states of documents; see `RAG`.

    Raises:
        ValueError: not even one document fits.
    """
    before, after = (mode if hits else NO_RETRIEVAL).frame(model, question, asked)
    documents: list[Piece] = [tuple(model.document_token_ids(hit.document)) for hit in hits] if states is None else []
    documents += states or []
    start = sum(map(len, before))
    around = sum(map(len, after)) + room
    fitting = sum(end + around <= model.max_tokens for end in _ends(start, documents))
    if fitting < len(hits):
        if fitting == 0:
            raise ValueError(
                f"document {hits[0].document.id!r} has {len(documents[0])} tokens, the question "
                f"{start + around - room} and the answer up to {room}: more than the {model.max_tokens} this model "
                "takes; index shorter chunks"
            )
        logger.warning("only the first %d of %d documents fit the context; the others are left out", fitting, len(hits))
    turn = slice(None, None, -1 if is_best_last else 1)
    pieces = documents[:fitting][turn]
    citations = tuple(
        Citation(hit.document.id, hit.document.title, end - len(piece), end)
        for hit, piece, end in zip(hits[:fitting], pieces[turn], _ends(start, pieces)[turn], strict=True)
    )
    biases = _biases(hits[:fitting], relevance_bias)[turn]
    context = model.usable(Context((*before, *pieces, *after), (*[0.0] * len(before), *biases, *[0.0] * len(after))))
    new = {id(documents[number]) for number in computed}
    cached = sum(len(state) for state, _ in context.states if id(state) not in new)
    return ContextPlan(context, citations, _is_exact(model, context), cached)


def _biases(hits: Sequence[Hit], relevance_bias: float) -> list[float]:
    """From 0 for the best hit down to minus `relevance_bias` for one of score 0; all 0 where no score is above 0."""
    scores = [max(hit.score, 0.0) if math.isfinite(hit.score) else 0.0 for hit in hits]
    best = max(scores, default=0.0)
    return [relevance_bias * (score / best - 1) if best > 0 else 0.0 for score in scores]


def check_relevance_bias(value: float) -> None:
    """Refuse what is no relevance bias.

    Raises:
        ValueError: it is below 0 or no finite number.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"relevance_bias must be at least 0 and finite (0: none), got {value!r}")


def _is_ranked(given: Given | None) -> bool:
    """Whether the first is the best: of what a search has found, and not of documents in an order of their own."""
    return given is None or all(isinstance(each, Hit) for each in given)


def _ends(start: int, pieces: Sequence[Piece]) -> list[int]:
    return list(accumulate(map(len, pieces), initial=start))[1:]


def _is_exact(model: GritModel, context: Context) -> bool:
    """Nothing is reused, or one state that stands where it was read, as it was computed. In fewer bits than float32,
    keys are rounded again where they are placed."""
    return not context.states or (
        context.states == [(state := context.states[0][0], 0)]
        and state.is_lossless  # first: to look at the keys of a packed state unpacks it
        and state.reading == "causal"
        and model.shape.dtype == state.keys.dtype == torch.float32
    )


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
            of its hit and of the best one. 0 leaves attention to itself. There is no bias among documents that come
            without scores, on texts that are read again, and for models with sliding windows or keys that cannot be
            moved.

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
        given = hits
        (hits,), (asked,) = self._retrieve([question], where, None if hits is None else [hits])
        now = clock.lap("retrieve", clock.start)
        yield Event(hits=hits)
        clock.start += perf_counter() - now  # what the caller did with the hits is not our time
        now = perf_counter()
        plan = self._plan(question, hits, asked, options, _is_ranked(given))
        now = clock.lap("load", now)
        cache = self.model.place([plan.context], options)
        clock.lap("place", now)
        decoding = self.model.decode_placed(cache, [plan.context], options)
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
        if self.model.has_window:
            batch_size = 1  # gaps between contexts and questions would eat into the window
        options = self._options(sampling)
        batches = [slice(start, start + batch_size) for start in range(0, len(questions), batch_size)]
        answers = [self._ask_batch(questions[rows], where, hits and hits[rows], options) for rows in batches]
        return list(chain.from_iterable(answers))

    def _ask_batch(
        self, questions: Sequence[str], where: Where, given: Sequence[Given] | None, options: Sampling
    ) -> list[Answer]:
        clock = _Clock()
        hits, asked = self._retrieve(questions, where, given)
        now = clock.lap("retrieve", clock.start)
        ranked = [_is_ranked(None if given is None else given[row]) for row in range(len(questions))]
        plans = [self._plan(q, h, a, options, r) for q, h, a, r in zip(questions, hits, asked, ranked, strict=True)]
        now = clock.lap("load", now)
        contexts = [plan.context for plan in plans]
        cache = self.model.place(contexts, options)
        clock.lap("place", now)
        decoding = self.model.decode_placed(cache, contexts, options)
        for _ in decoding:
            clock.parts.setdefault("first_token", perf_counter() - clock.start)
        rows = zip(hits, plans, decoding.completions, strict=True)
        return [self._answer(found, plan, completion, clock, options) for found, plan, completion in rows]

    def _options(self, sampling: Mapping[str, Any]) -> Sampling:
        """The template's stop strings are always among those that end an answer."""
        options = Sampling.of(sampling)
        return replace(options, stop=(*options.stop, *self.model.template.stop))

    def _retrieve(
        self, questions: Sequence[str], where: Where, given: Sequence[Given] | None
    ) -> tuple[Sequence[Sequence[Hit]], Sequence[DocumentState | None]]:
        """Hits for each question, and its state where the mode reuses it: embedded once, for both."""
        asked: Sequence[DocumentState | None] = [None] * len(questions)
        vectors: np.ndarray | None = None
        if self.mode.reuses_question:
            readings = self.model.read_queries(questions)
            asked, vectors = [r.state for r in readings], np.stack([r.vector for r in readings])
        if not self.mode.has_documents:
            given = [[] for _ in questions]
        elif given is None:
            given = self.index.search_many(questions, self.k, where=where, mode=self.search_mode, vectors=vectors)
        return [as_hits(hits) for hits in given], asked

    def _plan(
        self, question: str, hits: Sequence[Hit], asked: DocumentState | None, options: Sampling, is_ranked: bool
    ) -> ContextPlan:
        states, computed = self._states(hits) if self.mode.reuses_documents and hits else (None, [])
        room = options.max_new_tokens
        bias = self.relevance_bias
        return plan_context(self.model, self.mode, question, hits, states, asked, room, computed, is_ranked, bias)

    def _states(self, hits: Sequence[Hit]) -> tuple[list[DocumentState], list[int]]:
        """States of all hits, and the numbers of those that were missing: read now, and stored if nobody writes."""
        states = self.index.states_of(hit.document for hit in hits)
        missing = [position for position, state in enumerate(states) if state is None]
        if missing:
            readings = self.model.read_documents([hits[position].document for position in missing])
            for position, reading in zip(missing, readings, strict=True):
                states[position] = reading.state
                self.index.keep_state(hits[position].document, reading.state)
        return [state for state in states if state is not None], missing

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
