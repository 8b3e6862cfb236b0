"""How fast is a training step, in tokens and answers per second, and how near to what the processor's products allow?

    python -m experiments.training_speed configs/default.yaml --steps 3 --save /tmp/steps.json
    python -m experiments.training_speed configs/default.yaml --steps 3 --batch /tmp/steps.json --json

`--save` writes the steps, and `--batch` takes them from there: two versions of the code train on the same token ids.
The limit counts the products of linear layers only (2 operations a weight and token forward, 4 backward), and is
measured in the same process, as the speed of one such product. Where others run too, seconds of the processor tell more
than those of the clock. `--profile` prints the operations that take longest.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gritrag.tokens import TokenIds
from gritrag.train.config import TrainConfig
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.loop import Trainer

OPERATIONS_PER_WEIGHT = 6
"""Of a token: a product and a sum forward, twice as many backward."""


def steps_of(trainer: Trainer, count: int) -> list[Any]:
    """The first `count` steps of a run that read documents and answer from their states."""
    found: list[Any] = []
    number = 0
    while len(found) < count:
        step = trainer.mixture.step(number)
        if isinstance(step, RetrievalStep) and step.answers and not step.is_full and not step.is_quantised:
            found.append(step)
        number += 1
    return found


def as_json(step: Any) -> dict[str, Any]:
    fields: dict[str, Any] = dataclasses.asdict(step)
    for name in ("documents", "queries"):
        fields[name] = [list(prompt) for prompt in getattr(step, name)]
    fields["answers"] = [list(dataclasses.astuple(answer)) for answer in step.answers]
    return fields


def from_json(fields: dict[str, Any], example: Any) -> Any:
    """A step of the classes of `example`, which another version of the code may have made."""
    prompted = type(example.answers[0])
    answers = [
        prompted(*(tuple(value) if n in (2, 4, 5) else value for n, value in enumerate(answer)))
        for answer in fields["answers"]
    ]
    made = {name: [TokenIds(*prompt) for prompt in fields[name]] for name in ("documents", "queries")}
    known = {field.name for field in dataclasses.fields(example)}
    rest = {name: value for name, value in fields.items() if name in known and name not in (*made, "answers")}
    rest["identities"] = tuple(rest.get("identities", ()))
    return type(example)(**rest, **made, answers=answers)


def products_per_second(dtype: torch.dtype, rows: int = 1024, hidden: int = 576, wide: int = 1536) -> float:
    """Operations per second of one linear layer's product."""
    x, weight = torch.randn(rows, hidden).to(dtype), torch.randn(wide, hidden).to(dtype)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(10):
            torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - began)
    return 10 * 2 * rows * hidden * wide / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="such as dtype=bfloat16")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed, after one to warm up")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--batch", type=Path)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_intermixed_args()
    trainer = Trainer(TrainConfig.load(Path(given.recipe), given.overrides))
    made = steps_of(trainer, 1 if given.batch else given.steps + 1)
    steps = [from_json(fields, made[0]) for fields in json.loads(given.batch.read_text())] if given.batch else made
    if given.save:
        given.save.write_text(json.dumps([as_json(step) for step in steps]))
        return
    trainer.mixture.step = lambda number: steps[number % len(steps)]  # type: ignore[method-assign]
    trainer._timed_step()
    used = time.process_time()
    records = [trainer._timed_step() for _ in range(min(given.steps, len(steps) - 1))]
    used = time.process_time() - used
    if given.profile:
        with torch.profiler.profile() as profile:
            trainer._timed_step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=60))
    weights = sum(p.numel() for name, p in trainer.parameters.items() if p.dim() == 2)
    seconds = sum(record["step_seconds"] for record in records)
    tokens = sum(record["tokens"] for record in records)
    limits = {str(d).removeprefix("torch."): products_per_second(d) for d in (torch.float32, torch.bfloat16)}
    report = {
        "tokens_per_second": tokens / seconds,
        "median_step_seconds": median(record["step_seconds"] for record in records),
        "tokens_per_processor_second": tokens / used,
        "answers_per_second": sum(record["answers"] for record in records) / seconds,
        "tokens_per_step": tokens / len(records),
        "share_of_limit": {
            name: tokens / seconds * OPERATIONS_PER_WEIGHT * weights / limit for name, limit in limits.items()
        },
        "losses": [record["losses"] for record in records],
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report) if given.json else "\n".join(f"{key}: {value}" for key, value in report.items()))


if __name__ == "__main__":
    main()
