"""How probable does a model find right answers: from text, from states in a row, and from states weighed as in use?

`python -m experiments.likelihood questions.jsonl` prints the mean log-probability of a token of the right answers in
these three ways, with intervals, and the paired differences to text. A few dozen answers are right or wrong by
chance; this tells the same differences from far fewer questions, and no answer has to be decoded.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn.functional import cross_entropy

from experiments.script import run
from gritrag.cli.options import Device, Dtype, Model
from gritrag.config import DEFAULT_MODEL, RELEVANCE_BIAS
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.quality import Asked, Setting, gold_contexts
from gritrag.evaluate.report import aligned, header
from gritrag.evaluate.rows import choose, read_questions
from gritrag.evaluate.statistics import Sampled
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar
from gritrag.relevance import relevance_biases
from gritrag.train.contexts import Contexts
from gritrag.train.data.steps import Prompted
from gritrag.train.readings import Readings

TEXT, ROW, WEIGHED = "log p from text", "log p from states in a row", "log p from states"
WAYS = (TEXT, ROW, WEIGHED)


@torch.no_grad()
def likelihoods(model: GritModel, asked: Sequence[Asked]) -> dict[str, list[float]]:
    """For each way the mean log-probability of a token of each question's first answer, its end included.

    Args:
        model: its keys can be moved.
        asked: what is read is the `gold` context. Weights come from the similarities of vectors, as where `RAG.ask` is
            given documents.

    Raises:
        ValueError: the model's keys cannot be moved.
    """
    if model.rotation is None:
        raise ValueError("this model's keys cannot be moved: its states answer only where they were read")
    contexts = Contexts(model)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for each in ProgressBar(asked, desc="weighing answers", unit="question", disable=not asked):
        hits = each.contexts["gold"]
        documents = [model.prompts.document(hit.document.content) for hit in hits]
        read = Readings(model, documents, sum(len(d.ids) for d in documents) * len(documents), False, with_states=True)
        query = Readings(model, [model.prompts.query(each.question.text, model.config.instruction)], 1, False)
        scores = (read.vectors @ query.vectors[0]).tolist()
        biases = relevance_biases(scores, RELEVANCE_BIAS)
        row = Prompted(
            model.prompts.question_ids(each.question.text, has_documents=True),
            model.prompts.answer_ids(each.question.answers[0]),
            tuple(range(len(hits))),
        )
        weighed = replace(row, biases=tuple(biases), shares_positions=(True,) * len(hits)) if any(biases) else row
        found[TEXT].append(_mean(*contexts.full([document.ids for document in documents], [row])))
        found[ROW].append(_mean(*contexts.placed(read.states, [row])))
        found[WEIGHED].append(_mean(*contexts.placed(read.states, [weighed])))
    return found


def _mean(logits_AV: torch.Tensor, target_A: torch.Tensor) -> float:
    return -cross_entropy(logits_AV.float(), target_A).item()


def main(path: Path, model: str, dtype: str, device: str, options: Setting) -> str:
    """Run and return what to print.

    Raises:
        ValueError: a broken file, too few documents or answers, or a model whose keys cannot be moved.
    """
    asked = gold_contexts(choose(read_questions(path), options.documents), options, path)
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    found = {way: Sampled.mean(values, options.seed) for way, values in likelihoods(loaded, asked).items()}
    rows = [
        [
            way,
            sampled.interval().show(".3f", 1),
            sampled.minus(found[TEXT]).interval().show("+.3f", 1),
        ]
        for way, sampled in found.items()
    ]
    facts = {"file": path, "model": model, "questions": len(asked), **machine_of(loaded), "seed": options.seed}
    return "\n\n".join([header(facts), aligned(["nats per token", "mean", "against text"], rows)])


def command(
    path: Annotated[Path, typer.Argument(help="JSONL of questions with their passages and answers.")],
    questions: Annotated[int, typer.Option(help="Questions to weigh.", min=1)] = 100,
    distractors: Annotated[int, typer.Option(help="Passages beside the right one in a context.", min=0)] = 2,
    seed: Annotated[int, typer.Option(help="Of distractors, their order and resamples.")] = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Say how probable right answers are from text and from states."""
    options = Setting(questions=questions, distractors=distractors, seed=seed, only="answers")
    typer.echo(main(path, model, dtype, device, options))


if __name__ == "__main__":
    run(command)
