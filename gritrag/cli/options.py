"""Options and arguments that several commands share, and what they do with them."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from gritrag import render
from gritrag.documents.text import TextOptions, check_options
from gritrag.folders import check_file, check_index

if TYPE_CHECKING:
    from gritrag import Document, GritModel, Index
    from gritrag.chunks import Cutting
    from gritrag.documents.sources import Skipped
    from gritrag.evaluate.suite import Result

KINDS = "text, code, .jsonl, .csv, .tsv, .parquet, .pdf, .docx, .pptx, .xlsx, .html, .epub"
Paths = Annotated[list[Path], typer.Argument(help=f"Files and folders: {KINDS}.", show_default=False)]
Places = Annotated[list[str], typer.Argument(help=f"Files and folders: {KINDS}; on Ray URLs too.", show_default=False)]
OptionalPaths = Annotated[list[Path] | None, typer.Argument(help=f"Files and folders: {KINDS}.", show_default=False)]
IndexFolder = Annotated[Path, typer.Option("--index", "-i", help="Folder of the index.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Built-in name, hub id, folder or .gguf file.")]
IndexModel = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Name or folder of the model, where the one that the index remembers has moved."
    ),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
ChunkSize = Annotated[int, typer.Option(help="Longer texts are cut into chunks of at most this many tokens.", min=1)]
ChunkOverlap = Annotated[int, typer.Option(help="Tokens that neighbouring chunks share.", min=0)]
Encoding = Annotated[str, typer.Option(help="Of text files that are not UTF-8: windows-1252, cp1251, shift_jis ...")]
TextColumn = Annotated[str, typer.Option(help="Column of rows (.jsonl, .csv ...) that is read, where it is not found.")]
Delimiter = Annotated[str, typer.Option(help="Of .csv files, where it is not found; tab for a tab.")]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="What reads: this process, or actors of Ray Data.")]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster; one of this machine's own if left out.")]
Actors = Annotated[
    int | None, typer.Option(help="On Ray: models that read at once; by default one for each GPU.", min=1)
]
TopK = Annotated[int, typer.Option("-k", help="Documents to find.", min=1)]
Where = Annotated[str, typer.Option(help='Metadata filter in JSON: \'{"year": {"$lt": 2000}}\'.')]
Mode = Annotated[str, typer.Option(help="doc-cache, doc-query, no-retrieval, or another of the seven modes.")]
RelevanceBias = Annotated[float, typer.Option(help="How much search scores guide answers from states; 0: not.", min=0)]
Rerank = Annotated[
    int | None, typer.Option(help="Candidates to rank by how probable each one's state makes the question.")
]
Recompute = Annotated[
    float, typer.Option(help="Share of the documents' tokens that is read again with all in sight: 0 to 1.")
]
UnanswerableAbove = Annotated[
    float | None,
    typer.Option(
        help="Reply 'not in the documents' where it is more probable than this that they do not say; 1: never. The "
        "checkpoint's own threshold if left out.",
        min=0,
        max=1,
    ),
]
Recomputes = Annotated[
    list[float] | None,
    typer.Option("--recompute", help="Also answer with this share of tokens read again; may be given several times."),
]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
Compare = Annotated[list[str] | None, typer.Option(help="Another model, on the same rows; minilm too, which embeds.")]
Instruction = Annotated[str | None, typer.Option(help="Read before each text; the checkpoint's own if left out.")]
Side = Annotated[str, typer.Option(help="Embed texts as a query or as a document.")]
Folder = Annotated[Path | None, typer.Option(help="Folder of rows and reports; below runs/bench if left out.")]
Out = Annotated[Path | None, typer.Option(help="Write command, facts and rows here, as JSON.", metavar="FILE.json")]
Geometry = Annotated[str, typer.Option(help="Random weights of this shape: qwen3-0.6b, llama3-8b, mistral-7b ...")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_INDEX = Path("indexes/default")
BENCHES = Path("runs/bench")
SHOWN = 200  # characters of what was typed, in a message


def part_of_extra(module: str, extra: str, what: str) -> Any:
    """A module of the package that not every installation can import.

    Args:
        module: its name below `gritrag`.
        extra: that brings what it needs.
        what: cannot be done without.

    Raises:
        ValueError: a library that the extra brings is missing.
    """
    from importlib import import_module

    try:
        return import_module(f"gritrag.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("gritrag"):
            raise  # that is our fault, and no extra helps
        library = error.name.partition(".")[0]
        raise ValueError(
            f"{what} needs {library}, which is not installed; run: pip install 'gritrag[{extra}]'"
        ) from error


def bench_part(name: str) -> Any:
    """A module of `gritrag.evaluate`; errors are those of `part_of_extra`."""
    return part_of_extra(f"evaluate.{name}", "eval", "evaluation")


def check_out(out: Path | None, inputs: Iterable[Path | None] = ()) -> None:
    """Raises ValueError where `--out` is not the name of a JSON file, is one of the inputs, or cannot be written."""
    if out is None:
        return
    if out.suffix != ".json":
        raise ValueError(f"--out takes the name of a .json file, not {out}")
    if out.exists() and any(out.samefile(path) for path in inputs if path is not None and path.exists()):
        raise ValueError(f"--out {out} is a file that is read; name another")
    check_file(out)


def tell(measure: "Callable[[], Result]", as_json: bool, out: Path | None, inputs: Iterable[Path | None] = ()) -> None:
    """Measure, print, and write the file, whose name is looked at before anything is measured.

    Raises:
        typer.Exit: the file could not be written; what was measured has been printed.
    """
    check_out(out, inputs)
    result = measure()
    typer.echo(result.json() if as_json else result.show())
    if out is not None:
        try:
            result.save(out)
        except OSError as error:
            typer.echo(f"error: {out} was not written: {error}", err=True)
            raise typer.Exit(2) from None


def named(model: str, dtype: str, device: str, seed: int) -> dict[str, Any]:
    """What every benchmark configuration begins with."""
    return {"model": model, "dtype": dtype, "device": device, "seed": seed}


def load_model(model: str, dtype: str = "auto", device: str = "auto") -> "GritModel":
    """A model by its name."""
    from gritrag import GritModel

    _hide_loading()
    return GritModel.from_pretrained(model, dtype=dtype, device=device)


def open_index(
    folder: Path,
    model: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    mode: Literal["r", "rw"] = "r",
) -> "Index":
    """An index with the model of that name, else with the one that it remembers."""
    check_index(folder)
    from gritrag import Index

    _hide_loading()
    return Index.open(folder, model=model, mode=mode, dtype=dtype, device=device)


def _hide_loading() -> None:
    """The bar of reading weights, which takes a second."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def condition_of(where: str) -> Mapping[str, Any] | None:
    """The filter that `--where` holds; None where it was left out."""
    try:
        condition = json.loads(where, parse_constant=_refuse, object_pairs_hook=_once) if where else None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"--where is not valid JSON ({error}): {where:.{SHOWN}}; write --where '{{\"year\": 1999}}', "
            "in single quotes"
        ) from None
    if where and not isinstance(condition, dict):
        raise ValueError(f'--where must be a JSON object such as {{"year": 1999}}, not {where:.{SHOWN}}')
    return condition


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two conditions of one name Python's JSON keeps the last, and a filter would match more than it says."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'{twice!r} stands there twice: join both, as in {{"year": {{"$gte": 1990, "$lt": 2000}}}}')
    return dict(pairs)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def show(record: Any, as_json: bool) -> None:
    """Print a record."""
    typer.echo(render.as_json(record) if as_json else render.as_lines(record))


