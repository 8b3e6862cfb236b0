"""Indexing on Ray Data: files are parsed by tasks, read by a pool of actors with a model each, and committed at once.

What is done to a file and to a chunk is done by the functions that a build without Ray calls. Actors stage vectors and
states (see `staging`); this process, the only writer, puts documents into the catalog in the order of their files, and
commits when the last one has come. A task whose worker dies is repeated by Ray. Where this process dies nothing is
committed, and the next call reads only what had not been staged.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple, cast

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError

from gritrag.chunks import Cutting, FileChunks, nothing_in, read_files
from gritrag.documents.ids import Claim, FreeIds
from gritrag.documents.roots import Roots
from gritrag.documents.sources import Listing, Skipped, Source, list_sources
from gritrag.index.build import AddReport
from gritrag.index.commit import Commit, Row, document_of
from gritrag.index.documents import Checked, check_documents
from gritrag.index.index import Index
from gritrag.index.origins import ids_of
from gritrag.index.reader import named_reader
from gritrag.index.staging import Staging
from gritrag.index.storage.entries import metadata_json
from gritrag.index.storage.manifest import Manifest
from gritrag.index.storage.remote_files import is_url, list_remote
from gritrag.records import Document

__all__ = ["Built", "Cluster", "add_files"]

BATCH = 64
"""Chunks that an actor reads at once."""

PARSE_CPUS = 0.5
"""Of a task that parses a file. An actor has one processor to itself; where actors took them all, no file would ever be
parsed, and Ray would wait for that without a word."""

CHUNK = pa.schema(
    [(name, pa.string()) for name in ("id", "title", "text", "metadata", "path", "reason", "extent", "of", "content")]
)
"""A chunk, with what its document claims; or, where there is a `reason`, what could not be read."""

READ = pa.schema([*CHUNK, ("token_ids", pa.binary()), ("key", pa.string()), ("part", pa.string())])
"""A chunk that was read, and the part of the staging that holds its reading; empty where that was known before."""


class Cluster(NamedTuple):
    """Where to work: the address of a cluster, one of this machine's own where None; and how many actors read, by
    default one for each GPU, else one for each processor but one."""

    address: str | None = None
    actors: int | None = None


class Built(NamedTuple):
    """What `add_files` did: a report, how many chunks were deleted, and what could not be read."""

    report: AddReport
    removed: int
    skipped: list[Skipped]


def add_files(
    index: Index,
    listing: Listing,
    cutting: Cutting,
    cluster: Cluster,
    dtype: str = "auto",
    device: str = "auto",
    roots: Roots | None = None,
) -> Built:
    """Bring all files of a listing into an index that is open for writing, in one commit; then delete what they, and
    files beside them that are gone, gave once and give no more.

    Args:
        index: of a model that has a name, which every worker can load. Without ``states_at`` its directory must be seen
            by all workers under the same path.
        listing: of `list_places`.
        roots: those that its files have been placed in.

    Raises:
        ValueError: nothing to read, a quota of states, or work on the cluster failed. Nothing has been committed then;
            what was read stays staged, and is not read again.
    """
    parts = index._parts
    if parts.manifest.state_quota is not None:
        raise ValueError("an index with a quota of states cannot be built on Ray: leave out --engine ray")
    roots = roots or Roots()
    folders = sorted({Path(roots.where(source.root, "")[0]) for source in listing.sources})
    if not folders:
        raise ValueError(nothing_in(folders, listing.skipped))
    staging = Staging(parts.root, parts.manifest.states_at, parts.manifest.codec)
    with parts.writing():
        known = staging.known()
        read = parts.catalog.state_keys() | known.keys()
        count_tokens = index.model.token_counter  # type: ignore[attr-defined]  # what has a name is a GritModel
        reader = {"root": parts.root, "manifest": parts.manifest, "known": read, "dtype": dtype, "device": device}
        commit = Commit(parts, staging, known, ids_of(index), roots)
        try:
            with (
                _running(cluster) as actors,
                closing(_pipeline(listing.sources, count_tokens, cutting, reader, actors)) as rows,  # frees the actors
            ):
                report = commit.run(rows)
        except RayError as error:
            raise ValueError(f"work on Ray stopped, and what was read is kept for the next call: {error}") from error
        if not sum(report):
            raise ValueError(nothing_in(folders, [*listing.skipped, *commit.skipped]))
        staging.clear()
    return Built(report, index.delete(ids=commit.outdated()), [*listing.skipped, *commit.skipped])


def list_places(paths: Sequence[str | Path]) -> Listing:
    """Files under paths, and under URLs of fsspec such as ``s3://bucket/notes``; errors are those of `list_sources`."""
    local = list_sources([path for path in paths if not is_url(path)])
    listings = [local, *(list_remote(str(path)) for path in paths if is_url(path))]
    sources: dict[tuple[str, str], Source] = {}
    for source in chain.from_iterable(listing.sources for listing in listings):
        sources.setdefault((source.name, source.root), source)
    return Listing([*sources.values()], [skipped for listing in listings for skipped in listing.skipped])


