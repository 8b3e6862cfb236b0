"""What read-once training saves: examples (question, context, answer) per second, against two separate streams.

One stream embeds documents and queries, the other reads every context anew, with ordinary attention: GritLM's way. Both
train on the same steps, forward and backward, and take turns.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from gritrag.bench.report import Spread, as_json, header, machine, table
from gritrag.corpus import documents, questions
from gritrag.train.config import TrainConfig
from gritrag.train.data import Mixture
from gritrag.train.export import load_base
from gritrag.train.read_once import ReadOnce
from gritrag.train.steps import RetrievalStep

WAYS = {"read once": "placed", "two streams": "full"}


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        base: model to train.
        steps: of training, each in both ways, after one to warm up.
        documents_per_context: sizes of contexts.
        tokens_per_step: see `DataConfig`.
        seed: of the steps.
    """

    base: str = "smollm2-135m"
    steps: int = 4
    documents_per_context: tuple[int, ...] = (1, 2, 3, 5)
    tokens_per_step: int = 1200
    seed: int = 0


def training(setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure; what is in the result is what `show` prints. The package's own corpus is trained on."""
    recipes = {name: _recipe(setting, contexts, folder) for name, contexts in WAYS.items()}
    model = load_base(recipes["read once"], "cpu")
    steppers = {name: ReadOnce(model, recipe) for name, recipe in recipes.items()}
    mixture = Mixture(recipes["read once"], model)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    tokens: dict[str, int] = dict.fromkeys(WAYS, 0)
    answers = []
    for number in tqdm(range(setting.steps + 1), desc="measuring", unit="step"):
        step = mixture.step(number)
        assert isinstance(step, RetrievalStep)
        for name, stepper in steppers.items():
            start = perf_counter()
            done = stepper(step)
            spent = perf_counter() - start
            model.lm.zero_grad(set_to_none=True)
            if number > 0:  # the first step warms up
                seconds[name].append(spent)
                tokens[name] += done.tokens
        if number > 0:
            answers.append(len(step.answers))
    return {
        "machine": {**machine(torch.float32, model.lm.device), **vars(setting)},
        "examples": sum(answers),
        "rows": {name: _rates(seconds[name], answers, tokens[name]) for name in WAYS},
        "speedup": Spread.of([b / a for a, b in zip(*seconds.values(), strict=True)]),
    }


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
            table(["training", "examples/s: median [quartiles]", "tokens read"], rows),
            "",
            f"reading once trains on {result['speedup'].show('.2f')} times as many examples per second",
        ]
    )


def main(as_json_text: bool = False, setting: Setting | None = None) -> str:
    """Run and return what to print."""
    with tempfile.TemporaryDirectory(prefix="gritrag-bench-") as folder:
        result = training(setting or Setting(), Path(folder))
    return json.dumps(as_json(result), indent=2) if as_json_text else show(result)