def shows_bar(as_json: bool = False) -> bool:
    """Whether somebody sees a progress bar: at a terminal, and not where a program reads what is said."""
    return not as_json and sys.stderr.isatty()


def text_options(encoding: str, text_column: str, delimiter: str) -> TextOptions:
    """What the user says of text files."""
    return check_options(TextOptions(encoding, text_column, "\t" if delimiter in ("tab", "\\t") else delimiter))


def agree(question: str, yes: bool, otherwise: str) -> None:
    """Ask whether to go on. Where nobody can answer, nothing waits.

    Raises:
        ValueError: standard input is no terminal, and `yes` was not given.
        typer.Exit: the answer is no.
    """
    if yes:
        return
    if not is_asked():
        raise ValueError(f"{question}: pass --yes to go on, or {otherwise}")
    if not typer.confirm(f"{question}. Go on?", err=True):
        typer.echo(f"nothing was done; {otherwise}", err=True)
        raise typer.Exit(1)


def is_asked() -> bool:
    """Whether somebody sits before the terminal."""
    return sys.stdin.isatty()


def chunks_of(paths: Sequence[Path], model: "GritModel", cutting: "Cutting") -> "list[Document]":
    """Chunks of files; what was left out is said at once."""
    from gritrag.chunks import check_cutting, gather

    check_cutting(cutting, model.max_document_tokens)
    gathered = gather(paths, model.count_tokens, cutting)
    say_skipped(gathered.skipped)
    return gathered.chunks


def say_skipped(skipped: "Sequence[Skipped]") -> None:
    """Say what was left out, on the error stream."""
    from gritrag.chunks import skipped_lines

    for line in skipped_lines(skipped):
        typer.echo(line, err=True)
