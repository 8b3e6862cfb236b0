"""How well a model finds and answers, on a file of questions: rankings, and answers from text and from states.

All ways and all models answer the same questions from the same documents in the same order, so differences are paired.
Answers are scored apart by what their question needs: see `kind_of`. `gritrag.evaluate.summary` says what scores mean.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gritrag.answer import RAG
from gritrag.config import DENSE_WEIGHT, RELEVANCE_BIAS
from gritrag.evaluate.kept import Kept, Record
from gritrag.evaluate.machine import machine, machine_of
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.rows import QuestionSet, evenly
from gritrag.evaluate.scores import ANSWER, DEPTH, rank, says_not_found, score_answer
from gritrag.index.index import Index
from gritrag.index.rerank import check_rerank
from gritrag.model.encoders import Encoder
from gritrag.model.grit import GritModel
from gritrag.plan import check_recompute
from gritrag.records import Answer, Document, Hit, as_hits
from gritrag.relevance import check_relevance_bias

PARTS = ("retrieval", "answers")
GOLD, RETRIEVED = CONTEXTS = ("gold", "retrieved")
MODES = ("doc-query", "doc-cache")
RECOMPUTE = "recompute"
BEST = "best document"
"""A way to answer: from the text of the one document of a context that search ranks first."""

ONE, ONE_OF_SEVERAL, SEVERAL, UNANSWERABLE = "one passage", "one of several", "several needed", "unanswerable"


@dataclass(frozen=True)
class Setting:
    """What is evaluated.

    Args:
        questions: how many are answered, spread evenly over those that have answers.
        documents: how many distinct ones of the file are indexed; what they answer is searched for.
        distractors: documents beside the right one in a `gold` context.
        k: documents of a `retrieved` context, found by hybrid search.
        states: codec of the states that are answered from.
        max_new_tokens: longest answer.
        seed: of distractors, their order, and resamples.
        only: `"retrieval"` or `"answers"`; empty for both.
        dense_weight: of vectors against words in hybrid search.
        relevance_bias: of scores in answers from states: of the search, or, in `gold` contexts, of vectors. See `RAG`.
        rerank: so many candidates are ranked from their states, as a way of its own to search, and `retrieved` contexts
            hold the best of these. None to leave it out.
        recompute: shares of the documents' tokens that are read again: each a way of its own to answer.
        unanswerable_above: see `RAG`.
        context: `"gold"` or `"retrieved"`, to answer from; empty for both.

    Raises:
        ValueError: `only` or `context` is neither, a number is too small, `dense_weight` or one of `recompute` is
            outside [0, 1], or `relevance_bias` is below 0.
    """

    questions: int = 50
    documents: int = 300
    distractors: int = 4
    k: int = 5
    states: str = "bf16"
    max_new_tokens: int = 32
    seed: int = 0
    only: str = ""
    dense_weight: float = DENSE_WEIGHT
    relevance_bias: float = RELEVANCE_BIAS
    rerank: int | None = None
    recompute: tuple[float, ...] = ()
    unanswerable_above: float | None = None
    context: str = ""

    def __post_init__(self) -> None:
        if self.only not in ("", *PARTS):
            raise ValueError(f"evaluate only {' or only '.join(PARTS)}, not {self.only!r}; or leave it out for both")
        if self.context not in ("", *CONTEXTS):
            raise ValueError(f"context must be {' or '.join(CONTEXTS)}, not {self.context!r}; or leave it out for both")
        if not 0 <= self.dense_weight <= 1:
            raise ValueError(f"dense_weight must lie in [0, 1] (1: vectors alone), not {self.dense_weight!r}")
        check_relevance_bias(self.relevance_bias)
        check_rerank(self.rerank, self.k)
        for share in self.recompute:
            check_recompute(share)
        for name, least in (("questions", 1), ("documents", 1), ("distractors", 0), ("k", 1), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def has(self, part: str) -> bool:
        return self.only in ("", part)

    def has_context(self, name: str) -> bool:
        return self.context in ("", name)


class Asked(NamedTuple):
    """A question, and the hits it is answered from: in a `gold` context in random order and without scores, in a
    `retrieved` one as they were found."""

    question: Question
    contexts: dict[str, list[Hit]]


def gold_contexts(chosen: QuestionSet, setting: Setting, path: Path) -> list[Asked]:
    """The questions to answer, each with its own document among distractors; those that its row names come first.

    Where the setting wants `retrieved` contexts alone, there are none yet.

    Raises:
        ValueError: no question has answers, or there are too few documents to draw distractors from.
    """
    answerable = [question for question in chosen.questions if can_be_scored(question)]
    if not answerable:
        raise ValueError(
            f"no question chosen from {path} has answers; evaluate only retrieval on it (--only retrieval)"
        )
    if not setting.has_context(GOLD):
        return [Asked(question, {}) for question in evenly(answerable, setting.questions)]
    if len(chosen.documents) <= setting.distractors:
        raise ValueError(
            f"a context of 1 + {setting.distractors} documents needs as many, {path} gives {len(chosen.documents)} "
            f"distinct ones: give rows with more passages, or to gritrag eval --distractors {len(chosen.documents) - 1}"
        )
    draw, ids = random.Random(setting.seed), {document.id for document in chosen.documents}
    asked = []
    for question in evenly(answerable, setting.questions):
        gold = {document.id: document for document in question.gold}
        named = [other for other in question.others if other.id in ids]
        drawn = draw.sample(chosen.documents, min(len(chosen.documents), len(gold) + setting.distractors + len(named)))
        others = {other.id: other for other in (*named, *drawn) if other.id not in gold}
        context = [*gold.values(), *list(others.values())[: setting.distractors]]
        draw.shuffle(context)
        asked.append(Asked(question, {GOLD: as_hits(context)}))
    return asked


def can_be_scored(question: Question) -> bool:
    """Whether it is known what answers it, or that nothing does."""
    return bool(question.answers) or question.is_unanswerable


def kind_of(question: Question) -> str:
    """What a question needs: its one passage; one of several, or several, that its row names; or more than there is."""
    if question.is_unanswerable:
        return UNANSWERABLE
    return SEVERAL if question.needed else ONE_OF_SEVERAL if question.others else ONE


def evaluate(
    model: Encoder,
    name: str,
    chosen: QuestionSet,
    asked: Sequence[Asked],
    setting: Setting,
    folder: Path,
    kept: Kept | None = None,
) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Index the documents in `folder`, search and answer what is not kept already.

    Args:
        model: the model. One that only embeds is not asked to answer.
        name: what the tables call it.
        chosen: documents to index, and questions to search for.
        asked: questions to answer. A `retrieved` context that one lacks is searched for and kept with it, so that a
            second model is given what the first one found: answers are compared, not searches.
        setting: see there.
        folder: new or empty.
        kept: gets scores of the search, and each question that is answered; nothing is kept where None.

    Returns:
        a row for each way to search and each way to answer, with one number per question for each score.
    """
    kept = Kept() if kept is None else kept
    can_answer = isinstance(model, GritModel)
    answers_too, ranks_too = can_answer and setting.has("answers"), setting.has("retrieval")
    if (ranks_too and kept.searched is None) or (answers_too and len(kept.records) < len(asked)):
        has_states = isinstance(model, GritModel) and model.decoder.has_states
        needs_states = (answers_too and bool(asked) and has_states) or (setting.rerank is not None and can_answer)
        with Index.create(folder, model=model, states=setting.states if needs_states else "none") as index:
            index.add(chosen.documents, show_progress_bar=True)
            rerank = setting.rerank if can_answer else None
            if ranks_too and kept.searched is None:
                ranked: dict[str, list[Hit]] = {}
                kept.keep_searched(rank(index, chosen.questions, setting.dense_weight, rerank, ranked))
                _give_ranked(asked, ranked, setting)
            if answers_too:
                answer(index, asked, setting, kept)
    return rows_of(name, kept, described(model))


