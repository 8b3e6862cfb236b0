"""The command that reads files into an index."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gritrag.cli.app import app
from gritrag.cli.options import (
    DEFAULT_INDEX,
    Actors,
    Address,
    Delimiter,
    Device,
    Dtype,
    Encoding,
    Engine,
    IndexFolder,
    IndexModel,
    Json,
    Places,
    TextColumn,
    agree,
    load_model,
    open_index,
    part_of_extra,
    say_skipped,
    show,
    text_options,
)
from gritrag.config import DEFAULT_MODEL
from gritrag.documents.sources import Listing, list_sources
from gritrag.documents.text import TextOptions
from gritrag.folders import is_index
from gritrag.progress import ReadingBar

if TYPE_CHECKING:
    from gritrag import GritModel, Index
    from gritrag.chunks import Cutting, FileChunks
    from gritrag.forecast import Forecast
    from gritrag.ingest import Ingested, Known

ASK_SECONDS, ASK_BYTES, ASK_SHARE = 600, 10e9, 0.5
"""What takes longer, or more bytes, or more of the free disk, is asked about."""
INTERRUPTED = 130


class Storing(NamedTuple):
    """The folder of an index, and what was asked for of a new one."""

    folder: Path
    states: str | None
    state_quota: str | int | None
    states_at: str | None
    vectors_at: str | None

    def chosen(self, known: "Known", expected: "Forecast") -> "Storing":
        """With what was not asked for of a new index as it fits on the disk."""
        if known.is_there:
            return self
        return self._replace(states=expected.codec, state_quota=expected.quota)


@app.command()
def index(
    paths: Places,
    index: IndexFolder = DEFAULT_INDEX,
    states: Annotated[
        str | None,
        typer.Option(help="How to store states in a new index: none, float32, bf16, int8 (default), int4 ..."),
    ] = None,
    state_quota: Annotated[
        str | None, typer.Option(help="Most bytes of states of a new index, such as 20GB: the hot part stays.")
    ] = None,
    states_at: Annotated[
        str | None, typer.Option(help="URL of object storage for the states of a new index: s3://bucket/notes")
    ] = None,
    vectors_at: Annotated[
        str | None, typer.Option(help="URL of a Qdrant server for the vectors of a new index.")
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(help="Longer texts are cut into chunks of at most this many tokens: 256, or as before.", min=1),
    ] = None,
    chunk_overlap: Annotated[
        int | None, typer.Option(help="Tokens that neighbouring chunks share: 0, or as before.", min=0)
    ] = None,
    encoding: Encoding = "",
    text_column: TextColumn = "",
    delimiter: Delimiter = "",
    root: Annotated[
        Path | None,
        typer.Option(help="The folder below which files are named, where it is now; found out where left out."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Store nothing if a file, or a part of one, cannot be read.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, and go on.")] = False,
    engine: Engine = "local",
    address: Address = None,
    actors: Actors = None,
    model: IndexModel = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Read files into an index. Run it again to resume or to update: what is unchanged is not read again.

    Says first how many tokens, bytes and minutes it will take, and asks where that is much. Files that cannot be read
    are listed at the end, each with the reason and what to do, and stop nothing.
    """
    on_ray = _ray(strict) if engine == "ray" else None
    listing = on_ray.list_places(paths) if on_ray else list_sources(paths)
    storing = Storing(index, states, state_quota, states_at, vectors_at)
    with _resumable(index):
        with _first_bar(listing, "looking at the index"):
            from gritrag.ingest import look

            known = look(index)
            listing = Listing(known.roots.place(listing.sources, root), listing.skipped)
        for old, new in known.roots.moved:
            typer.echo(f"{old} is now {new}: its documents go on", err=True)
        cutting = _cutting(known, chunk_size, chunk_overlap, text_options(encoding, text_column, delimiter))
        _ask_about_cutting(known, cutting, index, yes)
        if on_ray:
            reader = _reader(known, index, model, dtype, device, cutting)
            cluster = on_ray.Cluster(address, actors)
            report = _built_on_ray(on_ray, known, reader, listing, cutting, storing, cluster, (dtype, device))
        else:
            with _first_bar(listing, "loading the model, and looking at a sample of the files"):
                reader = _reader(known, index, model, dtype, device, cutting)
                parts = _readable(known, reader, paths, listing, cutting, strict)
                expected = _expected(known, reader, listing, cutting, storing)
            _announce(expected, yes)
            report = _built_here(known, reader, listing, cutting, storing.chosen(known, expected), parts)
    _tell(report, as_json)


def _built_here(
    known: "Known",
    reader: "GritModel",
    listing: Listing,
    cutting: "Cutting",
    storing: Storing,
    parts: "Iterable[FileChunks]",
) -> "Ingested":
    """What this process has read, a few chunks at a time."""
    from gritrag.ingest import Ingestion

    with (
        _opened(known, reader, cutting, storing) as opened,
        ReadingBar(_bytes(listing), len(listing.sources)) as bar,
    ):
        report = Ingestion(opened, listing.sources).run(parts, bar)
    return report._replace(not_read=[*listing.skipped, *report.not_read])


def _built_on_ray(
    on_ray: Any,
    known: "Known",
    reader: "GritModel",
    listing: Listing,
    cutting: "Cutting",
    storing: Storing,
    cluster: Any,
    loaded_as: tuple[str, str],
) -> "Ingested":
    """What a cluster has read with the model in a dtype and on a device."""
    from gritrag.ingest import Ingested, refuse_other_documents

    with _opened(known, reader, cutting, storing) as opened:
        refuse_other_documents(opened, listing.sources)
        built = on_ray.add_files(opened, listing, cutting, cluster, *loaded_as, known.roots)
        counts = {**built.report._asdict(), "removed": built.removed, "documents": len(opened)}
    return Ingested(**counts, not_read=built.skipped)


