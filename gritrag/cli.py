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


app = typer.Typer(cls=CleanErrors, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
bench = typer.Typer(no_args_is_help=True, help="Measure.")
app.add_typer(bench, name="bench")

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
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_INDEX = Path("indexes/default")


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


@app.command("eval")
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
    compare: Annotated[str, typer.Option(help="A second model, on the same questions and contexts.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write every answer and its scores here, as JSONL.")] = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score retrieval, and answers from text and from states, on a file of questions."""
    try:
        from gritrag.bench import quality
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    setting = quality.Setting(questions, documents, distractors, k, states, max_new_tokens, seed, only)
    typer.echo(quality.main(path, model, compare, dtype, device, as_json, setting, out))


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
