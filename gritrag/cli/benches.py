"""`gritrag bench`: how fast, how large, at what price."""

from pathlib import Path
from typing import Annotated

import typer

from gritrag.cli.app import bench
from gritrag.cli.options import (
    BENCHES,
    Device,
    Dtype,
    Json,
    MaxNewTokens,
    Mode,
    Model,
    Out,
    TopK,
    bench_part,
    named,
)
from gritrag.config import DEFAULT_MODEL


@bench.command("first-token")
def first_token(
    documents: Annotated[int, typer.Option(help="Documents per context.", min=1)] = 10,
    tokens: Annotated[int, typer.Option(help="Tokens per document.", min=1)] = 200,
    states: Annotated[str, typer.Option(help="How states are stored.")] = "bf16",
    repetitions: Annotated[int, typer.Option(help="Rounds, after one to warm up.", min=1)] = 9,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time from hits to first token, answering from text and from states."""
    from gritrag.evaluate import first_token as latency

    setting = latency.Setting(documents, tokens, states, repetitions)
    typer.echo(latency.main(model, dtype, device, as_json, setting))


@bench.command("reading")
def reading(
    model: Model = DEFAULT_MODEL, dtype: Dtype = "auto", device: Device = "auto", as_json: Json = False
) -> None:
    """What a read pass costs against an embedding pass, and that against a bare forward."""
    from gritrag.evaluate import reading

    typer.echo(reading.main(model, dtype, device, as_json))


@bench.command("codecs")
def codecs(
    questions_file: Annotated[list[Path], typer.Option(help="JSONL rows of question, passage, answers; or several.")],
    codec: Annotated[list[str] | None, typer.Option(help="Compared with bf16; may be given several times.")] = None,
    questions: Annotated[int, typer.Option(help="Questions to answer, of each file.", min=1)] = 60,
    documents: Annotated[int, typer.Option(help="Of a file, that distractors are drawn from.", min=1)] = 300,
    repetitions: Annotated[int, typer.Option(help="Rounds, after one to warm up.", min=1)] = 9,
    seed: Annotated[int, typer.Option(help="Of distractors, their order, and resamples.")] = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Bytes, error, time and answers of each way to store states, beside bf16."""
    codecs = bench_part("codecs")
    chosen = {"codecs": tuple(codec)} if codec else {}
    setting = codecs.Setting(questions=questions, documents=documents, repetitions=repetitions, seed=seed, **chosen)
    typer.echo(codecs.main(questions_file, model, dtype, device, as_json, setting))


@bench.command("decoding")
def decoding(
    documents: Annotated[int, typer.Option(help="Documents per context.", min=1)] = 10,
    tokens: Annotated[int, typer.Option(help="Tokens per document.", min=1)] = 200,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode.", min=2)] = 32,
    repetitions: Annotated[int, typer.Option(help="Rounds, after one to warm up.", min=1)] = 5,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Tokens per second beside `generate` of transformers, from the same states."""
    from gritrag.evaluate import decoding

    setting = decoding.Setting(documents, tokens, new_tokens, repetitions)
    typer.echo(decoding.main(model, dtype, device, as_json, setting))


@bench.command("grid")
def grid(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/bench/default.yaml.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Such as speed.repetitions=9.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure a grid of modes and contexts, quality beside speed. The same command resumes a run that was stopped."""
    settings, run = bench_part("config"), bench_part("grid")
    asked = settings.BenchConfig.load(config, overrides or ())
    typer.echo(run.main(asked, out or BENCHES / config.stem, as_json))


@bench.command("table7")
def table7(
    file: Annotated[str | None, typer.Argument(help="JSONL of questions; the demo's if left out.")] = None,
    questions: Annotated[int, typer.Option(help="Questions to answer.", min=1)] = 60,
    k: TopK = 5,
    states: Annotated[str, typer.Option(help="How states are stored.")] = "bf16",
    context: Annotated[str, typer.Option(help="retrieved, or gold: the right passage among others.")] = "retrieved",
    max_new_tokens: MaxNewTokens = 16,
    seed: Annotated[int, typer.Option(help="Of contexts and resamples.")] = 0,
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """GritLM's table 7 for a model: every mode with 1 and k documents, match, F1, first token, total and storage."""
    settings, run = bench_part("config"), bench_part("grid")
    quality = {"file": file, "questions": questions, "documents": sorted({1, k}), "codecs": [states]}
    quality |= {"context": context, "new_tokens": max_new_tokens}
    asked = settings.BenchConfig.model_validate({**named(model, dtype, device, seed), "quality": quality})
    typer.echo(run.main(asked, out or BENCHES / "table7", as_json))


@bench.command("steady")
def steady(
    requests: Annotated[int, typer.Option(help="Each for documents in a new combination.", min=1)] = 1000,
    documents: Annotated[int, typer.Option(help="Documents in the index.", min=1)] = 100,
    tokens: Annotated[int, typer.Option(help="Tokens per document.", min=8)] = 120,
    k: TopK = 5,
    mode: Mode = "doc-cache",
    states: Annotated[str, typer.Option(help="How states are stored.")] = "bf16",
    quota: Annotated[str | None, typer.Option(help="Most bytes of states: 20MB, or 50% of all.")] = None,
    window: Annotated[int, typer.Option(help="Requests that a p50 and a p95 are of.", min=2)] = 200,
    seed: Annotated[int, typer.Option(help="Of documents, combinations and resamples.")] = 0,
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """A stream of new combinations of documents, drawn by Zipf's law: hit rate, p50 and p95 over time."""
    settings, run = bench_part("config"), bench_part("grid")
    stream = {"requests": requests, "documents": documents, "tokens": tokens, "k": k, "mode": mode, "codec": states}
    stream |= {"quota": quota, "window": window}
    asked = settings.BenchConfig.model_validate({**named(model, dtype, device, seed), "steady": stream})
    typer.echo(run.main(asked, out or BENCHES / "steady", as_json))


@bench.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="Holds results.jsonl.")],
    readme: Annotated[Path | None, typer.Option(help="Put its tables between the bench markers of this file.")] = None,
    as_json: Json = False,
) -> None:
    """Write report.md and report.html of a folder anew, from its results.jsonl alone."""
    typer.echo(bench_part("grid").show(folder, as_json))
    if readme is not None:
        bench_part("full_report").write_readme(folder, readme)
