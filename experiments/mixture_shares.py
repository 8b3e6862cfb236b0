"""What a recipe asks in training: how many answers say "not in the documents", are asked in chats, or are biased.

    python -m experiments.mixture_shares configs/default.yaml data.data_dir=FOLDER --answers 5000

Steps are drawn and counted; nothing is read by a model. Prints a table of the sources, and of all.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from experiments.script import run
from gritrag.progress import ProgressBar
from gritrag.train.after.export import load_base
from gritrag.train.config import TrainConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.steps import ChatStep, Prompted, RetrievalStep

KINDS = ("not found", "in chats", "biased", "quantised", "full")
TOTAL = "all"


def kinds_of(step: RetrievalStep, answer: Prompted, not_found: list[int]) -> list[str]:
    """Which of `KINDS` an answer is."""
    is_kind = (
        answer.answer_ids[: len(not_found)] == not_found,
        bool(answer.before_ids),
        any(answer.biases),
        step.is_quantised,
        step.is_full,
    )
    return [kind for kind, applies in zip(KINDS, is_kind, strict=True) if applies]


def count(config: TrainConfig, answers: int) -> dict[str, Counter[str]]:
    """Answers of each source and of all (`TOTAL`), by kind, in the first steps with so many, or in all of the
    recipe; ``answers`` is their number, and ``tokens`` are those that are read beside the documents."""
    model = load_base(config, "cpu")
    mixture, not_found = Mixture(config, model), model.prompts.encoder.content_ids(config.generative.not_found)
    found: dict[str, Counter[str]] = {TOTAL: Counter()}
    with ProgressBar(total=answers, desc="drawing", unit="answer") as bar:
        number = 0
        while found[TOTAL]["answers"] < answers and number < config.steps:
            step = mixture.step(number)
            number += 1
            if isinstance(step, ChatStep):
                continue
            for answer in step.answers:
                for counts in (found[TOTAL], found.setdefault(step.source, Counter())):
                    counts.update(["answers", *kinds_of(step, answer, not_found)])
                    counts["tokens"] += answer.new_tokens
                bar.update()
    return found


def table(found: dict[str, Counter[str]]) -> str:
    """Lines of Markdown: of each source its answers, and which share of them is of each kind."""
    lines = [
        f"| source | answers | {' | '.join(KINDS)} | tokens beside documents |",
        "|---|---|" + "---|" * (len(KINDS) + 1),
    ]
    for source, counts in sorted(found.items(), key=lambda each: -each[1]["answers"]):
        shares = [f"{counts[kind] / max(1, counts['answers']):.1%}" for kind in KINDS]
        tokens = f"{counts['tokens'] / max(1, counts['answers']):.0f}"
        lines.append(f"| {source} | {' | '.join([str(counts['answers']), *shares, tokens])} |")
    return "\n".join(lines)


def main(
    recipe: Annotated[Path, typer.Argument(help="YAML.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Such as data.data_dir=FOLDER.")] = None,
    answers: Annotated[int, typer.Option(help="Draw so many.", min=1)] = 5000,
) -> None:
    """Count, and print the table."""
    typer.echo(table(count(TrainConfig.load(recipe, overrides or []), answers)))


if __name__ == "__main__":
    run(main)
