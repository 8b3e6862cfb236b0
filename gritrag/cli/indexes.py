"""Commands over an index: fill it, ask it, look after it."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gritrag import render
from gritrag.cli.app import app
from gritrag.cli.options import (
    DEFAULT_INDEX,
    Device,
    Dtype,
    IndexFolder,
    Json,
    MaxNewTokens,
    MaxTokens,
    Mode,
    Model,
    Overlap,
    Paths,
    RelevanceBias,
    TopK,
    Where,
    chunks_of,
    gather,
    load_model,
    open_index,
    say_skipped,
    show,
)
from gritrag.config import DEFAULT_MODEL, RELEVANCE_BIAS

if TYPE_CHECKING:
    pass


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
    """Read files into an index. Run it again to resume or to update: what is unchanged is not read again.

    Files that cannot be read are listed at the end, with the reason, and stop nothing.
    """
    from gritrag.ingest import ingest, open_or_create

    reader = load_model(model, dtype, device)
    gathered = gather(paths, reader, max_tokens, overlap)
    with open_or_create(index, reader, states) as opened:
        show(ingest(opened, gathered.chunks)._replace(not_read=gathered.skipped), as_json)
    say_skipped(gathered)


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
    with open_index(index, load_model(model, dtype, device)) as opened:
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
    relevance_bias: RelevanceBias = RELEVANCE_BIAS,
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
    with open_index(index, load_model(model, dtype, device)) as opened:
        rag = RAG(opened, mode=mode, k=k, relevance_bias=relevance_bias)
        if as_json:
            typer.echo(render.as_json(rag.ask(question, where=condition, max_new_tokens=max_new_tokens)))
        else:
            _stream(rag.stream(question, where=condition, max_new_tokens=max_new_tokens))


@app.command()
def chat(
    index: IndexFolder = DEFAULT_INDEX,
    mode: Mode = "doc-cache",
    k: TopK = 5,
    relevance_bias: RelevanceBias = RELEVANCE_BIAS,
    max_new_tokens: MaxNewTokens = 128,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Answer question after question, each on its own, until an empty line or the end of the input."""
    from gritrag import RAG

    with open_index(index, load_model(model, dtype, device)) as opened:
        rag = RAG(opened, mode=mode, k=k, relevance_bias=relevance_bias)
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

    reader = load_model(model, dtype, device)
    show(Index.estimate(reader, chunks_of(paths, reader, max_tokens, overlap), states=states), as_json)


@app.command()
def stats(index: IndexFolder = DEFAULT_INDEX, as_json: Json = False) -> None:
    """Count what an index holds."""
    with open_index(index) as opened:
        show(opened.stats(), as_json)


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
    with open_index(index, load_model(model, dtype, device), "rw") if repair else open_index(index) as opened:
        checkup = opened.verify(repair=repair)
    show(checkup, as_json)
    if len(checkup.problems) > len(checkup.repaired):
        raise typer.Exit(1)


@app.command()
def copy(
    target: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    index: IndexFolder = DEFAULT_INDEX,
) -> None:
    """Copy an index as it is at one moment, without garbage; others may be writing it."""
    with open_index(index) as opened:
        opened.export(target)


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


def _stream(events: Iterator[Any]) -> None:
    for event in events:
        if event.text is not None:
            typer.echo(event.text, nl=False)
        elif event.answer is not None:
            typer.echo()
            typer.echo(render.footer(event.answer), err=True)
