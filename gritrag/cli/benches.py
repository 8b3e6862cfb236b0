"""`gritrag bench`: how fast, how large, at what price."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gritrag.cli.app import bench
from gritrag.cli.options import (
    BENCHES,
    Device,
    Dtype,
    Folder,
    Geometry,
    Json,
    MaxNewTokens,
    Mode,
    Model,
    Out,
    Recomputes,
    Rerank,
    TopK,
    bench_part,
    named,
    tell,
)
from gritrag.config import DEFAULT_MODEL

Documents = Annotated[int, typer.Option(help="Documents per context.", min=1)]
Tokens = Annotated[int, typer.Option(help="Tokens per document.", min=1)]
States = Annotated[str, typer.Option(help="Codec of the states.")]
Repetitions = Annotated[int, typer.Option(help="Rounds, after one to warm up.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of documents, questions, their order and resamples.")]


@bench.command("first-token")
def first_token(
    documents: Documents = 10,
    tokens: Tokens = 200,
    states: States = "bf16",
    repetitions: Repetitions = 9,
    storage: Annotated[str, typer.Option(help="Where state files lie: disk or memory.")] = "disk",
    recompute: Recomputes = None,
    rerank: Rerank = None,
    seed: Seed = 0,
    geometry: Geometry = "",
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time from hits to first token, answering from text and from states."""
    first_token = bench_part("first_token")
    setting = first_token.Setting(documents, tokens, states, repetitions, storage, seed, tuple(recompute or ()), rerank)
    tell(lambda: first_token.main(_subject(model, dtype, device, geometry), setting), as_json, out)


