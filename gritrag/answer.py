"""`RAG`: a question to hits, a plan of their context, and the answer that is decoded from it.

Shape letters: `B` batch, `T` tokens.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gritrag.answered import Decoded, answer_of
from gritrag.arguments import whole
from gritrag.clock import Clock
from gritrag.config import RELEVANCE_BIAS, SEARCH_MODE
from gritrag.index.index import Index
from gritrag.index.rerank import check_rerank
from gritrag.index.search import MODES as SEARCH_MODES
from gritrag.index.search import check_query
from gritrag.model.answerability import check_unanswerable_above
from gritrag.model.grit import GritModel
from gritrag.model.sampling import Sampling
from gritrag.model.state import Reading
from gritrag.modes import MODES
from gritrag.plan import ContextPlan, Given, Retrieved, check_recompute, check_takes_recompute, plan_context
from gritrag.records import Answer, Document, Event, Hit
from gritrag.relevance import check_relevance_bias, lacks_scores, scored

__all__ = ["RAG", "Where"]

Where = Mapping[str, Any] | None


class RAG:
    """Answers questions from an index, with or without reuse of the documents' states.

    Example:
        >>> rag = RAG(index, k=5)
        >>> answer = rag.ask("Who built the lighthouse?", max_new_tokens=32)
        >>> answer.text, [citation.id for citation in answer.citations], answer.usage.cached_tokens

    Args:
        index: opened with its model.
        mode: ``"doc-cache"`` answers from the documents' states; ``"doc-query"`` reads the documents again with every
            question; ``"no-retrieval"`` asks the model alone. `MODES` has all seven.
        k: documents per question.
        search_mode: ``"hybrid"``, ``"dense"`` or ``"sparse"``.
        relevance_bias: how much more the best hit counts than one of score 0, in attention scores. Documents that were
            read one by one look alike to an answer, so the scores of the search are added to those of attention, as
            MARGE does (Lewis et al. 2020, arXiv 2006.15020, section 2.2): every token of a state gets
            ``relevance_bias * (score / best score - 1)``. Where no document has a score above 0, the similarity of its
            vector to that of the question takes the place of the score. States with a bias share positions: each ends
            where the question begins, so that their order does not matter. 0 turns the bias off and puts documents one
            behind the other. Documents that the question, while it is read, turns out to need beside the best one get
            nearly its weight (`gritrag.model.lifting`), with ``"doc-cache"``, where the model's retrieval heads are
            known. The bias has no effect on documents that are read again, nor on models with sliding windows,
            without rotary embeddings, whose states cannot be moved, or whose masks take no bias.

        recompute: between speed and a full reading: this share of the tokens of the states is read again with all
            documents in sight: the first few of each document, then those that the question attends to most. For models
            that were not trained on states 0.02 makes most of the difference. 0 is fastest; 1 is ``"doc-query"``.
            Stored states stay as they are. With any `recompute`, documents stand one behind the other, and half the
            relevance bias is used: less the more is read again, a quarter at 0.2, and none from 0.4 on.
        rerank: so many candidates of the search are ranked by how probable the question is behind each of their
            states, and the `k` best are kept, with these scores; see `Index.rerank`. Documents that explain words of
            the question that the best one does not come near the front and weigh nearly as much. None to leave it out.
        unanswerable_above: where the probability that the documents do not hold the answer (`Answer.unanswerable`) is
            above this, the answer is ``"not in the documents"``, before a token is sent. 1 for never, None for what
            the checkpoint says. Only ``"doc-cache"`` without `recompute` is calibrated, on checkpoints that are.

    Raises:
        ValueError: an unknown mode, `k` below 1, a negative `relevance_bias`, a `recompute` outside of 0 to 1 or for a
            model with sliding windows or without masks by token, a `rerank` below `k`, an `unanswerable_above` outside
            of 0 to 1, or an index without a model.
    """

    def __init__(
        self,
        index: Index,
        mode: str = "doc-cache",
        k: int = 5,
        search_mode: str = SEARCH_MODE,
        relevance_bias: float = RELEVANCE_BIAS,
        recompute: float = 0.0,
        rerank: int | None = None,
        unanswerable_above: float | None = None,
    ) -> None:
        if not isinstance(index, Index):
            raise ValueError(f"RAG answers from an open index, not from {index!r}: RAG(Index.open(path))")
        if mode not in MODES:
            raise ValueError(f"no mode {mode!r}; there are: {', '.join(MODES)}")
        if search_mode not in SEARCH_MODES:
            raise ValueError(f"no search_mode {search_mode!r}; there are: {', '.join(SEARCH_MODES)}")
        if (k := whole("k", k)) < 1:
            raise ValueError(f"k must be at least 1, got {k!r}; to answer without documents use mode='no-retrieval'")
        check_relevance_bias(relevance_bias)
        check_recompute(recompute)
        check_rerank(rerank, k)
        check_unanswerable_above(unanswerable_above)
        if not isinstance(index.model, GritModel):
            raise ValueError(
                f"answers need an index of a GritModel, and {index.path} is one of a {type(index.model).__name__}"
            )
        self.index, self.model, self.mode, self.k, self.search_mode = index, index.model, MODES[mode], k, search_mode
        self.relevance_bias, self.recompute, self.rerank = float(relevance_bias), float(recompute), rerank
        self.unanswerable_above = unanswerable_above
        check_takes_recompute(self.model, recompute)

    def ask(
        self,
        question: str,
        *,
        where: Where = None,
        hits: Sequence[Hit] | None = None,
        documents: Sequence[Document | str] | None = None,
        **sampling: Any,
    ) -> Answer:
        """Answer one question.

        Args:
            question: the question.
            where: metadata filter for the search, such as ``{"year": {"$gte": 2020}}``.
            hits: answer from these instead of searching, best first. The best one is placed last, next to the question.
            documents: answer from these instead of searching, in this order. They need not be in the index: states of
                those that are not are computed for this answer.
            **sampling: fields of `gritrag.Sampling`, such as ``max_new_tokens``, ``temperature`` or ``stop``.

        Returns:
            The answer with its hits, citations, token usage and timings.

        Raises:
            ValueError: an empty question, an invalid filter, two of `where`, `hits` and `documents`, something else in
                them, or a context that is too long for the model.
        """
        *_, last = self.stream(question, where=where, hits=hits, documents=documents, **sampling)
        assert last.answer is not None
        return last.answer

    def stream(
        self,
        question: str,
        *,
        where: Where = None,
        hits: Sequence[Hit] | None = None,
        documents: Sequence[Document | str] | None = None,
        **sampling: Any,
    ) -> Iterator[Event]:
        """Answer one question step by step.

        Arguments and errors are those of `ask`. Time that the caller spends on the hits is not counted.

        Yields:
            An `Event` with the hits, then one for each piece of text, and last one with the whole `Answer`.
        """
        given = self._given(1, where, None if hits is None else [hits], None if documents is None else [documents])
        for (event,) in self._answers([question], where, given, self._options(sampling)):
            if event.text != "":
                yield event

    def ask_many(
        self,
        questions: Sequence[str],
        *,
        batch_size: int = 8,
        where: Where = None,
        hits: Sequence[Sequence[Hit]] | None = None,
        documents: Sequence[Sequence[Document | str]] | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """Answer many questions, several at a time.

        Args:
            questions: any number of them; all are looked at before the first is answered.
            batch_size: so many are decoded together. Models with sliding windows take one at a time, as do
                others in which a text depends on those beside it.
            where: metadata filter for all searches.
            hits: a list for each question, as in `ask`.
            documents: a list for each question, as in `ask`.
            **sampling: as in `ask`.

        Returns:
            Answers in the order of the questions. Timings are those of the batch: `first_token` is when every question
            of the batch had its first token.

        Raises:
            ValueError: as `ask`; one string instead of a list; or not one list of `hits` or `documents` per question.
        """
        if isinstance(questions, str) or not isinstance(questions, Iterable):
            raise ValueError(f"expected a list of questions, got {questions!r}; use ask, or put it into a list")
        if (batch_size := whole("batch_size", batch_size)) < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        questions = list(questions)
        for number, question in enumerate(questions):  # or one of them would cost the answers of all before it
            self._check_question(question, number)
        given = self._given(len(questions), where, hits, documents)
        options = self._options(sampling)
        if self.model.decoder.reads_alone:
            batch_size = 1
        answers: list[Answer] = []
        for start in range(0, len(questions), batch_size):
            rows = slice(start, start + batch_size)
            *_, last = self._answers(questions[rows], where, given and given[rows], options)
            answers += [event.answer for event in last if event.answer is not None]
        return answers

    def _answers(
        self, questions: Sequence[str], where: Where, given: Sequence[Given] | None, options: Sampling
    ) -> Iterator[list[Event]]:
        """One batch, in steps: the hits of every question, then the new text of every answer (perhaps none), then the
        answers. Everything that answers a question goes through here."""
        clock = Clock()
        retrieved = self._retrieve(questions, where, given)
        clock.lap("retrieve")
        with clock.stopped():
            yield [Event(hits=each.hits) for each in retrieved]
        plans = [self._plan(each, options) for each in retrieved]
        contexts = [plan.context for plan in plans]
        clock.lap("load")
        cache = self.model.decoder.place(contexts, options)
        clock.lap("place")
        again = self.model.decoder.recompute(cache, contexts, self.recompute) if self.recompute else [0] * len(plans)
        refusals = [plan.refusal for plan in plans]
        decoding = self.model.decoder.decode_placed(cache, contexts, options, refusals)
        for pieces in decoding:
            clock.first_token()
            yield [Event(text=piece) for piece in pieces]
        timings = clock.timings()
        rows = zip(retrieved, plans, again, decoding.completions, strict=True)
        answers = [
            answer_of(self.model, self.mode.name, each.hits, plan, Decoded(done, timings, options, n))
            for each, plan, n, done in rows
        ]
        yield [Event(answer=answer) for answer in answers]

    def _check_question(self, question: str, number: int) -> None:
        try:
            check_query(question)
            self.model.prompts.question_ids(question, has_documents=True)
        except ValueError as error:
            raise ValueError(f"question {number} cannot be answered: {error}") from None

    @staticmethod
    def _given(
        questions: int,
        where: Where,
        hits: Sequence[Sequence[Hit]] | None,
        documents: Sequence[Sequence[Document | str]] | None,
    ) -> list[Given] | None:
        """What is to be answered from; None where it is to be found.

        Raises:
            ValueError: they do not go together: a filter would be left out in silence.
        """
        given = Given.many(questions, hits, documents)
        if given is not None and where is not None:
            raise ValueError("a filter is for a search, and hits or documents take its place: leave the filter out")
        return given

    def _options(self, sampling: Mapping[str, Any]) -> Sampling:
        """The template's stop strings are always among those that end an answer."""
        return Sampling.of(sampling).stopping_at(self.model.prompts.template.stop)

    def _retrieve(self, questions: Sequence[str], where: Where, given: Sequence[Given] | None) -> list[Retrieved]:
        """Hits for each question, and its state where the mode reuses it: embedded once, for all that needs it."""
        readings: Sequence[Reading] = self.model.read_queries(questions) if self.mode.reuses_question else ()
        vectors = dict(enumerate(reading.vector for reading in readings))
        if not self.mode.has_documents:
            given = [Given([], is_best_last=True)] * len(questions)
        elif given is None:
            embedded = np.stack(list(vectors.values())) if vectors else None
            found = self.index.search_many(
                questions, self.k, where=where, mode=self.search_mode, vectors=embedded, rerank=self.rerank
            )
            given = [Given(hits, is_best_last=True) for hits in found]
        bias = self.relevance_bias
        unscored = [row for row, each in enumerate(given) if lacks_scores(self.model, self.mode, bias, each.hits)]
        if unscored and not vectors:
            vectors = dict(zip(unscored, self.model.encode_query([questions[row] for row in unscored]), strict=True))
        return [
            Retrieved(
                question,
                given[row].hits,
                question_state=readings[row].state if readings else None,
                question_vector=vectors[row] if row in unscored else None,
                is_best_last=given[row].is_best_last,
            )
            for row, question in enumerate(questions)
        ]

    def _plan(self, retrieved: Retrieved, options: Sampling) -> ContextPlan:
        hits, readings = retrieved.hits, dict[int, Reading]()
        if self.recompute == 1:  # all of it read again is text
            retrieved = replace(retrieved, question_state=None)
        elif self.mode.reuses_documents and hits:
            states, readings = self.index.states_of([hit.document for hit in hits])
            retrieved = replace(retrieved, states=states, computed=readings)
        if retrieved.question_vector is not None:
            stored = self.index.load_vectors(hit.document for hit in hits)
            vectors = [readings[n].vector if n in readings else vector for n, vector in enumerate(stored)]
            retrieved = replace(retrieved, hits=scored(hits, vectors, retrieved.question_vector))
        return plan_context(
            self.model,
            self.mode,
            retrieved,
            room=options.max_new_tokens,
            relevance_bias=self.relevance_bias,
            recompute=self.recompute,
            unanswerable_above=self.unanswerable_above,
        )
