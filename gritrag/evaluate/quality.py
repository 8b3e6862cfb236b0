"""How well a model finds and answers, on a file of questions: rankings, and answers from text and from states.

All modes and all models answer the same questions from the same documents in the same order, so differences are paired.
"""

import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from gritrag.answer import RAG, check_relevance_bias
from gritrag.config import DEFAULT_MODEL, DENSE_WEIGHT, RELEVANCE_BIAS
from gritrag.evaluate import scores
from gritrag.evaluate.facts import as_json, machine, machine_of
from gritrag.evaluate.retrieval import rank
from gritrag.evaluate.rows import Question, QuestionSet, choose, evenly, read_questions
from gritrag.evaluate.scores import ANSWER, Scores
from gritrag.evaluate.summary import Evaluated, show, summarise
from gritrag.index.index import Index
from gritrag.model.encoders import MINILM, Encoder, check_names, load_encoder
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar
from gritrag.records import Hit, as_hits

PARTS = ("retrieval", "answers")


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

    Raises:
        ValueError: `only` is neither, a number is too small, `dense_weight` is outside [0, 1], or `relevance_bias` is
            below 0.
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

    def __post_init__(self) -> None:
        if self.only not in ("", *PARTS):
            raise ValueError(f"evaluate only {' or only '.join(PARTS)}, not {self.only!r}; or leave it out for both")
        if not 0 <= self.dense_weight <= 1:
            raise ValueError(f"dense_weight must lie in [0, 1] (1: vectors alone), not {self.dense_weight!r}")
        check_relevance_bias(self.relevance_bias)
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
    answerable = [question for question in chosen.questions if question.answers]
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
        named = [other for other in question.others if other.id in ids]
        drawn = draw.sample(chosen.documents, min(len(chosen.documents), 1 + setting.distractors + len(named)))
        others = {other.id: other for other in (*named, *drawn) if other.id != question.document.id}
        context = [question.document, *list(others.values())[: setting.distractors]]
        draw.shuffle(context)
        asked.append(Asked(question, {"gold": as_hits(context)}))
    return asked


def evaluate(
    model: Encoder,
    name: str,
    chosen: QuestionSet,
    asked: Sequence[Asked],
    setting: Setting,
    folder: Path,
    out: IO[str] | None = None,
) -> Evaluated:
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
    """
    answers_too = isinstance(model, GritModel) and setting.has("answers")
    states = setting.states if answers_too else "none"
    with Index.create(folder, model=model, states=states) as index:
        index.add(chosen.documents, show_progress_bar=True)
        retrieval = rank(index, chosen.questions, setting.dense_weight) if setting.has("retrieval") else {}
        for each in asked:
            if "retrieved" not in each.contexts:
                question, weight = each.question.text, setting.dense_weight
                each.contexts["retrieved"] = index.search(question, setting.k, mode="hybrid", dense_weight=weight)
        answers: dict[str, Scores] = defaultdict(lambda: {score: [] for score in ANSWER})
        for each, texts in answered(index, asked, setting) if answers_too else ():
            found = {way: scores.score_answer(text, each.question.answers) for way, text in texts.items()}
            for way, scored in found.items():
                for score, value in scored.items():
                    answers[way][score].append(value)
            if out is not None:
                out.write(json.dumps(_row(name, each, texts, found), ensure_ascii=False) + "\n")
                out.flush()
    read_by = machine_of(model) if isinstance(model, GritModel) else machine(model.dtype, model.device)
    return Evaluated(name, {"model": name, **read_by}, retrieval, dict(answers))


def answered(index: Index, asked: Sequence[Asked], setting: Setting) -> Iterator[tuple[Asked, dict[str, str]]]:
    """Each question with its answers, by mode and context."""
    modes, bias = ("no-retrieval", "doc-query", "doc-cache"), setting.relevance_bias
    rags = {mode: RAG(index, mode=mode, relevance_bias=bias) for mode in modes}
    for each in ProgressBar(asked, desc="answering", unit="question", disable=not asked):
        ways: list[tuple[str, str, list[Hit]]] = [("no-retrieval", "no-retrieval", [])]
        for context, hits in each.contexts.items():
            ways += [(f"{mode}, {context}", mode, hits) for mode in ("doc-query", "doc-cache")]
        texts = {}
        for way, mode, hits in ways:
            answer = rags[mode].ask(each.question.text, hits=hits, max_new_tokens=setting.max_new_tokens)
            texts[way] = answer.text
        yield each, texts


def _row(model: str, asked: Asked, texts: Mapping[str, str], found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "id": asked.question.id,
        "question": asked.question.text,
        "answers": asked.question.answers,
        "document": asked.question.document.id,
        "contexts": {name: [hit.document.id for hit in hits] for name, hits in asked.contexts.items()},
        "given": {way: {"text": text, **found[way]} for way, text in texts.items()},
    }


def main(
    path: Path,
    model: str = DEFAULT_MODEL,
    compare: Sequence[str] = (),
    dtype: str = "auto",
    device: str = "auto",
    as_json_text: bool = False,
    setting: Setting | None = None,
    out: Path | None = None,
) -> str:
    """Run and return what to print; what is wrong with the file is said before a model is loaded.

    Raises:
        ValueError: a missing file, a broken row, too few documents or answers, `out` would overwrite the file, or the
            first model cannot answer.
    """
    setting = setting or Setting()
    if model == MINILM and setting.has("answers"):
        raise ValueError(f"{MINILM} only embeds: evaluate only retrieval (--only retrieval), or --compare it")
    chosen = choose(read_questions(path), setting.documents)
    asked = gold_contexts(chosen, setting, path) if setting.has("answers") else []
    if out is not None and out.exists() and out.samefile(path):
        raise ValueError(f"--out {out} is the file of questions itself; name another")
    check_names((model, *compare))
    runs: list[Evaluated] = []
    with out.open("w", encoding="utf-8") if out is not None else nullcontext() as lines:
        for name in (model, *compare):
            with tempfile.TemporaryDirectory(prefix="gritrag-eval-") as folder:
                loaded = load_encoder(name, dtype, device)
                runs.append(evaluate(loaded, name, chosen, asked, setting, Path(folder) / "index", lines))
                del loaded  # the next model needs its memory
    counts = {
        "file": str(path),
        "documents": len(chosen.documents),
        "questions_searched": len(chosen.questions) if setting.has("retrieval") else 0,
        "questions_answered": len(asked),
    }
    result = summarise(runs, {**vars(setting), **counts}, setting.seed)
    return json.dumps(as_json(result), indent=2) if as_json_text else show(result)