@bench.command("reading")
def reading(
    seed: Seed = 0,
    geometry: Geometry = "",
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """What a read pass costs against an embedding pass, and that against a bare forward."""
    reading = bench_part("reading")
    tell(lambda: reading.main(_subject(model, dtype, device, geometry), reading.Setting(seed=seed)), as_json, out)


@bench.command("codecs")
def codecs(
    questions_file: Annotated[list[Path], typer.Option(help="JSONL rows of question, passage, answers; or several.")],
    codec: Annotated[list[str] | None, typer.Option(help="Compared with bf16; may be given several times.")] = None,
    questions: Annotated[int, typer.Option(help="Questions to answer, of each file.", min=1)] = 60,
    documents: Annotated[int, typer.Option(help="Documents of each file to draw distractors from.", min=1)] = 300,
    repetitions: Repetitions = 9,
    seed: Seed = 0,
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Bytes, error, time and answers of each way to store states, beside bf16."""
    codecs = bench_part("codecs")
    chosen = {"codecs": tuple(codec)} if codec else {}
    setting = codecs.Setting(questions=questions, documents=documents, repetitions=repetitions, seed=seed, **chosen)
    tell(lambda: codecs.main(questions_file, model, dtype, device, setting), as_json, out, questions_file)


@bench.command("decoding")
def decoding(
    documents: Documents = 10,
    tokens: Tokens = 200,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode.", min=2)] = 32,
    repetitions: Repetitions = 5,
    seed: Seed = 0,
    geometry: Geometry = "",
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Tokens per second beside `generate` of transformers, from the same states."""
    decoding = bench_part("decoding")
    setting = decoding.Setting(documents, tokens, new_tokens, repetitions, seed)
    tell(lambda: decoding.main(_subject(model, dtype, device, geometry), setting), as_json, out)


@bench.command("peers")
def peers(
    documents: Documents = 10,
    tokens: Tokens = 200,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode.", min=2)] = 32,
    repetitions: Repetitions = 5,
    llama_cpp: Annotated[
        Path | None, typer.Option(help="Folder of a build of llama.cpp for this machine, with llama-server.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="first-token, decoding or encoding: only this; may be given several times.")
    ] = None,
    seed: Seed = 0,
    geometry: Geometry = "",
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """First token, decoding and encoding beside llama.cpp, transformers and sentence-transformers, same weights."""
    peers = bench_part("peers")
    setting = peers.Setting(documents, tokens, new_tokens, repetitions, seed)
    tasks = tuple(each.replace("-", " ") for each in task or peers.TASKS)
    tell(lambda: peers.main(_subject(model, dtype, device, geometry), setting, llama_cpp, tasks), as_json, out)


@bench.command("memory")
def memory(
    documents: Documents = 10,
    tokens: Tokens = 500,
    states: States = "bf16",
    repetitions: Annotated[int, typer.Option(help="Answers.", min=1)] = 3,
    seed: Seed = 0,
    geometry: Geometry = "",
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Memory of a process that answers: libraries, weights, states and all else, and how long the model loads."""
    memory = bench_part("memory")
    setting = memory.Setting(documents, tokens, states, repetitions=repetitions, seed=seed)
    tell(lambda: memory.main(_subject(model, dtype, device, geometry), setting), as_json, out)


@bench.command("grid")
def grid(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/bench/default.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A setting to change: speed.repetitions=9.")
    ] = None,
    folder: Folder = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure a grid of modes and contexts, quality beside speed. The same command resumes a run that was stopped."""
    asked = bench_part("grid").BenchConfig.load(config, overrides or ())
    _run("bench grid", asked, folder or BENCHES / config.stem, as_json, out)


@bench.command("table7")
def table7(
    file: Annotated[str | None, typer.Argument(help="JSONL of questions; the demo's if left out.")] = None,
    questions: Annotated[int, typer.Option(help="Questions to answer.", min=1)] = 60,
    k: TopK = 5,
    states: States = "bf16",
    context: Annotated[str, typer.Option(help="retrieved, or gold: the right passage among others.")] = "retrieved",
    max_new_tokens: MaxNewTokens = 16,
    seed: Seed = 0,
    folder: Folder = None,
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """GritLM's table 7 for a model: every mode with 1 and k documents, match, F1, first token, total and storage."""
    quality = {"file": file, "questions": questions, "documents": sorted({1, k}), "codecs": [states]}
    quality |= {"context": context, "new_tokens": max_new_tokens}
    asked = {**named(model, dtype, device, seed), "quality": quality}
    _run("bench table7", _validated(asked), folder or BENCHES / "table7", as_json, out)


@bench.command("steady")
def steady(
    requests: Annotated[int, typer.Option(help="Requests, each for a new combination of documents.", min=1)] = 1000,
    documents: Annotated[int, typer.Option(help="Documents in the index.", min=1)] = 100,
    tokens: Annotated[int, typer.Option(help="Tokens per document.", min=8)] = 120,
    k: TopK = 5,
    mode: Mode = "doc-cache",
    states: States = "bf16",
    quota: Annotated[str | None, typer.Option(help="Most bytes of states: 20MB, or 50% of all.")] = None,
    window: Annotated[int, typer.Option(help="Requests that each p50 and p95 is taken over.", min=2)] = 200,
    seed: Seed = 0,
    folder: Folder = None,
    out: Out = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """A stream of new combinations of documents, drawn by Zipf's law: hit rate, p50 and p95 over time."""
    stream = {"requests": requests, "documents": documents, "tokens": tokens, "k": k, "mode": mode, "codec": states}
    stream |= {"quota": quota, "window": window}
    asked = {**named(model, dtype, device, seed), "steady": stream}
    _run("bench steady", _validated(asked), folder or BENCHES / "steady", as_json, out)


@bench.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that holds results.jsonl.")],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Write report.md and report.html of a folder anew, from its results.jsonl alone."""
    tell(lambda: bench_part("grid").write(folder), as_json, out)


@bench.command("render")
def render(path: Annotated[Path, typer.Argument(help="JSON file that --out wrote.")]) -> None:
    """Print the tables of a JSON file of a benchmark, or of an evaluation, as Markdown."""
    typer.echo("\n".join(result.render() for result in bench_part("suite").load_results(path)), nl=False)


def _subject(model: str, dtype: str, device: str, geometry: str) -> Any:
    return bench_part("workload").Subject(model, dtype, device, geometry)


def _validated(config: dict[str, Any]) -> Any:
    return bench_part("grid").BenchConfig.model_validate(config)


def _run(command: str, config: Any, folder: Path, as_json: bool, out: Path | None) -> None:
    tell(lambda: bench_part("grid").main(command, config, folder), as_json, out)
