"""Commands over models and installations: examine, show, train, convert."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from gritrag import render
from gritrag.cli.app import app
from gritrag.cli.options import (
    ChunkOverlap,
    ChunkSize,
    Device,
    Dtype,
    Json,
    Model,
    Paths,
    RelevanceBias,
    TopK,
    chunks_of,
    load_model,
    part_of_extra,
    show,
)
from gritrag.config import DEFAULT_MODEL, RELEVANCE_BIAS
from gritrag.folders import check_file


@app.command()
def doctor(
    folder: Annotated[Path, typer.Option(help="Where indexes are kept.")] = Path("indexes"),
    model: Annotated[str, typer.Option("--model", "-m", help="Probe this model too.")] = "",
    as_json: Json = False,
) -> None:
    """Say what this machine, this installation and a model can do. Exit code 1 if something is broken."""
    from gritrag.doctor import examine, examine_model

    findings = examine(folder) + (examine_model(load_model(model)) if model else [])
    typer.echo(render.as_json(findings) if as_json else "\n".join(map(str, findings)))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    questions: Annotated[int, typer.Option(help="How many of the demo's questions to ask.", min=1)] = 6,
    index: Annotated[Path | None, typer.Option("--index", "-i", help="Keep the index here.")] = None,
    k: TopK = 5,
    relevance_bias: RelevanceBias = RELEVANCE_BIAS,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Index invented passages, short and long, and answer questions from their text and from their states."""
    from gritrag.demo import run

    say = (lambda line: None) if as_json else typer.echo
    with tempfile.TemporaryDirectory(prefix="gritrag-demo-") as temporary:
        report = run(index or Path(temporary), load_model(model, dtype, device), questions, k, say, relevance_bias)
    if as_json:
        typer.echo(render.as_json(report))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="YAML file, such as configs/default.yaml.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A setting to change: lr=1e-4.")] = None,
) -> None:
    """Train a recipe. The same command resumes a run that was stopped."""
    checkpoint = part_of_extra("train.loop", "train", "training").main(recipe, overrides or ())
    typer.echo(checkpoint or "stopped before the end; run the same command again to go on")


@app.command()
def mine(
    path: Annotated[Path, typer.Argument(help="JSONL of questions with their passages and answers.")],
    out: Annotated[Path, typer.Argument(help="The same rows, with negatives, to train on.")],
    negatives: Annotated[int, typer.Option(help="Negatives for each question, at most.", min=1)] = 4,
    depth: Annotated[int, typer.Option(help="Passages to look at for each question.", min=1)] = 30,
    margin: Annotated[float, typer.Option(help="Share by which a negative is less similar than the passage.")] = 0.05,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Give questions hard negatives: passages that a search finds near their own, and that do not answer them."""
    from gritrag.mine import mine as mined

    check_file(out)
    show(mined(path, out, load_model(model, dtype, device), negatives, depth, margin), as_json)


@app.command()
def calibrate(
    paths: Paths,
    out: Annotated[Path, typer.Option(help="File to write; index with --states transform:FILE.")],
    chunk_size: ChunkSize = 200,
    chunk_overlap: ChunkOverlap = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Fit the codec `transform` to a model, on documents such as will be indexed; takes minutes."""
    from gritrag.chunks import Cutting
    from gritrag.train.after.calibrate import calibrate

    check_file(out)
    loaded = load_model(model, dtype, device)
    calibration = calibrate(loaded, chunks_of(paths, loaded, Cutting(chunk_size, chunk_overlap)))
    calibration.save(out)
    size = calibration.bytes_per_token(loaded.state_elements_per_token)
    typer.echo(f"{out}: {size:,.0f} bytes per token; index with --states transform:{out}")


@app.command()
def whiten(
    paths: Annotated[list[Path], typer.Argument(help="JSONL of questions with passages, a file for each kind.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write: a new or empty folder.")],
    documents: Annotated[int, typer.Option(help="Documents of each file, at most.", min=1)] = 150,
    power: Annotated[float, typer.Option(help="0.5: the whole whitening; less: in part.")] = 0.35,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
) -> None:
    """Fit a layer behind the pooling that lets no few directions of vectors outweigh the others; takes minutes."""
    from gritrag.evaluate.rows import choose, read_questions
    from gritrag.folders import check_new
    from gritrag.train.after.whiten import QUESTIONS_PER_DOCUMENT, Sample, whiten, write

    check_new(out)
    chosen = [choose(read_questions(path), documents, QUESTIONS_PER_DOCUMENT) for path in paths]
    rows = [{document.id: row for row, document in enumerate(each.documents)} for each in chosen]
    samples = [
        Sample(each.documents, [q.text for q in each.questions], [row[q.document.id] for q in each.questions])
        for each, row in zip(chosen, rows, strict=True)
    ]
    loaded = load_model(model, "float32", device)
    whitening = whiten(loaded, samples, power)
    write(model, loaded, whitening, out)
    typer.echo(
        f"{out}: fitted on {whitening.documents:,} documents and {whitening.questions:,} questions; mean cosine of two "
        f"documents {whitening.cosine_before:.2f}, now {whitening.cosine_after:.2f}"
    )


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Built-in name, hub id, folder or .gguf file.")],
    folder: Annotated[Path, typer.Argument(help="New or empty.")],
    dtype: Dtype = "auto",
) -> None:
    """Write a model, its adapter merged, as sentence-transformers loads it, for the same vectors."""
    from gritrag.export import to_sentence_transformers

    typer.echo(to_sentence_transformers(load_model(model, dtype, "cpu"), folder))