@contextmanager
def _opened(known: "Known", reader: "GritModel", cutting: "Cutting", storing: Storing) -> "Iterator[Index]":
    """The index to write into, which notes how its documents are cut and where they are from."""
    from gritrag.ingest import check_unwritten, note_cutting, note_roots, open_or_create

    folder, states, quota, states_at, vectors_at = storing
    with open_or_create(folder, reader, states, states_at, vectors_at, quota) as opened:
        check_unwritten(opened, known)
        note_cutting(opened, cutting)
        note_roots(opened, known.roots)
        yield opened


def _ray(strict: bool) -> Any:
    """The module that indexes on Ray."""
    if strict:
        raise ValueError("--strict looks at all files before it stores one, which Ray does not: leave it out")
    return part_of_extra("index.ray", "ray", "--engine ray")


def _tell(record: "Ingested", as_json: bool) -> None:
    show(record if as_json else {**record._asdict(), "not_read": len(record.not_read)}, as_json)  # lines follow
    say_skipped(record.not_read)


@contextmanager
def _resumable(index: Path) -> Iterator[None]:
    """Whoever stops it is told how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        stored = "What was read is stored, and is not read again" if is_index(index) else "Nothing was stored yet"
        typer.echo(f"\nstopped. {stored}: give the same command to go on.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _first_bar(listing: Listing, what: str) -> ReadingBar:
    """Something to see from the first second, while libraries and weights are loaded."""
    bar = ReadingBar(1, len(listing.sources), leaves=False)
    bar.say(what)
    return bar


def _cutting(known: "Known", chunk_size: int | None, chunk_overlap: int | None, text: TextOptions) -> "Cutting":
    """What was asked for; else as the index was cut before; else as any is."""
    from gritrag.chunks import Cutting

    before = known.cutting or Cutting()
    return Cutting(
        before.chunk_size if chunk_size is None else chunk_size,
        before.overlap if chunk_overlap is None else chunk_overlap,
        TextOptions(*(new or old for new, old in zip(text, before.text, strict=True))),
    )


def _ask_about_cutting(known: "Known", cutting: "Cutting", index: Path, yes: bool) -> None:
    before = known.cutting
    if before is None or before[:2] == cutting[:2]:
        return
    agree(
        f"{index} was cut into chunks of {before.chunk_size} tokens (overlap {before.overlap}); with chunks of "
        f"{cutting.chunk_size} (overlap {cutting.overlap}) all that is given is read again",
        yes,
        "leave --chunk-size and --chunk-overlap out to go on as before",
    )
    known.files.clear()


def _reader(known: "Known", index: Path, model: str | None, dtype: str, device: str, cutting: "Cutting") -> "GritModel":
    from gritrag.chunks import check_cutting
    from gritrag.ingest import model_of

    if known.is_there:
        with open_index(index, model, dtype, device) as opened:
            reader = model_of(opened)
    else:
        reader = load_model(model or DEFAULT_MODEL, dtype, device)
    check_cutting(cutting, reader.max_document_tokens)
    return reader


def _readable(
    known: "Known", reader: "GritModel", paths: Sequence[str], listing: Listing, cutting: "Cutting", strict: bool
) -> "Iterator[FileChunks]":
    """The parts of the files, if there is anything to read in them: of `strict` all of them, and none may be bad."""
    from gritrag.chunks import nothing_in, read_files, refuse_faults

    parts: Iterable[FileChunks] = read_files(listing.sources, reader.count_tokens, cutting, known.ids)
    if strict:
        parts = list(parts)
        refuse_faults([*listing.skipped, *(skipped for part in parts for skipped in part.skipped)])
    coming = iter(parts)
    first: list[FileChunks] = []
    for part in coming:
        first.append(part)
        if part.chunks:
            return chain(first, coming)
    skipped = [*listing.skipped, *(skipped for part in first for skipped in part.skipped)]
    raise ValueError(nothing_in([Path(path) for path in paths], skipped))


def _expected(
    known: "Known", reader: "GritModel", listing: Listing, cutting: "Cutting", storing: Storing
) -> "Forecast":
    """What the files that the index does not have yet will take."""
    from gritrag.forecast import Storage, forecast, free_bytes
    from gritrag.index.storage.manifest import parse_bytes

    folder, states, quota, states_at, _ = storing
    storage = known.storage
    if not known.is_there and (states or quota or states_at):
        storage = Storage(states or "int8", parse_bytes(quota))
    new = [source for source in listing.sources if (source.root, source.name) not in known.files]
    return forecast(reader, new, reader.count_tokens, cutting, free_bytes(folder), storage)


def _announce(expected: "Forecast", yes: bool) -> None:
    typer.echo(f"{expected}", err=True)
    too_much = expected.bytes > min(ASK_BYTES, ASK_SHARE * expected.free)
    if expected.seconds > ASK_SECONDS or too_much:
        limits = f"{ASK_SECONDS // 60} minutes, {ASK_BYTES / 1e9:.0f} GB or half of the free disk"
        agree(f"That is more than {limits}", yes, "choose --states none or int4, a --state-quota, or fewer files")


def _bytes(listing: Listing) -> int:
    from gritrag.chunks import file_size

    return sum(map(file_size, listing.sources))
