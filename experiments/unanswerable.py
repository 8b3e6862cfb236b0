"""Which signals tell that the documents of a context do not hold the answer?

    python -m experiments.unanswerable DATA --rows rows.jsonl

`DATA` holds NAME.train.jsonl and NAME.validation.jsonl. Each question is answered from the states of 5 found documents.
Unanswerable are questions whose rows say so, whose passage is about the matter, and, of each answerable question, the
same one asked of an index without its passage and without whatever shares eight words in a row with it. Signals are
judged on the validation files; the regression over some of them is fitted to the training files alone. Rows are kept:
a run that was stopped goes on where it was.

Shape letters: `N` questions, `F` signals, `T` tokens, `V` vocabulary.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer

from experiments.answerability_report import (
    ANSWERABLE,
    MARKED,
    OF_THE_ANSWER,
    TAKEN_OUT,
    regressions,
    report,
    threshold,
)
from experiments.script import run
from gritrag import RAG, Document, GritModel, Index
from gritrag.cli.options import Device, Dtype, Model
from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.report import header
from gritrag.evaluate.rows import evenly, read_questions
from gritrag.evaluate.scores import says_not_found, score_answer
from gritrag.model.answerability import Answerability, log_odds
from gritrag.model.context import inputs
from gritrag.model.decode import Sampling
from gritrag.model.module_forward import log_probabilities_of
from gritrag.plan import MODES, Retrieved, plan_context
from gritrag.progress import ProgressBar
from gritrag.prompts import NOT_FOUND
from gritrag.records import Hit

NAMES = ("timeqa", "sgd-dialogue", "nq", "fairytale", "dolly-context")
K, RUN_OF_WORDS = 5, 8
NUMBER = "number"
"""Name in the metadata by which a passage is taken out of a search."""


class Case(NamedTuple):
    """A question, what it is asked of, and whether its passage is among that."""

    kind: str
    question: Question
    hits: list[Hit]
    is_found: bool


def cases(index: Index, questions: Sequence[Question], documents: Mapping[str, Document]) -> Iterator[Case]:
    """Each question as it is; one that has answers also without the documents that are like its passage."""
    words = {id: runs_of(document.text) for id, document in documents.items()}
    for question in questions:
        own = question.document.id
        alike = [id for id in documents if id == own or words[id] & words[own]]
        hits = index.search(question.text, K)
        is_found = any(hit.document.id in alike for hit in hits)
        yield Case(MARKED if question.is_unanswerable else ANSWERABLE, question, hits, is_found)
        if not question.is_unanswerable:
            others = {NUMBER: {"$nin": [documents[id].metadata[NUMBER] for id in alike]}}
            yield Case(TAKEN_OUT, question, index.search(question.text, K, where=others), False)


def runs_of(text: str) -> set[tuple[str, ...]]:
    """All runs of so many words; all of a shorter text is one."""
    words = text.lower().split()
    return {tuple(words[n : n + RUN_OF_WORDS]) for n in range(max(1, len(words) - RUN_OF_WORDS + 1))}


@torch.inference_mode()
def signals(index: Index, case: Case, with_answer: bool) -> dict[str, float]:
    """What an engine knows, or could, before the first token; of the answer too where that is wanted."""
    model = index.model
    assert isinstance(model, GritModel)
    text, hits = case.question.text, case.hits
    documents = [hit.document for hit in hits]
    states, computed = index.states_of(documents)
    retrieved = Retrieved(text, hits, states, computed=computed, is_best_last=True)
    plan = plan_context(model, MODES["doc-cache"], retrieved, room=32, relevance_bias=RAG(index).relevance_bias)
    forward = model.forwards.best
    cache = model.decoder.place([plan.context], Sampling(max_new_tokens=32))
    given, placed = inputs([plan.context], model.device), cache.length
    logits_TV = forward.logits(given.ids, given.positions, given.mask, cache, given.ids.shape[1])[0]
    first_V = logits_TV[-1].log_softmax(-1)
    refusal = tuple(model.prompts.answer_ids(NOT_FOUND))
    found = {"log_odds": log_odds(logits_TV[-1], refusal[0]), "entropy": -float((first_V.exp() * first_V).sum())}

    def told(ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of a whole answer's tokens."""
        cache.cut(placed + given.ids.shape[1])
        rest = torch.tensor([ids[:-1]], device=model.device)
        positions = given.positions[:, -1:] + 1 + torch.arange(rest.shape[1], device=model.device)
        targets = torch.tensor([ids[1:]], device=model.device)
        return torch.cat([first_V[ids[0]][None], forward.log_probabilities(rest, positions, None, cache, targets)[0]])

    scored = model.prompts.scored_question(text)
    ranks_N = np.sort(model.question_log_likelihoods(text, states))
    similar_N = np.sort(np.stack([v for v in index.load_vectors(documents) if v is not None]) @ vector_of(model, text))
    in_context_T = log_probabilities_of(logits_TV[:-1], given.ids[0, 1:])
    found |= {
        "whole of it": float(told(refusal).sum()),
        "likeliest first token": float(first_V.max()),
        "question in context": float(in_context_T[len(scored.ids) - scored.scored - 1 : len(scored.ids) - 1].mean()),
        "question behind best": float(ranks_N[-1]),
        "its margin": float(ranks_N[-1] - ranks_N[:-1].mean()),
        "similarity": float(similar_N[-1]),
        "its margin of similarity": float(similar_N[-1] - similar_N[:-1].mean()),
        "hybrid margin": hits[0].score - hits[-1].score,
        "words of the question": max(shared_words(text, document.content) for document in documents),
    }
    if with_answer:
        answer = RAG(index, unanswerable_above=1.0).ask(text, hits=hits, max_new_tokens=24).text
        own_T = told(model.prompts.answer_ids(answer or NOT_FOUND))
        against = found["whole of it"] - float(own_T.sum())
        found |= dict(zip(OF_THE_ANSWER, (against, float(own_T.mean()), float(own_T.min())), strict=True))
        found["told"] = float(says_not_found(answer))
        found["F1"] = score_answer(answer, case.question.answers)["F1"] if case.question.answers else 0.0
    return found


