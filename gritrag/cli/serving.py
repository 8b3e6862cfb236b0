"""The command that serves indexes over HTTP."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gritrag.cli.app import app
from gritrag.cli.options import Device, Dtype, Model, load_model, part_of_extra
from gritrag.config import DEFAULT_MODEL


def serve_part(name: str) -> Any:
    """A module of `gritrag.serve`; errors are those of `part_of_extra`."""
    return part_of_extra(f"serve.{name}", "serve", "gritrag serve")


@app.command()
def serve(
    indexes: Annotated[
        list[str] | None,
        typer.Argument(help="Folders of indexes, or NAME=FOLDER; new ones are made.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; those that others reach need keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="YAML file of API keys and their rights; or one in GRITRAG_API_KEY.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Write no index.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder of uploads and of stores that clients create; else a temporary one.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Answers that are generated at the same time.", min=1)] = 32,
    requests: Annotated[int, typer.Option(help="Requests that may wait; more are refused (429).", min=1)] = 256,
    trace: Annotated[bool, typer.Option("--trace", help="OpenTelemetry spans, to the SDK that is configured.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request ends with an error.", min=1)] = 300,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Serve indexes over HTTP: OpenAI's routes, /v1/rag, documents, and a page at /."""
    server, limits, tenants = serve_part("server"), serve_part("limits"), serve_part("tenants")
    known = tenants.load_tenants(keys, os.environ.get("GRITRAG_API_KEY", ""))
    served = [server.Served.of(each) for each in indexes or ()]
    bounds = limits.Limits(rows=rows, requests=requests, seconds=timeout)
    loaded = serve_part("threads").apart(partial(load_model, model, dtype, device))  # not by this thread, which stays
    service = server.make_service(loaded, Path(model).name, served, known, bounds, read_only, data)
    if trace:
        service.observer = part_of_extra("tracing", "otel", "--trace").Tracing(service.model_id)
    typer.echo(f"serving {', '.join(service.indexes) or 'no index'} on http://{host}:{port}", err=True)
    server.run(service, host, port)
