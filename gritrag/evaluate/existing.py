"""Questions asked of an index that is there: what its search finds, and answers from text and from states.

Rows need no passages: a question is answered from what the index finds, and what it finds is right where one of the
right answers stands in it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.quality import COMMAND, Asked, Setting, answer_rows
from gritrag.evaluate.question_rows import Question
from gritrag.evaluate.rows import evenly, read_questions
from gritrag.evaluate.scores import score_answer
from gritrag.evaluate.suite import Result, Results, run
from gritrag.index.index import Index
from gritrag.index.search import MODES
from gritrag.model.grit import GritModel
from gritrag.records import Hit


def holds_answer(hits: Sequence[Hit], question: Question) -> float:
    """Whether one of the right answers stands in what was found: 1 or 0; normalised as in SQuAD."""
    return float(any(score_answer(hit.document.text, question.answers)["match"] for hit in hits))


def evaluate(
    index: Index, name: str, questions: Sequence[Question], setting: Setting, lines: Any = None
) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Search and answer.

    Args:
        index: of a GritModel.
        name: what the tables call its model.
        questions: those with right answers, or that are known to have none.
        setting: `k`, `questions`, `max_new_tokens`, `dense_weight`, `relevance_bias`, `rerank`, `recompute` and `only`
            count.
        lines: gets a line of JSON for each question that is answered.
    """
    assert isinstance(index.model, GritModel)
    read_by = machine_of(index.model)
    of_model = {"dtype": read_by["dtype"], "weights": read_by.get("weights", "")}
    ways: dict[str, dict[str, Any]] = {mode: {"mode": mode} for mode in MODES}
    ways["hybrid"] |= {"dense_weight": setting.dense_weight, "rerank": setting.rerank}
    texts = [question.text for question in questions]
    found = {way: index.search_many(texts, setting.k, **options) for way, options in ways.items()}
    rows: list[tuple[dict[str, str], dict[str, Any]]] = []
    scored = [number for number, question in enumerate(questions) if not question.is_unanswerable]
    for way, hits in found.items() if setting.has("retrieval") else ():
        values = [holds_answer(hits[number], questions[number]) for number in scored]
        rows.append(({"model": name, "part": "found", "way": way}, {**of_model, "found": values}))
    if not setting.has("answers"):
        return rows
    asked = [Asked(question, {"retrieved": hits}) for question, hits in zip(questions, found["hybrid"], strict=True)]
    return rows + answer_rows(index, name, asked, setting, of_model, lines)


def main(
    path: Path,
    folder: Path,
    model: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    setting: Setting | None = None,
    answers: Path | None = None,
) -> Result:
    """Run; what is wrong with the file is said before a model is loaded.

    Args:
        path: questions; see `gritrag.evaluate.question_rows`.
        folder: of the index, which is only read.
        model: where the one that the index remembers has moved.
        dtype, device: see `GritModel.from_pretrained`.
        setting: see `evaluate`.
        answers: gets every answer and its scores, as JSONL.

    Raises:
        ValueError: a missing file, a broken row, no right answers in it, an index that is missing, empty or of a model
            that only embeds, or `answers` would overwrite the file.
    """
    setting = setting or Setting()
    known = [each for each in read_questions(path, needs_passages=False) if each.answers or each.is_unanswerable]
    if not known:
        raise ValueError(f"no question of {path} has answers, so nothing can be scored; add the key 'answers'")
    if answers is not None and answers.exists() and answers.samefile(path):
        raise ValueError(f"--answers {answers} is the file of questions itself; name another")
    questions = evenly(known, setting.questions)
    with Index.open(folder, model=model, dtype=dtype, device=device) as index:
        if not len(index):
            raise ValueError(f"the index {folder} is empty: there is nothing to find")
        if not isinstance(index.model, GritModel):
            kind = type(index.model).__name__
            raise ValueError(f"answers need an index of a GritModel, and {folder} is one of a {kind}")
        name = str(index.model.loaded_as.get("name", "model of the index"))
        facts = {
            "model": name,
            "file": path.name,
            "index": folder.name,
            "documents_indexed": len(index),
            "questions_answered": len(questions) if setting.has("answers") else 0,
            **machine_of(index.model),
        }

        def work(results: Results) -> None:
            with answers.open("w", encoding="utf-8") if answers is not None else nullcontext() as lines:
                results.write("questions", evaluate(index, Path(name).name, questions, setting, lines))

        return run(COMMAND, asdict(setting), facts, work)