def vector_of(model: GritModel, text: str) -> np.ndarray:
    vector: np.ndarray = model.encode_query([text])[0]
    return vector


def shared_words(question: str, document: str) -> float:
    """Share of the question's words of four letters and more that the document has."""
    words = {word for word in question.lower().split() if len(word) > 3}
    return len(words & set(document.lower().split())) / max(1, len(words))


def rows_of(
    model: GritModel, path: Path, questions: int, documents: int, with_answer: bool
) -> Iterator[dict[str, Any]]:
    """A row for each case of one file: so many questions that have answers, and as many that have none."""
    asked = read_questions(path)
    answered = evenly([question for question in asked if question.answers], questions)
    chosen = [*answered, *evenly([question for question in asked if question.is_unanswerable], questions)]
    passages = {question.document.id: question.document for question in chosen}
    for question in evenly(asked, documents):
        if len(passages) < documents:
            passages.setdefault(question.document.id, question.document)
    numbered = {
        id: Document(each.text, id, each.title, {NUMBER: number}) for number, (id, each) in enumerate(passages.items())
    }
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", model=model) as index:
        index.add(numbered.values(), show_progress_bar=True)
        total = len(chosen) + len(answered)
        for case in ProgressBar(cases(index, chosen, numbered), desc=path.stem, unit="question", total=total):
            about = {"file": path.stem, "kind": case.kind, "found": case.is_found}
            yield about | signals(index, case, with_answer)


def read_rows(model: GritModel, folder: Path, kept: Path, sizes: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """Rows of all files; those of a file are written when all are there."""
    rows = [json.loads(line) for line in kept.read_text("utf-8").splitlines()] if kept.exists() else []
    for split, (questions, documents) in sizes.items():
        for name in NAMES:
            path = folder / f"{name}.{split}.jsonl"
            if all(row["file"] != path.stem for row in rows):
                new = list(rows_of(model, path, questions, documents, with_answer=split == "validation"))
                with kept.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row) + "\n" for row in new)
                rows += new
    return rows


def main(
    data: Annotated[Path, typer.Argument(help="Folder of NAME.train.jsonl and NAME.validation.jsonl.")],
    rows: Annotated[Path, typer.Option(help="Signals of each question are kept here, as JSONL.")],
    questions: Annotated[int, typer.Option(help="Answerable and marked questions of a validation file.", min=2)] = 40,
    train: Annotated[int, typer.Option(help="The same, of a training file.", min=2)] = 50,
    documents: Annotated[int, typer.Option(help="Passages of a file that are searched.", min=K + 1)] = 100,
    out: Annotated[Path | None, typer.Option(help="Write what was fitted here, for a checkpoint.")] = None,
    seed: Annotated[int, typer.Option(help="Of resamples.")] = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Say which signals tell unanswerable questions, and fit the regression of the product."""
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    found = read_rows(loaded, data, rows, {"validation": (questions, documents), "train": (train, documents)})
    to_fit = [row for row in found if row["file"].endswith(".train")]
    judged = [row for row in found if row["file"].endswith(".validation")]
    facts = {"model": model, "fitted to": len(to_fit), "judged on": len(judged), **machine_of(loaded), "seed": seed}
    typer.echo(header(facts) + "\n\n" + report(to_fit, judged, seed))
    _, fitted = regressions(to_fit)["product"]
    of_odds, of_similarity = fitted.weights
    adapter = loaded.fingerprint.parts["adapter"]
    fit_of = Answerability(of_odds, of_similarity, fitted.bias, 1.0, adapter)  # whether to refuse is for users to say
    typer.echo(f"\n{fit_of}; 5% of the answerable training questions are above {threshold(to_fit):.3f}")
    if out is not None:
        fit_of.save(out)


if __name__ == "__main__":
    run(main)