@contextmanager
def _running(cluster: Cluster) -> Iterator[int]:
    """A cluster, and how many actors it shall have. One that was started here ends here."""
    own = not ray.is_initialized()
    wanted = cluster.actors
    if own and cluster.address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers unless told otherwise
        processors = (wanted or os.cpu_count() or 1) + 1
        ray.init(num_cpus=processors, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    elif own:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        resources = ray.cluster_resources()
        processors, graphics = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
        actors = wanted or graphics or max(1, processors - 1)
        if actors + 1 > processors:
            raise ValueError(
                f"{actors} actors need {actors + 1} processors, one of them to parse files, and the cluster has "
                f"{processors}: give fewer --actors"
            )
        yield actors
    finally:
        if own:
            ray.shutdown()


def _pipeline(
    sources: Sequence[Source], count_tokens: Callable[[str], int], cutting: Cutting, reader: Row, actors: int
) -> Generator[Row, None, None]:
    """Rows of the schema `READ`, in the order of the sources."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= actors else 0

    def parse(table: pa.Table) -> Iterator[pa.Table]:
        of_task = [sources[number] for number in table["item"].to_pylist()]
        for file in read_files(of_task, count_tokens, cutting, FreeIds()):
            yield _chunk_rows(file)

    numbers = ray.data.from_items(list(range(len(sources))), override_num_blocks=len(sources))
    chunks = numbers.map_batches(parse, batch_size=1, batch_format="pyarrow", num_cpus=PARSE_CPUS)
    done = chunks.repartition(target_num_rows_per_block=BATCH).map_batches(
        _ReadPass,
        fn_constructor_kwargs=reader,
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=gpus,
    )
    for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from cast(pa.Table, table).to_pylist()


def _chunk_rows(file: FileChunks) -> pa.Table:
    """Rows of the schema `CHUNK` of one file."""
    rows = [_row(chunk, claim, str(file.source.path)) for chunk, claim in zip(file.chunks, file.claims, strict=True)]
    empty = dict.fromkeys(CHUNK.names, "")
    rows += [empty | {"path": str(path), "reason": reason, "extent": extent} for path, reason, extent in file.skipped]
    return pa.Table.from_pylist(rows, CHUNK)


def _row(chunk: Document, claim: Claim, path: str) -> Row:
    content = {"id": chunk.id, "title": chunk.title, "text": chunk.text, "metadata": metadata_json(chunk)}
    return {**content, "path": path, "reason": "", "extent": "", "of": claim.id, "content": claim.content}


class _ReadPass:
    """An actor: it reads what nobody has read, and stages it."""

    def __init__(self, root: Path, manifest: Manifest, known: frozenset[str], dtype: str, device: str) -> None:
        self._model = named_reader(root, manifest, dtype, device)
        self._staging = Staging(root, manifest.states_at, manifest.codec)
        self._has_states = manifest.codec != "none"
        self._known = known

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        checked = [None if row["reason"] else self._checked(row) for row in rows]
        unread = {each.key: each.document for each in checked if each is not None and each.key not in self._known}
        part = self._read(unread) if unread else ""
        for row, each in zip(rows, checked, strict=True):
            row |= {"token_ids": b"", "key": "", "part": ""}
            if each is not None:
                row |= {"token_ids": each.token_ids.tobytes(), "key": each.key}
                row["part"] = part if each.key in unread else ""
        return pa.Table.from_pylist(rows, READ)

    def _checked(self, row: Row) -> Checked | None:
        """None for a chunk that no index can hold; its row says why then."""
        try:
            return check_documents(self._model, [document_of(row)])[0][0]
        except ValueError as error:
            row["reason"] = str(error)
            return None

    def _read(self, unread: dict[str, Document]) -> str:
        if (written := self._staging.find(unread)) is not None:  # by an actor that died before it could say so
            return written
        documents = [*unread.values()]
        if self._has_states:
            return self._staging.write(dict(zip(unread, self._model.read_documents(documents), strict=True)))
        return self._staging.write(dict(zip(unread, self._model.encode_document(documents), strict=True)))
