"""Commands that look after an index."""

from pathlib import Path
from typing import Annotated

import typer

from gritrag import render
from gritrag.cli.app import app
from gritrag.cli.options import (
    DEFAULT_INDEX,
    ChunkOverlap,
    ChunkSize,
    Device,
    Dtype,
    IndexFolder,
    Json,
    Model,
    OptionalPaths,
    Where,
    chunks_of,
    condition_of,
    load_model,
    open_index,
    show,
    shows_bar,
)
from gritrag.config import DEFAULT_MODEL


@app.command()
def estimate(
    paths: OptionalPaths = None,
    states: Annotated[str, typer.Option(help="How states would be stored: none, float32, bf16 ...")] = "int8",
    chunk_size: ChunkSize = 256,
    chunk_overlap: ChunkOverlap = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    plan: Annotated[
        bool,
        typer.Option("--plan", help="For 1M, 100M and 10B passages and three models, with formulas."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how large an index would become and how long building it would take."""
    if plan:
        from gritrag import capacity

        constants = capacity.measured()
        rows = capacity.plan(constants)
        text = render.as_json(capacity.as_record(constants, rows)) if as_json else capacity.render(constants, rows)
        typer.echo(text)
        return
    if not paths:
        raise ValueError("say which files or folders to index, or --plan for a plan on paper")
    from gritrag import Index
    from gritrag.chunks import Cutting

    reader = load_model(model, dtype, device)
    show(Index.estimate(reader, chunks_of(paths, reader, Cutting(chunk_size, chunk_overlap)), states=states), as_json)


@app.command()
def stats(index: IndexFolder = DEFAULT_INDEX, as_json: Json = False) -> None:
    """Count what an index holds."""
    with open_index(index) as opened:
        show(opened.stats(), as_json)


@app.command()
def verify(
    index: IndexFolder = DEFAULT_INDEX,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    as_json: Json = False,
) -> None:
    """Check every file of an index against its checksum. Exit code 1 if something is, and stays, damaged."""
    with open_index(index, mode="rw" if repair else "r") as opened:
        checkup = opened.verify(repair=repair, show_progress_bar=shows_bar(as_json))
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
        opened.export(target, show_progress_bar=shows_bar())


@app.command("list")
def list_documents(
    index: IndexFolder = DEFAULT_INDEX,
    where: Where = "",
    limit: Annotated[int | None, typer.Option(help="List at most so many documents.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """List the documents of an index, in the order in which they were stored: id, title and how the text begins."""
    with open_index(index) as opened:
        for id in opened.ids(condition_of(where))[:limit]:
            try:
                document = opened[id]
            except KeyError:  # another process has deleted it meanwhile
                continue
            typer.echo(render.as_json(document) if as_json else render.document_line(document))


@app.command()
def delete(
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of documents, as `gritrag list` shows them; without `#3` all chunks of one."),
    ] = None,
    index: IndexFolder = DEFAULT_INDEX,
    where: Where = "",
    as_json: Json = False,
) -> None:
    """Delete documents by id, by filter, or those that satisfy both; --where '{}' deletes every document."""
    from gritrag.index.sources import whole_ids

    if not ids and not where:
        raise ValueError(
            "say which documents: their ids, or a filter such as --where '{\"year\": 1999}' (--where '{}' deletes all)"
        )
    with open_index(index, mode="rw") as opened:
        deleted = opened.delete(ids=whole_ids(opened, ids) if ids else None, where=condition_of(where))
        show({"deleted": deleted, "documents": len(opened)}, as_json)


@app.command()
def compact(index: IndexFolder = DEFAULT_INDEX, as_json: Json = False) -> None:
    """Give the space of deleted documents back, remove files that belong to none, and say what is left."""
    with open_index(index, mode="rw") as opened:
        opened.compact(show_progress_bar=shows_bar(as_json))
        show({"documents": len(opened), "bytes": opened.stats()["bytes"]}, as_json)
