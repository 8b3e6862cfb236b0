"""The command that offers an index to agents, by the Model Context Protocol."""

from pathlib import Path
from typing import Annotated

import typer

from gritrag.cli.app import app
from gritrag.cli.options import Device, Dtype, IndexModel, RelevanceBias, UnanswerableAbove, open_index, part_of_extra
from gritrag.config import RELEVANCE_BIAS


@app.command()
def mcp(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    http: Annotated[
        bool, typer.Option("--http", help="Streamable HTTP on 127.0.0.1 instead of standard input.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of --http.", min=1, max=65535)] = 8001,
    write: Annotated[bool, typer.Option("--write", help="Offer the tools `add` and `delete` too.")] = False,
    relevance_bias: RelevanceBias = RELEVANCE_BIAS,
    unanswerable_above: UnanswerableAbove = None,
    model: IndexModel = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Offer an index to agents (MCP): search, ask and list; add and delete with --write."""
    make_server = part_of_extra("mcp", "mcp", "gritrag mcp").make_server
    with open_index(index, model, dtype, device, "rw" if write else "r") as opened:
        server = make_server(opened, write, relevance_bias=relevance_bias, unanswerable_above=unanswerable_above)
        if http:
            typer.echo(f"serving {index} on http://127.0.0.1:{port}/mcp", err=True)
            server.run("streamable-http", host="127.0.0.1", port=port)
        else:
            server.run("stdio")
