"""`gritrag eval`: how good."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gritrag.cli.app import evaluation
from gritrag.cli.options import (
    Compare,
    Device,
    Dtype,
    Instruction,
    Json,
    MaxNewTokens,
    Model,
    Out,
    Recomputes,
    RelevanceBias,
    Rerank,
    Side,
    TopK,
    UnanswerableAbove,
    bench_part,
    check_out,
    tell,
)
from gritrag.config import DEFAULT_MODEL, DENSE_WEIGHT, RELEVANCE_BIAS

if TYPE_CHECKING:
    from gritrag.evaluate.suite import Result

STOPPED = 130
"""Exit status of a run that was stopped, as a shell gives it after Ctrl-C."""


@evaluation.command("questions")
def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Questions with passages and answers: .jsonl, .json, .csv, .tsv or .parquet.", metavar="FILE..."
        ),
    ],
    index: Annotated[
        Path | None,
        typer.Option("--index", "-i", help="Ask this index, which is only read; the rows need no passages."),
    ] = None,
    questions: Annotated[int, typer.Option(help="Questions to answer.", min=1)] = 50,
    documents: Annotated[int, typer.Option(help="Distinct passages to search in, at most.", min=1)] = 300,
    distractors: Annotated[int, typer.Option(help="Passages beside the right one in a context.", min=0)] = 4,
    k: TopK = 5,
    states: Annotated[str, typer.Option(help="Codec of the states.")] = "bf16",
    max_new_tokens: MaxNewTokens = 32,
    seed: Annotated[int, typer.Option(help="Seed of distractors, their order and resamples.")] = 0,
    only: Annotated[str, typer.Option(help="retrieval or answers; both if left out.")] = "",
    context: Annotated[
        str, typer.Option(help="gold (the right passage among others) or retrieved, to answer from; both if left out.")
    ] = "",
    dense_weight: Annotated[float, typer.Option(help="Weight of vectors in hybrid search, 0 to 1.")] = DENSE_WEIGHT,
    relevance_bias: RelevanceBias = RELEVANCE_BIAS,
    rerank: Rerank = None,
    recompute: Recomputes = None,
    unanswerable_above: UnanswerableAbove = None,
    compare: Annotated[
        list[str] | None, typer.Option(help="Another model, on the same questions and contexts.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Write every answer and its scores here, as JSONL.", metavar="FILE.jsonl")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Keep every answer here: the same command resumes a run that was stopped.")
    ] = None,
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score retrieval, and answers from text and from states, on files of questions, one by one and together.

    A row: {"question": "When does the ferry sail?", "passage": "It sails at noon.", "answers": ["noon"]}

    SQuAD's context and answers, query/pos/neg and passages are read too. With --index a row is {"question", "answer"}.
    """
    check_out(out, paths)
    found = (dense_weight, relevance_bias, rerank, tuple(recompute or ()), unanswerable_above, context)
    setting = bench_part("quality").Setting(
        questions, documents, distractors, k, states, max_new_tokens, seed, only, *found
    )
    outputs = bench_part("session").Outputs(answers, folder, out, None if as_json else _tell_file, _warn)
    if index is None:
        result = bench_part("evaluation").main(paths, model, compare or (), dtype, device, setting, outputs)
    elif compare:
        raise ValueError("--compare reads the passages of rows; with --index only the model of the index answers")
    else:
        moved = None if model == DEFAULT_MODEL else model
        result = bench_part("existing").main(paths, index, moved, dtype, device, setting, outputs)
    _tell(result, as_json)


def _tell_file(so_far: "Result", file: str) -> None:
    """Print what is known of one of several files."""
    typer.echo(bench_part("overview").of_file(so_far, file))


def _warn(told: str) -> None:
    typer.echo(f"error: {told}", err=True)


def _tell(result: "Result", as_json: bool) -> None:
    """The whole result; of several files, which were told before, what they say together. Whatever is missing from it
    is named last.

    Raises:
        typer.Exit: the run was stopped, or some files could not be evaluated.
    """
    is_one = "file" in result.facts
    typer.echo(result.json() if as_json else result.show() if is_one else bench_part("overview").of_all(result))
    failed = result.facts.get("failed", {})
    if stopped := result.facts.get("stopped"):
        typer.echo(f"stopped {stopped}: this is what was known by then", err=True)
        raise typer.Exit(STOPPED)
    if failed:
        told = "; ".join(f"{name}: {error}" for name, error in failed.items())
        every = {*failed, *result.facts["files"]}
        _warn(f"{len(failed)} of {len(every)} files could not be evaluated: {told}")
        raise typer.Exit(2)  # no ValueError: the result stands on the standard output, and nothing more may


@evaluation.command("embedding")
def evaluate_embedding(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Texts with labels, sentence pairs, or questions."),
    ],
    train: Annotated[Path | None, typer.Option(help="Labelled texts that a probe learns from, to classify.")] = None,
    rows: Annotated[int, typer.Option(help="Texts or pairs of a file, at most.", min=2)] = 1000,
    documents: Annotated[int, typer.Option(help="Distinct passages to search in, at most.", min=1)] = 300,
    shots: Annotated[int, typer.Option(help="Texts per label that a probe learns from.", min=1)] = 16,
    clusterings: Annotated[int, typer.Option(help="Clusterings, each of another sample of the texts.", min=2)] = 20,
    instruction: Instruction = None,
    side: Side = "query",
    seed: Annotated[int, typer.Option(help="Seed of samples, of k-means and of resamples.")] = 0,
    compare: Compare = None,
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score vectors by clustering, classification, STS and retrieval, beside BM25 and other encoders."""
    embedding = bench_part("embedding")
    setting = embedding.Setting(rows, documents, shots, clusterings, instruction, side, seed)
    tell(
        lambda: embedding.main(paths, train, model, compare or (), dtype, device, setting),
        as_json,
        out,
        [*paths, train],
    )
