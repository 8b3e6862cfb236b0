"""The command line. Heavy imports stand inside the commands, so that `gritrag --help` is instant."""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from gritrag import render
from gritrag.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from gritrag import Document, GritModel, Index


class CleanErrors(TyperGroup):
    """What the user did wrong is said in one line, without a traceback; anything else is our bug and keeps its own."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `gritrag search ... | head`: nobody is left to tell
        except (ValueError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None


class Evaluations(TyperGroup):
    """`gritrag eval FILE` is short for `gritrag eval questions FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_short = bool(args) and args[0] not in (*self.commands, "--help")
        return super().parse_args(ctx, ["questions", *args] if is_short else args)


app = typer.Typer(cls=CleanErrors, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
bench = typer.Typer(no_args_is_help=True, help="Measure.")
app.add_typer(bench, name="bench")
evaluation = typer.Typer(cls=Evaluations, no_args_is_help=True, help="Score retrieval, answers, vectors and attention.")
app.add_typer(evaluation, name="eval")

Paths = Annotated[list[Path], typer.Argument(help="Files and folders: .txt .md .jsonl .csv.", show_default=False)]
IndexFolder = Annotated[Path, typer.Option("--index", "-i", help="Folder of the index.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Built-in name, hub id, folder or .gguf file.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
MaxTokens = Annotated[int, typer.Option(help="Longer texts are cut into chunks of at most this many tokens.", min=1)]
Overlap = Annotated[int, typer.Option(help="Tokens that neighbouring chunks share.", min=0)]
TopK = Annotated[int, typer.Option("-k", help="Documents to find.", min=1)]
Where = Annotated[str, typer.Option(help='Metadata filter in JSON: \'{"year": {"$lt": 2000}}\'.')]
Mode = Annotated[str, typer.Option(help="no-retrieval, doc-query or doc-cache.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
Compare = Annotated[list[str] | None, typer.Option(help="Another model, on the same rows; minilm too, which embeds.")]
Instruction = Annotated[str | None, typer.Option(help="Read before each text; the checkpoint's own if left out.")]
Side = Annotated[str, typer.Option(help="Embed texts as a query or as a document.")]
Out = Annotated[Path | None, typer.Option(help="Folder of results and reports; below runs/bench if left out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_INDEX = Path("indexes/default")
BENCHES = Path("runs/bench")


@app.callback()
def main(debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False) -> None:
    """Retrieval-augmented generation with one language model that reads every document once."""


@app.command()
def index(
    paths: Paths,
    index: IndexFolder = DEFAULT_INDEX,
    states: Annotated[
        str | None, typer.Option(help="How to store states in a new index: none, float32, bf16 ...")
    ] = None,
    max_tokens: MaxTokens = 256,
    overlap: Overlap = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Read files into an index. Run it again to resume or to update: what is unchanged is not read again."""
    from gritrag.ingest import ingest, open_or_create

    reader = _load(model, dtype, device)
    chunks = _chunks(paths, reader, max_tokens, overlap)
    with open_or_create(index, reader, states) as opened:
        _show(ingest(opened, chunks), as_json)


@app.command()
def search(
    question: str,
    index: IndexFolder = DEFAULT_INDEX,
    k: TopK = 5,
    mode: Annotated[str, typer.Option(help="dense, sparse or hybrid.")] = "hybrid",
    where: Where = "",
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find documents."""
    condition = _condition(where)
    with _open(index, _load(model, dtype, device)) as opened:
        hits = opened.search(question, k=k, mode=mode, where=condition)
    if not hits and not as_json:
        typer.echo("no document matches", err=True)
    else:
        typer.echo(render.as_json(hits) if as_json else "\n".join(map(render.hit_line, hits)))


@app.command()
def ask(
    question: str,
    index: IndexFolder = DEFAULT_INDEX,
    mode: Mode = "doc-cache",
    k: TopK = 5,
    where: Where = "",
    max_new_tokens: MaxNewTokens = 128,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer one question from an index, token by token; sources and times go to the error stream."""
    from gritrag import RAG

    condition = _condition(where)
    with _open(index, _load(model, dtype, device)) as opened:
        rag = RAG(opened, mode=mode, k=k)
        if as_json:
            typer.echo(render.as_json(rag.ask(question, where=condition, max_new_tokens=max_new_tokens)))
        else:
            _stream(rag.stream(question, where=condition, max_new_tokens=max_new_tokens))


@app.command()
def chat(
    index: IndexFolder = DEFAULT_INDEX,
    mode: Mode = "doc-cache",
    k: TopK = 5,
    max_new_tokens: MaxNewTokens = 128,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Answer question after question, each on its own, until an empty line or the end of the input."""
    from gritrag import RAG

    with _open(index, _load(model, dtype, device)) as opened:
        rag = RAG(opened, mode=mode, k=k)
        while question := _next_question():
            _stream(rag.stream(question, max_new_tokens=max_new_tokens))


@app.command()
def estimate(
    paths: Paths,
    states: Annotated[str, typer.Option(help="How states would be stored: none, float32, bf16 ...")] = "bf16",
    max_tokens: MaxTokens = 256,
    overlap: Overlap = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say how large an index would become and how long building it would take."""
    from gritrag import Index

    reader = _load(model, dtype, device)
    _show(Index.estimate(reader, _chunks(paths, reader, max_tokens, overlap), states=states), as_json)


@app.command()
def stats(index: IndexFolder = DEFAULT_INDEX, as_json: Json = False) -> None:
    """Count what an index holds."""
    with _open(index) as opened:
        _show(opened.stats(), as_json)


@app.command()
def verify(
    index: IndexFolder = DEFAULT_INDEX,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended; this needs the model.")] = False,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Check every file of an index against its checksum. Exit code 1 if something is, and stays, damaged."""
    with _open(index, _load(model, dtype, device), "rw") if repair else _open(index) as opened:
        checkup = opened.verify(repair=repair)
    _show(checkup, as_json)
    if len(checkup.problems) > len(checkup.repaired):
        raise typer.Exit(1)


@app.command()
def copy(
    target: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    index: IndexFolder = DEFAULT_INDEX,
) -> None:
    """Copy an index as it is at one moment, without garbage; others may be writing it."""
    with _open(index) as opened:
        opened.export(target)


@app.command()
def doctor(
    folder: Annotated[Path, typer.Option(help="Where indexes are kept.")] = Path("indexes"),
    model: Annotated[str, typer.Option("--model", "-m", help="Probe this model too.")] = "",
    as_json: Json = False,
) -> None:
    """Say what this machine, this installation and a model can do. Exit code 1 if something is broken."""
    from gritrag.doctor import examine, examine_model

    findings = examine(folder) + (examine_model(_load(model)) if model else [])
    typer.echo(render.as_json(findings) if as_json else "\n".join(map(str, findings)))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    questions: Annotated[int, typer.Option(help="How many of the demo's questions to ask.", min=1)] = 6,
    index: Annotated[Path | None, typer.Option("--index", "-i", help="Keep the index here.")] = None,
    k: TopK = 5,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Index sixty invented passages and answer questions from their text and from their states, side by side."""
    from gritrag.demo import run

    say = (lambda line: None) if as_json else typer.echo
    with tempfile.TemporaryDirectory(prefix="gritrag-demo-") as temporary:
        report = run(index or Path(temporary), _load(model, dtype, device), questions, k, say)
    if as_json:
        typer.echo(render.as_json(report))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="YAML file, such as configs/default.yaml.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A setting to change: lr=1e-4.")] = None,
) -> None:
    """Train a recipe. The same command resumes a run that was stopped."""
    try:
        from gritrag.train import loop
    except ModuleNotFoundError as error:
        raise ValueError(f"training needs {error.name}; run: pip install 'gritrag[train]'") from error
    checkpoint = loop.main(recipe, overrides or ())
    typer.echo(checkpoint or "stopped before the end; run the same command again to go on")


@app.command()
def mine(
    path: Annotated[Path, typer.Argument(help="JSONL of questions with their passages and answers.")],
    out: Annotated[Path, typer.Argument(help="The same rows, with negatives, to train on.")],
    negatives: Annotated[int, typer.Option(help="For each question, at most.", min=1)] = 4,
    depth: Annotated[int, typer.Option(help="Passages to look at for each question.", min=1)] = 30,
    margin: Annotated[float, typer.Option(help="Share by which a negative is less similar than the passage.")] = 0.05,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Give questions hard negatives: passages that a search finds near their own, and that do not answer them."""
    from gritrag.mine import mine as mined

    _show(mined(path, out, _load(model, dtype, device), negatives, depth, margin), as_json)


@app.command()
def calibrate(
    paths: Paths,
    out: Annotated[Path, typer.Option(help="File to write; index with --states transform:FILE.")],
    max_tokens: MaxTokens = 200,
    overlap: Overlap = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Fit the codec `transform` to a model, on documents such as will be indexed."""
    from gritrag.train.calibrate import calibrate

    loaded = _load(model, dtype, device)
    calibration = calibrate(loaded, _chunks(paths, loaded, max_tokens, overlap))
    calibration.save(out)
    size = calibration.bytes_per_token(loaded.state_elements_per_token)
    typer.echo(f"{out}: {size:,.0f} bytes per token; index with --states transform:{out}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Built-in name, hub id, folder or .gguf file.")],
    folder: Annotated[Path, typer.Argument(help="New or empty.")],
    dtype: Dtype = "auto",
) -> None:
    """Write a model, its adapter merged, as sentence-transformers loads it, for the same vectors."""
    from gritrag.export import to_sentence_transformers

    typer.echo(to_sentence_transformers(_load(model, dtype, "cpu"), folder))


@evaluation.command("questions")
def evaluate(
    path: Annotated[Path, typer.Argument(help="JSONL of questions with their passages and answers.")],
    questions: Annotated[int, typer.Option(help="Questions to answer.", min=1)] = 50,
    documents: Annotated[int, typer.Option(help="Distinct passages to search in, at most.", min=1)] = 300,
    distractors: Annotated[int, typer.Option(help="Passages beside the right one in a context.", min=0)] = 4,
    k: TopK = 5,
    states: Annotated[str, typer.Option(help="How states are stored.")] = "bf16",
    max_new_tokens: MaxNewTokens = 32,
    seed: Annotated[int, typer.Option(help="Of distractors, their order and resamples.")] = 0,
    only: Annotated[str, typer.Option(help="retrieval or answers; both if left out.")] = "",
    compare: Annotated[
        list[str] | None, typer.Option(help="Another model, on the same questions and contexts.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write every answer and its scores here, as JSONL.")] = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score retrieval, and answers from text and from states, on a file of questions."""
    quality = _bench_part("quality")
    setting = quality.Setting(questions, documents, distractors, k, states, max_new_tokens, seed, only)
    typer.echo(quality.main(path, model, compare or (), dtype, device, as_json, setting, out))


@evaluation.command("embedding")
def evaluate_embedding(
    paths: Annotated[list[Path], typer.Argument(help="JSONL of texts with labels, sentence pairs, or questions.")],
    train: Annotated[Path | None, typer.Option(help="Labelled texts that a probe learns from, to classify.")] = None,
    rows: Annotated[int, typer.Option(help="Texts or pairs of a file, at most.", min=2)] = 1000,
    documents: Annotated[int, typer.Option(help="Distinct passages to search in, at most.", min=1)] = 300,
    shots: Annotated[int, typer.Option(help="Texts per label that a probe learns from.", min=1)] = 16,
    clusterings: Annotated[int, typer.Option(help="Each of another sample of the texts.", min=2)] = 20,
    instruction: Instruction = None,
    side: Side = "query",
    seed: Annotated[int, typer.Option(help="Of samples, of k-means and of resamples.")] = 0,
    compare: Compare = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score vectors by clustering, classification, STS and retrieval, beside BM25 and other encoders."""
    embedding = _bench_part("embedding")
    setting = embedding.Setting(rows, documents, shots, clusterings, instruction, side, seed)
    typer.echo(embedding.main(paths, train, model, compare or (), dtype, device, as_json, setting))


@evaluation.command("attention")
def evaluate_attention(
    path: Annotated[Path, typer.Argument(help="JSONL of texts with labels, sentence pairs, or questions.")],
    texts: Annotated[int, typer.Option(help="Texts of the file, at most.", min=1)] = 64,
    instruction: Instruction = None,
    side: Side = "query",
    seed: Annotated[int, typer.Option(help="Of resamples.")] = 0,
    before: Annotated[str, typer.Option(help="Model before training; the base of the adapter if left out.")] = "",
    out: Annotated[Path | None, typer.Option(help="Draw the shares of every layer here, as SVG.")] = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say how much the pooled position looks at prompt, content and itself, before and after training."""
    attention = _bench_part("attention")
    setting = attention.Setting(texts, side, instruction, seed)
    typer.echo(attention.main(path, model, before, out, dtype, device, as_json, setting))


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
    from gritrag.bench import latency

    setting = latency.Setting(documents, tokens, states, repetitions)
    typer.echo(latency.main(model, dtype, device, as_json, setting))


@bench.command("reading")
def reading(
    model: Model = DEFAULT_MODEL, dtype: Dtype = "auto", device: Device = "auto", as_json: Json = False
) -> None:
    """What a read pass costs against an embedding pass, and that against a bare forward."""
    from gritrag.bench import reading

    typer.echo(reading.main(model, dtype, device, as_json))


@bench.command("codecs")
def codecs(
    questions_file: Annotated[Path, typer.Option(help="JSONL rows of question, passage, answers.")],
    codec: Annotated[list[str] | None, typer.Option(help="Compared with bf16; may be given several times.")] = None,
    questions: Annotated[int, typer.Option(help="Questions to answer.", min=1)] = 60,
    documents: Annotated[int, typer.Option(help="Documents that distractors are drawn from.", min=1)] = 300,
    repetitions: Annotated[int, typer.Option(help="Rounds, after one to warm up.", min=1)] = 9,
    seed: Annotated[int, typer.Option(help="Of distractors, their order, and resamples.")] = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Bytes, error, time and answers of each way to store states, beside bf16."""
    codecs = _bench_part("codecs")
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
    from gritrag.bench import decoding

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
    settings, run = _bench_part("config"), _bench_part("run")
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
    settings, run = _bench_part("config"), _bench_part("run")
    quality = {"file": file, "questions": questions, "documents": sorted({1, k}), "codecs": [states]}
    quality |= {"context": context, "new_tokens": max_new_tokens}
    asked = settings.BenchConfig.model_validate({**_named(model, dtype, device, seed), "quality": quality})
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
    settings, run = _bench_part("config"), _bench_part("run")
    stream = {"requests": requests, "documents": documents, "tokens": tokens, "k": k, "mode": mode, "codec": states}
    stream |= {"quota": quota, "window": window}
    asked = settings.BenchConfig.model_validate({**_named(model, dtype, device, seed), "steady": stream})
    typer.echo(run.main(asked, out or BENCHES / "steady", as_json))


@bench.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="Holds results.jsonl.")],
    readme: Annotated[Path | None, typer.Option(help="Put its tables between the bench markers of this file.")] = None,
    as_json: Json = False,
) -> None:
    """Write report.md and report.html of a folder anew, from its results.jsonl alone."""
    typer.echo(_bench_part("run").show(folder, as_json))
    if readme is not None:
        _bench_part("full_report").write_readme(folder, readme)


def _bench_part(name: str) -> Any:
    """A module of `gritrag.bench`; what it lacks is told in one line."""
    from importlib import import_module

    try:
        return import_module(f"gritrag.bench.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error


def _named(model: str, dtype: str, device: str, seed: int) -> dict[str, Any]:
    """What every benchmark configuration begins with."""
    return {"model": model, "dtype": dtype, "device": device, "seed": seed}


def _load(model: str, dtype: str = "auto", device: str = "auto") -> "GritModel":
    from transformers.utils import logging

    from gritrag import GritModel

    logging.disable_progress_bar()  # of reading weights, which takes a second
    return GritModel.from_pretrained(model, dtype=dtype, device=device)


def _open(folder: Path, model: "GritModel | None" = None, mode: Literal["r", "rw"] = "r") -> "Index":
    from gritrag import Index

    return Index.open(folder, model=model, mode=mode)


def _chunks(paths: Sequence[Path], model: "GritModel", max_tokens: int, overlap: int) -> "list[Document]":
    from gritrag.ingest import read_chunks

    return read_chunks(paths, model, max_tokens, overlap, lambda line: typer.echo(line, err=True))


def _condition(where: str) -> Mapping[str, Any] | None:
    try:
        condition = json.loads(where) if where else None
    except ValueError as error:
        raise ValueError(f"--where is not valid JSON ({error}): {where}") from None
    if condition is not None and not isinstance(condition, dict):
        raise ValueError(f'--where must be a JSON object such as {{"year": 1999}}, not {where}')
    return condition


def _next_question() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _stream(events: "Iterator[Any]") -> None:
    for event in events:
        if event.text is not None:
            typer.echo(event.text, nl=False)
        elif event.answer is not None:
            typer.echo()
            typer.echo(render.footer(event.answer), err=True)


def _show(record: Any, as_json: bool) -> None:
    typer.echo(render.as_json(record) if as_json else render.as_lines(record))


@bench.command("recipes")
def recipes(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/compare-recipes.yaml.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A setting to change: tokens=3000.")] = None,
    as_json: Json = False,
) -> None:
    """Train recipes at equal budget, judge their vectors, answers and attention. The same command goes on."""
    compared = _bench_part("recipes")
    typer.echo(compared.main(config, overrides or (), as_json, lambda line: typer.echo(line, err=True)))


@bench.command("training")
def training(
    base: Annotated[str, typer.Option(help="Model to train.")] = "smollm2-135m",
    steps: Annotated[int, typer.Option(help="Of training, each in both ways.", min=1)] = 4,
    tokens: Annotated[int, typer.Option(help="Of documents and queries in a step.", min=1)] = 1200,
    as_json: Json = False,
) -> None:
    """Compare read-once training with two separate streams, in examples per second."""
    from gritrag.bench import training

    typer.echo(training.main(as_json, training.Setting(base=base, steps=steps, tokens_per_step=tokens)))
