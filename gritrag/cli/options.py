"""Options and arguments that several commands share, and what they do with them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gritrag import render

if TYPE_CHECKING:
    from gritrag import Document, GritModel, Index
    from gritrag.evaluate.suite import Result
    from gritrag.ingest import Gathered

KINDS = "text, code, .jsonl, .csv, .pdf, .docx, .pptx, .xlsx, .html, .epub"
Paths = Annotated[list[Path], typer.Argument(help=f"Files and folders: {KINDS}.", show_default=False)]
IndexFolder = Annotated[Path, typer.Option("--index", "-i", help="Folder of the index.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Built-in name, hub id, folder or .gguf file.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
MaxTokens = Annotated[int, typer.Option(help="Longer texts are cut into chunks of at most this many tokens.", min=1)]
Overlap = Annotated[int, typer.Option(help="Tokens that neighbouring chunks share.", min=0)]
TopK = Annotated[int, typer.Option("-k", help="Documents to find.", min=1)]
Where = Annotated[str, typer.Option(help='Metadata filter in JSON: \'{"year": {"$lt": 2000}}\'.')]
Mode = Annotated[str, typer.Option(help="doc-cache, doc-query, no-retrieval, or another of the seven modes.")]
RelevanceBias = Annotated[float, typer.Option(help="Of scores of the search in an answer from states.", min=0)]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
Compare = Annotated[list[str] | None, typer.Option(help="Another model, on the same rows; minilm too, which embeds.")]
Instruction = Annotated[str | None, typer.Option(help="Read before each text; the checkpoint's own if left out.")]
Side = Annotated[str, typer.Option(help="Embed texts as a query or as a document.")]
Folder = Annotated[Path | None, typer.Option(help="Of rows and reports, resumed; below runs/bench if left out.")]
Out = Annotated[Path | None, typer.Option(help="Write command, facts and rows here, as JSON.", metavar="FILE.json")]
Geometry = Annotated[str, typer.Option(help="Random weights of this shape: qwen3-0.6b, llama3-8b, mistral-7b ...")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_INDEX = Path("indexes/default")
BENCHES = Path("runs/bench")


def bench_part(name: str) -> Any:
    """A module of `gritrag.evaluate`; what it lacks is told in one line."""
    from importlib import import_module

    try:
        return import_module(f"gritrag.evaluate.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error


def tell(measure: "Callable[[], Result]", as_json: bool, out: Path | None) -> None:
    """Measure, print, and write the file, whose name is looked at before anything is measured."""
    if out is not None and out.suffix != ".json":
        raise ValueError(f"--out takes the name of a .json file, not {out}")
    result = measure()
    if out is not None:
        result.save(out)
    typer.echo(result.json() if as_json else result.show())


def named(model: str, dtype: str, device: str, seed: int) -> dict[str, Any]:
    """What every benchmark configuration begins with."""
    return {"model": model, "dtype": dtype, "device": device, "seed": seed}


def load_model(model: str, dtype: str = "auto", device: str = "auto") -> "GritModel":
    from transformers.utils import logging

    from gritrag import GritModel

    logging.disable_progress_bar()  # of reading weights, which takes a second
    return GritModel.from_pretrained(model, dtype=dtype, device=device)


def open_index(folder: Path, model: "GritModel | None" = None, mode: Literal["r", "rw"] = "r") -> "Index":
    from gritrag import Index

    return Index.open(folder, model=model, mode=mode)


def show(record: Any, as_json: bool) -> None:
    typer.echo(render.as_json(record) if as_json else render.as_lines(record))


def chunks_of(paths: Sequence[Path], model: "GritModel", max_tokens: int, overlap: int) -> "list[Document]":
    """Chunks of files; what was left out is said at once."""
    gathered = gather(paths, model, max_tokens, overlap)
    say_skipped(gathered)
    return gathered.chunks


def gather(paths: Sequence[Path], model: "GritModel", max_tokens: int, overlap: int) -> "Gathered":
    from gritrag.ingest import read_chunks

    return read_chunks(paths, model, max_tokens, overlap)


def say_skipped(gathered: "Gathered") -> None:
    from gritrag.ingest import skipped_lines

    for line in skipped_lines(gathered.skipped):
        typer.echo(line, err=True)
