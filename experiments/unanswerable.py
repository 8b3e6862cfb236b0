"""What tells that the documents of a context do not hold the answer, beside the first token and the search?

    python -m experiments.unanswerable DATA --rows rows.jsonl --out answerability.json

`DATA` holds NAME.train.jsonl and NAME.validation.jsonl. Each question is answered from the states of 5 found documents.
Unanswerable are questions whose rows say so, whose passage is about the matter; and of answerable questions the same
one asked of an index without its passage and without whatever shares eight words in a row with it, or of one that holds
its passage without the sentence that answers. Regressions over two signals, hidden states and attention are fitted to
the training files; what the product sees of these, and the ridge, are those that tell best the questions of one
training file after the other, by fits to the others. The validation files are judged once. Rows are kept part by part:
a run that was stopped goes on.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from experiments.answerability_fit import (
    NO_PROBE,
    Data,
    best_of,
    judged,
    probabilities,
    strictest,
    threshold,
)
from experiments.answerability_report import above, by_file, by_kind, calibration, choices, losses
from experiments.answerability_rows import DEMO, Kept, read_rows
from experiments.script import run
from gritrag import GritModel
from gritrag.cli.options import Device, Dtype, Model
from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.report import header
from gritrag.model.answerability import Answerability

PROBED = "with hidden states"

SURE = 0.9
"""A probability above which it may be said that the documents hold no answer."""

LAYERS = [10, 14, 18, 22, 26]
"""Of the 30 of the default model."""


def main(
    data: Annotated[Path, typer.Argument(help="Folder of NAME.train.jsonl and NAME.validation.jsonl.")],
    rows: Annotated[Path, typer.Option(help="What is known of each question is kept here, as JSONL.")],
    passages: Annotated[int, typer.Option(help="Passages of a part on which questions are asked.", min=2)] = 14,
    others: Annotated[int, typer.Option(help="Further passages of a part that are searched.", min=0)] = 8,
    parts: Annotated[int, typer.Option(help="Of a training file; all but the first are of neighbours.", min=1)] = 2,
    out: Annotated[Path | None, typer.Option(help="Write what was fitted here, for a checkpoint.")] = None,
    beside: Annotated[Path | None, typer.Option(help="Judge what lies here, of a checkpoint, too.")] = None,
    layer: Annotated[list[int], typer.Option(help="Behind which hidden states are kept.", min=1)] = LAYERS,
    seed: Annotated[int, typer.Option(help="Of resamples.")] = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Say what tells unanswerable questions, and fit what the product uses."""
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    kept = Kept(rows, layer)
    read_rows(loaded, data, kept, passages, others, parts)
    known = Data(kept.rows, kept.arrays(), kept.layers)
    train = known.of_file(*(file for file in known.files if file.endswith(".train")))
    told = known.of_file(*(file for file in known.files if not file.endswith(".train")))
    files = [file for file in told.files if file != DEMO]
    facts = {"model": model, "fitted to": len(train.rows), "judged on": len(told.of_file(*files).rows)}
    typer.echo(header({**facts, **machine_of(loaded), "seed": seed}))

    typer.echo("\nTraining files, each by a fit to the others\n")
    found = judged(train)
    best = best_of(found)
    typer.echo(choices(found, train))
    fitted = best.choice.fitted(train, loaded.fingerprint.parts["adapter"])
    least, most = threshold(best.scores, train), strictest(best.scores, train)
    typer.echo(f"\nchosen: {best.choice.name}, ridge {best.choice.ridge:g}\n")
    typer.echo(losses(best.scores, (least, most, SURE), train))
    if out is not None:
        fitted.save(out)

    typer.echo("\nValidation files\n")
    rated = {"log-odds": told.values("log_odds"), "similarity": -told.values("similarity")}
    rated["log-odds and similarity"] = NO_PROBE.fit(train).probabilities(told.features(NO_PROBE))
    if beside is not None:
        rated[beside.name] = probabilities(Answerability.load(beside), told)
    rated[PROBED] = probabilities(fitted, told)
    is_file_N = np.array([row["file"] != DEMO for row in told.rows])
    own = told.where(is_file_N)
    typer.echo(by_kind({name: scores_N[is_file_N] for name, scores_N in rated.items()}, own, seed))
    typer.echo("\n" + by_file(rated[PROBED], least, told, seed))
    typer.echo("\n" + losses(rated[PROBED][is_file_N], (least, most, SURE), own))
    typer.echo("\n" + calibration(rated[PROBED][is_file_N], own))
    said = [name for name in rated if name in (PROBED, beside and beside.name)]
    typer.echo("\n" + above({name: rated[name][is_file_N] for name in said}, SURE, own))


if __name__ == "__main__":
    run(main)
