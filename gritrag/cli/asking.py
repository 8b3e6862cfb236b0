"""Commands that ask an index: search, ask, chat."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from gritrag import render
from gritrag.cli.app import app
from gritrag.cli.options import (
    DEFAULT_INDEX,
    Device,
    Dtype,
    IndexFolder,
    IndexModel,
    Json,
    MaxNewTokens,
    Mode,
    Recompute,
    RelevanceBias,
    Rerank,
    TopK,
    UnanswerableAbove,
    Where,
    condition_of,
    open_index,
)
from gritrag.config import RELEVANCE_BIAS, SEARCH_MODE


@app.command()
def search(
    question: str,
    index: IndexFolder = DEFAULT_INDEX,
    k: TopK = 5,
    mode: Annotated[str, typer.Option(help="dense, sparse or hybrid.")] = SEARCH_MODE,
    rerank: Rerank = None,
    where: Where = "",
    model: IndexModel = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find documents."""
    condition = condition_of(where)
    with open_index(index, model, dtype, device) as opened:
        hits = opened.search(question, k=k, mode=mode, where=condition, rerank=rerank)
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
    rerank: Rerank = None,
    recompute: Recompute = 0.0,
    unanswerable_above: UnanswerableAbove = None,
    where: Where = "",
    max_new_tokens: MaxNewTokens = 128,
    model: IndexModel = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer one question from an index, token by token; sources and times go to the error stream."""
    from gritrag import RAG

    condition = condition_of(where)
    with open_index(index, model, dtype, device) as opened:
        rag = RAG(opened, mode, k, SEARCH_MODE, relevance_bias, recompute, rerank, unanswerable_above)
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
    rerank: Rerank = None,
    recompute: Recompute = 0.0,
    unanswerable_above: UnanswerableAbove = None,
    max_new_tokens: MaxNewTokens = 128,
    model: IndexModel = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Answer question after question, each on its own, until an empty line or the end of the input. One that cannot be
    answered is told, and the next one is asked for."""
    from gritrag import RAG

    with open_index(index, model, dtype, device) as opened:
        rag = RAG(opened, mode, k, SEARCH_MODE, relevance_bias, recompute, rerank, unanswerable_above)
        while question := _next_question():
            try:
                _stream(rag.stream(question, max_new_tokens=max_new_tokens))
            except ValueError as error:
                typer.echo(f"not answered: {error}", err=True)


def _next_question() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def is_terminal() -> bool:
    """Whether somebody reads the answer on a screen; a program gets it as it is."""
    return sys.stdout.isatty()


def _stream(events: Iterator[Any]) -> None:
    for event in events:
        if event.text is not None:
            typer.echo(render.harmless(event.text) if is_terminal() else event.text, nl=False)
        elif event.answer is not None:
            typer.echo()
            typer.echo(render.footer(event.answer), err=True)