def described(model: Encoder) -> dict[str, str]:
    """What is said of a model in each of its rows."""
    read_by = machine_of(model) if isinstance(model, GritModel) else machine(model.dtype, model.device)
    return {"dtype": read_by["dtype"], "weights": read_by.get("weights", "")}


def _give_ranked(asked: Iterable[Asked], ranked: Mapping[str, list[Hit]], setting: Setting) -> None:
    """Questions get what ranking from states found for them already, where that was among as many candidates."""
    if setting.has_context(RETRIEVED) and setting.rerank is not None and setting.rerank >= DEPTH:
        for each in asked:
            if each.question.text in ranked:
                each.contexts.setdefault(RETRIEVED, ranked[each.question.text][: setting.k])


def _with_retrieved(index: Index, asked: Iterable[Asked], setting: Setting) -> Iterator[Asked]:
    """Questions, each searched for when its turn comes, where it is to have a `retrieved` context and lacks one."""
    options: dict[str, Any] = {"mode": "hybrid", "dense_weight": setting.dense_weight, "rerank": setting.rerank}
    for each in asked:
        if setting.has_context(RETRIEVED) and RETRIEVED not in each.contexts:
            each.contexts[RETRIEVED] = index.search(each.question.text, setting.k, **options)
        yield each


def answer(index: Index, asked: Sequence[Asked], setting: Setting, kept: Kept) -> None:
    """Answer the questions that are not kept, and keep each as soon as it is answered."""
    missing = [number for number in range(len(asked)) if number not in kept.records]
    given = answered(index, _with_retrieved(index, [asked[number] for number in missing], setting), setting)
    for number, (each, answers) in zip(missing, given, strict=True):
        kept.keep(number, record_of(each, answers))


