"""How well a model finds and answers, on a file of questions: rankings, and answers from text and from states.

All ways and all models answer the same questions from the same documents in the same order, so differences are paired.
Answers are scored apart by what their question needs: see `kind_of`. `gritrag.evaluate.summary` says what scores mean.
"""

import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from gritrag.answer import RAG, check_recompute, check_relevance_bias
from gritrag.config import DEFAULT_MODEL, DENSE_WEIGHT, RELEVANCE_BIAS
from gritrag.evaluate.machine import machine, machine_of
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.rows import QuestionSet, choose, evenly, read_questions
from gritrag.evaluate.scores import ANSWER, rank, says_not_found, score_answer
from gritrag.evaluate.suite import Result, Results, run
from gritrag.index.index import Index
from gritrag.index.rerank import check_rerank
from gritrag.model.encoders import MINILM, Encoder, check_names, load_encoder
from gritrag.model.grit import GritModel
from gritrag.model.hardware import pick_device, pick_dtype
from gritrag.progress import ProgressBar
from gritrag.records import Answer, Hit, as_hits

COMMAND = "eval questions"
PARTS = ("retrieval", "answers")
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

    Raises:
        ValueError: `only` is neither, a number is too small, `dense_weight` or one of `recompute` is outside [0, 1], or
            `relevance_bias` is below 0.
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

    def __post_init__(self) -> None:
        if self.only not in ("", *PARTS):
            raise ValueError(f"evaluate only {' or only '.join(PARTS)}, not {self.only!r}; or leave it out for both")
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


class Asked(NamedTuple):
    """A question, and the hits it is answered from: in a `gold` context in random order and without scores, in a
    `retrieved` one as they were found."""

    question: Question
    contexts: dict[str, list[Hit]]


def gold_contexts(chosen: QuestionSet, setting: Setting, path: Path) -> list[Asked]:
    """The questions to answer, each with its own document among distractors; those that its row names come first.

    Raises:
        ValueError: no question has answers, or there are too few documents to draw distractors from.
    """
    answerable = [question for question in chosen.questions if question.answers or question.is_unanswerable]
    if not answerable:
        raise ValueError(
            f"no question chosen from {path} has answers; evaluate only retrieval on it (--only retrieval)"
        )
    if len(chosen.documents) <= setting.distractors:
        raise ValueError(
            f"a context of 1 + {setting.distractors} documents needs as many, {path} gives {len(chosen.documents)} "
            "distinct ones; ask for fewer distractors, or for more documents"
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
        asked.append(Asked(question, {"gold": as_hits(context)}))
    return asked


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
    out: IO[str] | None = None,
) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Index the documents in `folder`, search and answer.

    Args:
        model: the model. One that only embeds is not asked to answer.
        name: what the tables call it.
        chosen: documents to index, and questions to search for.
        asked: questions to answer. A `retrieved` context that one lacks is searched for and kept with it, so that a
            second model is given what the first one found: answers are compared, not searches.
        setting: see there.
        folder: new or empty.
        out: gets a line of JSON for each question that is answered.

    Returns:
        a row for each way to search and each way to answer, with one number per question for each score.
    """
    answers_too = isinstance(model, GritModel) and setting.has("answers")
    read_by = machine_of(model) if isinstance(model, GritModel) else machine(model.dtype, model.device)
    of_model = {"dtype": read_by["dtype"], "weights": read_by.get("weights", "")}
    can_answer = isinstance(model, GritModel) and model.decoder.has_states
    needs_states = (answers_too and can_answer) or (setting.rerank is not None and isinstance(model, GritModel))
    with Index.create(folder, model=model, states=setting.states if needs_states else "none") as index:
        index.add(chosen.documents, show_progress_bar=True)
        rerank = setting.rerank if isinstance(model, GritModel) else None
        found = rank(index, chosen.questions, setting.dense_weight, rerank) if setting.has("retrieval") else {}
        rows = [_row(name, "retrieval", way, {**of_model, **values}) for way, values in found.items()]
        for each in asked:
            if "retrieved" not in each.contexts:
                options: dict[str, Any] = {"mode": "hybrid", "dense_weight": setting.dense_weight, "rerank": rerank}
                each.contexts["retrieved"] = index.search(each.question.text, setting.k, **options)
        return rows + answer_rows(index, name, asked, setting, of_model, out) if answers_too else rows


def answer_rows(
    index: Index,
    name: str,
    asked: Sequence[Asked],
    setting: Setting,
    of_model: Mapping[str, Any],
    out: IO[str] | None = None,
) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Answer, and score: a row for each way to answer; see `evaluate`."""
    given: list[dict[str, Answer]] = []
    for each, answers in answered(index, asked, setting):
        given.append(answers)
        if out is not None:
            out.write(json.dumps(_line(name, each, answers), ensure_ascii=False) + "\n")
            out.flush()
    about = {"ids": [each.question.id for each in asked], "kinds": [kind_of(each.question) for each in asked]}
    rows = []
    for way in given[0] if given else ():
        scored = [_scored(each, answers[way].text) for each, answers in zip(asked, given, strict=True)]
        values = {score: [each[score] for each in scored] for score in (*ANSWER, "not_found")}
        values["first_token"] = [answers[way].timings.first_token for answers in given]
        told = [p for answers in given if (p := answers[way].unanswerable) is not None]
        if len(told) == len(given):
            values["unanswerable"] = told
        rows.append(_row(name, "answers", way, {**of_model, **about, **values}))
    return rows


