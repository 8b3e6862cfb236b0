"""How much faster is it to read documents once, and to train LoRA with summed weights?

`python -m experiments.training` trains on the same steps in two ways that take turns, forward and backward, and
prints examples (question, context, answer) per second and their ratio. `--compared streams`: read once against two
separate streams, of which one embeds documents and queries and the other reads every context anew with ordinary
attention, which is GritLM's way. `--compared lora`: LoRA with summed weights against LoRA as peft computes it.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import torch
import typer

from experiments.script import run
from gritrag.cli.options import Json
from gritrag.corpus import documents, questions
from gritrag.evaluate.machine import machine
from gritrag.evaluate.report import aligned, header
from gritrag.evaluate.statistics import Spread, as_json
from gritrag.model.adapter import attach
from gritrag.model.grit import GritModel
from gritrag.model.low_rank import sum_layers
from gritrag.progress import ProgressBar
from gritrag.train.after.export import load_base
from gritrag.train.config import TrainConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.read_once import ReadOnce

Compared = Literal["streams", "lora"]

READ_ONCE = "read once"
WAYS: dict[Compared, tuple[str, str]] = {
    "streams": (READ_ONCE, "two streams"),
    "lora": ("LoRA, summed weights", "LoRA, thin products"),
}
TOLD = {
    "streams": "reading once trains on {} times as many examples per second",
    "lora": "with summed weights LoRA trains on {} times as many examples per second",
}
RANK, ALPHA = 16, 32


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        base: model to train.
        compared: which two ways.
        steps: of training, each in both ways, after one to warm up.
        documents_per_context: sizes of contexts.
        tokens_per_step: see `DataConfig`.
        seed: of the steps.
    """

    base: str = "smollm2-135m"
    compared: Compared = "streams"
    steps: int = 4
    documents_per_context: tuple[int, ...] = (1, 2, 3, 5)
    tokens_per_step: int = 1200
    seed: int = 0


def training(setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure; what is in the result is what `show` prints. The package's own corpus is trained on."""
    ways = WAYS[setting.compared]
    steppers = {name: _stepper(setting, name, folder) for name in ways}
    first = steppers[ways[0]]
    mixture = Mixture(first.config, first.model)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, int] = dict.fromkeys(ways, 0)
    answers = []
    for number in ProgressBar(range(setting.steps + 1), desc="measuring", unit="step"):
        step = mixture.step(number)
        assert isinstance(step, RetrievalStep)
        for name, stepper in steppers.items():
            start = perf_counter()
            done = stepper(step)
            spent = perf_counter() - start
            _end_step(stepper.model)
            if number > 0:  # the first step warms up
                seconds[name].append(spent)
                tokens[name] += done.tokens
        if number > 0:
            answers.append(len(step.answers))
    return {
        "machine": {**machine(torch.float32, first.model.lm.device), **vars(setting)},
        "examples": sum(answers),
        "rows": {name: _rates(seconds[name], answers, tokens[name]) for name in ways},
        "speedup": Spread.of([b / a for a, b in zip(*seconds.values(), strict=True)]),
    }


def _stepper(setting: Setting, way: str, folder: Path) -> ReadOnce:
    """One way of training, with a model of its own."""
    recipe = _recipe(setting, "full" if way == WAYS["streams"][1] else "placed", folder)
    model = load_base(recipe, "cpu")
    if setting.compared == "lora":
        attach(model.lm, RANK, ALPHA)
        if way == WAYS["lora"][0]:
            sum_layers(model.lm)
    return ReadOnce(model, recipe)


@torch.no_grad()
def _end_step(model: GritModel) -> None:
    """What an optimizer does to what is kept between steps, at no change of the weights."""
    for parameter in model.lm.parameters():
        if parameter.requires_grad:
            parameter.add_(0)
            parameter.grad = None


def _recipe(setting: Setting, contexts: str, folder: Path) -> TrainConfig:
    rows = [
        {"question": q.question, "passage": d.text, "title": d.title, "answers": list(q.answers)}
        for d in documents()
        for q in questions()
        if q.document_id == d.id
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return TrainConfig.model_validate(
        {
            "name": contexts,
            "base": setting.base,
            "template": "gritrag",
            "seed": setting.seed,
            "data": {
                "data_dir": str(folder),
                "sources": [{"path": path.name}],
                "tokens_per_step": setting.tokens_per_step,
            },
            "generative": {
                "contexts": contexts,
                "documents_per_context": setting.documents_per_context,
                "p_full": 0,
                "p_chat": 0,
            },
        }
    )


def _rates(seconds: Sequence[float], answers: Sequence[int], tokens: int) -> dict[str, Any]:
    rates = Spread.of([count / spent for count, spent in zip(answers, seconds, strict=True)])
    return {"examples_per_second": rates, "tokens": tokens}


def show(result: dict[str, Any]) -> str:
    rows = [[name, row["examples_per_second"].show(".2f"), str(row["tokens"])] for name, row in result["rows"].items()]
    return "\n".join(
        [
            header({**result["machine"], "examples": result["examples"]}),
            "",
            aligned(["training", "examples/s: median [quartiles]", "tokens read"], rows),
            "",
            TOLD[result["machine"]["compared"]].format(result["speedup"].show(".2f")),
        ]
    )


def main(as_json_text: bool = False, setting: Setting | None = None) -> str:
    """Run and return what to print."""
    with tempfile.TemporaryDirectory(prefix="gritrag-bench-") as folder:
        result = training(setting or Setting(), Path(folder))
    return json.dumps(as_json(result), indent=2) if as_json_text else show(result)


def command(
    base: Annotated[str, typer.Option(help="Model to train.")] = "smollm2-135m",
    compared: Annotated[
        str, typer.Option(help="streams: read once or twice. lora: one product a layer, or two.")
    ] = "streams",
    steps: Annotated[int, typer.Option(help="Of training, each in both ways.", min=1)] = 4,
    tokens: Annotated[int, typer.Option(help="Of documents and queries in a step.", min=1)] = 1200,
    as_json: Json = False,
) -> None:
    """Compare read-once training with two separate streams, or two ways of LoRA, in examples per second."""
    if compared not in WAYS:
        raise typer.BadParameter(f"{compared!r} is none of: {', '.join(WAYS)}", param_hint="--compared")
    typer.echo(main(as_json, Setting(base=base, compared=compared, steps=steps, tokens_per_step=tokens)))


if __name__ == "__main__":
    run(command)