def rows_of(name: str, kept: Kept, of_model: Mapping[str, Any]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """A row for each way to search and each way to answer, of what is kept."""
    rows = [_row(name, "retrieval", way, {**of_model, **values}) for way, values in (kept.searched or {}).items()]
    return rows + answer_rows(name, kept.in_order(), of_model)


def answer_rows(
    name: str, records: Sequence[Record], of_model: Mapping[str, Any]
) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """A row for each way to answer, with one number per question; see `evaluate`."""
    about = {"ids": [each["id"] for each in records], "kinds": [each["kind"] for each in records]}
    rows = []
    for way in records[0]["given"] if records else ():
        given = [each["given"][way] for each in records]
        values = {score: [each[score] for each in given] for score in (*ANSWER, "not_found")}
        values["first_token"] = [each["first_token"][way] for each in records]
        told = [each["unanswerable"][way] for each in records]
        if None not in told:
            values["unanswerable"] = told
        rows.append(_row(name, "answers", way, {**of_model, **about, **values}))
    return rows


def answered(index: Index, asked: Iterable[Asked], setting: Setting) -> Iterator[tuple[Asked, dict[str, Answer]]]:
    """Each question with its answers, by way and context."""
    options: dict[str, Any] = {
        "relevance_bias": setting.relevance_bias,
        "unanswerable_above": setting.unanswerable_above,
    }
    has_states = isinstance(index.model, GritModel) and index.model.decoder.has_states
    modes = MODES if has_states else MODES[:1]  # from text alone
    rags = {mode: RAG(index, mode=mode, **options) for mode in ("no-retrieval", *modes)}
    dials = {way_of(share): RAG(index, recompute=share, **options) for share in setting.recompute}
    for each in asked:
        ways: list[tuple[str, RAG, list[Hit]]] = [("no-retrieval", rags["no-retrieval"], [])]
        for context, hits in each.contexts.items():
            ways += [
                (f"{way}, {context}", rag, hits) for way, rag in {**rags, **dials}.items() if rag.mode.has_documents
            ]
            ways.append((f"{BEST}, {context}", rags["doc-query"], [best_of(index, each.question.text, hits)]))
        question, most = each.question.text, setting.max_new_tokens
        yield each, {way: rag.ask(question, hits=hits, max_new_tokens=most) for way, rag, hits in ways}


def way_of(share: float) -> str:
    """What a share of tokens that are read again is called among the ways to answer."""
    return f"{RECOMPUTE} {share:g}"


def best_of(index: Index, question: str, hits: Sequence[Hit]) -> Hit:
    """The hit with the greatest score; where they have none, the one whose vector is nearest to the question's."""
    if any(hit.score > 0 for hit in hits):
        return max(hits, key=lambda hit: hit.score)
    ids = {hit.document.id: hit for hit in hits}
    nearest = index.search(question, len(index), mode="dense")
    return ids[next(hit.document.id for hit in nearest if hit.document.id in ids)]


def _row(model: str, part: str, way: str, figures: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    return {"model": model, "part": part, "way": way}, figures


def scored(asked: Asked, text: str) -> dict[str, float]:
    """Every score of an answer; of a question that no document answers, whether that was said."""
    not_found = float(says_not_found(text))
    if asked.question.is_unanswerable:
        return {**dict.fromkeys(ANSWER, not_found), "not_found": not_found}
    return {**score_answer(text, asked.question.answers), "not_found": not_found}


def record_of(asked: Asked, answers: Mapping[str, Answer]) -> Record:
    """A question, its answers by way with their scores, and all that else is needed to make rows of it."""
    return {
        "id": asked.question.id,
        "kind": kind_of(asked.question),
        "question": asked.question.text,
        "answers": list(asked.question.answers),
        "document": asked.question.passage.id if asked.question.passage is not None else None,
        "contexts": {name: [hit.document.id for hit in hits] for name, hits in asked.contexts.items()},
        "given": {way: {"text": given.text, **scored(asked, given.text)} for way, given in answers.items()},
        "found": [[hit.score, hit.similarity] for hit in asked.contexts.get(RETRIEVED, ())],
        "first_token": {way: given.timings.first_token for way, given in answers.items()},
        "unanswerable": {way: given.unanswerable for way, given in answers.items()},
    }


def restore(asked: Sequence[Asked], documents: Sequence[Document], kept: Kept) -> None:
    """Give questions that are kept what was found for them, so that another model is given it too."""
    of_id = {document.id: document for document in documents}
    for number, record in kept.records.items():
        found = zip(record["contexts"].get(RETRIEVED, ()), record["found"], strict=True)
        hits = [Hit(of_id[id], score, rank, similar) for rank, (id, (score, similar)) in enumerate(found, start=1)]
        if hits:
            asked[number].contexts.setdefault(RETRIEVED, hits)