def answered(index: Index, asked: Sequence[Asked], setting: Setting) -> Iterator[tuple[Asked, dict[str, Answer]]]:
    """Each question with its answers, by way and context."""
    options: dict[str, Any] = {
        "relevance_bias": setting.relevance_bias,
        "unanswerable_above": setting.unanswerable_above,
    }
    has_states = isinstance(index.model, GritModel) and index.model.decoder.has_states
    modes = MODES if has_states else MODES[:1]  # from text alone
    rags = {mode: RAG(index, mode=mode, **options) for mode in ("no-retrieval", *modes)}
    dials = {way_of(share): RAG(index, recompute=share, **options) for share in setting.recompute}
    for each in ProgressBar(asked, desc="answering", unit="question", disable=not asked):
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


def _scored(asked: Asked, text: str) -> dict[str, float]:
    """Every score of an answer; of a question that no document answers, whether that was said."""
    not_found = float(says_not_found(text))
    if asked.question.is_unanswerable:
        return {**dict.fromkeys(ANSWER, not_found), "not_found": not_found}
    return {**score_answer(text, asked.question.answers), "not_found": not_found}


def _line(model: str, asked: Asked, answers: Mapping[str, Answer]) -> dict[str, Any]:
    return {
        "model": model,
        "id": asked.question.id,
        "kind": kind_of(asked.question),
        "question": asked.question.text,
        "answers": asked.question.answers,
        "document": asked.question.passage.id if asked.question.passage is not None else None,
        "contexts": {name: [hit.document.id for hit in hits] for name, hits in asked.contexts.items()},
        "given": {way: {"text": given.text, **_scored(asked, given.text)} for way, given in answers.items()},
    }


def main(
    path: Path,
    model: str = DEFAULT_MODEL,
    compare: Sequence[str] = (),
    dtype: str = "auto",
    device: str = "auto",
    setting: Setting | None = None,
    answers: Path | None = None,
) -> Result:
    """Run; what is wrong with the file is said before a model is loaded.

    Args:
        path: JSONL of questions; see `gritrag.evaluate.rows`.
        model: to evaluate.
        compare: others, on the same questions and contexts.
        dtype, device: see `GritModel.from_pretrained`.
        setting: see there.
        answers: gets every answer and its scores, as JSONL.

    Raises:
        ValueError: a missing file, a broken row, too few documents or answers, `answers` would overwrite the file, or
            the first model cannot answer.
    """
    setting = setting or Setting()
    if model == MINILM and setting.has("answers"):
        raise ValueError(f"{MINILM} only embeds: evaluate only retrieval (--only retrieval), or --compare it")
    chosen = choose(read_questions(path), setting.documents)
    asked = gold_contexts(chosen, setting, path) if setting.has("answers") else []
    if answers is not None and answers.exists() and answers.samefile(path):
        raise ValueError(f"--answers {answers} is the file of questions itself; name another")
    names = tuple(dict.fromkeys((model, *compare)))
    check_names(names)
    where = pick_device(device)
    facts = {
        "model": model,
        "file": path.name,
        "documents_indexed": len(chosen.documents),
        "questions_searched": len(chosen.questions) if setting.has("retrieval") else 0,
        "questions_answered": len(asked),
        **machine(pick_dtype(dtype, where), where),
    }

    def work(results: Results) -> None:
        with answers.open("w", encoding="utf-8") if answers is not None else nullcontext() as lines:
            for name in names:
                with tempfile.TemporaryDirectory(prefix="gritrag-eval-") as folder:
                    loaded = load_encoder(name, dtype, device)
                    rows = evaluate(loaded, name, chosen, asked, setting, Path(folder) / "index", lines)
                    del loaded  # the next model needs its memory
                results.write("questions", rows)

    return run(COMMAND, asdict(setting), facts, work)
