"""Files become chunks, one file at a time. A file that cannot be read, or a part of one, is told and stops nothing."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gritrag.documents.ids import Claim, Ids, claim_of
from gritrag.documents.roots import Roots
from gritrag.documents.sources import FILE, ROOT, Extent, Skipped, Source, list_sources, read_source
from gritrag.documents.text import AS_IT_IS, TextOptions
from gritrag.progress import ProgressBar
from gritrag.records import Document, checked_metadata
from gritrag.tokens import check_text, chunk_documents

PART = 16
"""Chunks that are handed on together."""
SHOWN = 3  # documents of one file that are left out, in a message


class Cutting(NamedTuple):
    """How files are read and cut: most tokens of a chunk, tokens that neighbours share, and what text files are."""

    chunk_size: int = 256
    overlap: int = 0
    text: TextOptions = AS_IT_IS


class FileChunks(NamedTuple):
    """A file, or a part of one: its chunks, none if it cannot be read; for each of them what its document claims; what
    cannot be read; how many bytes of the file are done with it; and whether it ends there."""

    source: Source
    chunks: list[Document]
    claims: list[Claim]
    skipped: list[Skipped]
    size: int = 0
    is_last: bool = True


class Gathered(NamedTuple):
    """Chunks of the files that could be read; and files, or parts of them, that could not, with the reasons."""

    chunks: list[Document]
    skipped: list[Skipped]


def check_cutting(cutting: Cutting, max_document_tokens: int) -> Cutting:
    """The settings, if documents can be cut so.

    Raises:
        ValueError: chunks would be too long for the model, or overlap wholly.
    """
    if cutting.chunk_size > max_document_tokens:
        raise ValueError(
            f"chunks of {cutting.chunk_size} tokens are longer than what the model reads at once, "
            f"{max_document_tokens}: give a smaller --chunk-size"
        )
    list(chunk_documents((), len, cutting.chunk_size, cutting.overlap))
    return cutting


def read_files(
    sources: Iterable[Source], count_tokens: Callable[[str], int], cutting: Cutting, ids: Ids | None = None
) -> Iterator[FileChunks]:
    """Chunks of each file in turn, a few at a time. A document is left out if its id is taken, in `ids` or by one
    before it that has another content."""
    ids = Ids() if ids is None else ids
    for source in sources:
        yield from _read_file(source, count_tokens, cutting, ids)


def _read_file(source: Source, count_tokens: Callable[[str], int], cutting: Cutting, ids: Ids) -> Iterator[FileChunks]:
    losses: list[str] = []
    size = file_size(source)
    try:
        documents = list(read_source(source, losses.append, cutting.text))
    except ValueError as error:
        reason = str(error).removeprefix(str(source.path)).lstrip(":, ")
        yield FileChunks(source, [], [], [Skipped(source.path, reason)], size)
        return
    characters = sum(len(document.text) for document in documents)
    chunks: list[Document] = []
    claims: list[Claim] = []
    problems: list[str] = []
    seen = told = 0
    for chunk, claim in _cut(documents, count_tokens, cutting, problems.append, ids):
        if len(chunks) == PART:
            done = int(size * min(1.0, seen / characters))
            yield FileChunks(source, chunks, claims, [], done - told, is_last=False)
            chunks, claims, told = [], [], done
        chunks.append(chunk)
        claims.append(claim)
        seen += len(chunk.text)
    losses += [in_short(problems)] if problems else []
    extent: Extent = "part" if seen else "file"
    yield FileChunks(source, chunks, claims, [Skipped(source.path, loss, extent) for loss in losses], size - told)


def cut(
    documents: Iterable[Document],
    count_tokens: Callable[[str], int],
    cutting: Cutting,
    on_problem: Callable[[str], None],
) -> Iterator[Document]:
    """Chunks of one file's documents, as they are cut. `on_problem` is told of each document that cannot be."""
    return (chunk for chunk, _ in _cut(documents, count_tokens, cutting, on_problem, Ids()))


def _cut(
    documents: Iterable[Document],
    count_tokens: Callable[[str], int],
    cutting: Cutting,
    on_problem: Callable[[str], None],
    ids: Ids,
) -> Iterator[tuple[Document, Claim]]:
    """Chunks, each with the claim of its document. A document of which nothing can be cut takes no id."""
    for document in documents:
        try:
            for part in (document.id, document.title, _metadata_of(document)):
                check_text(part, f"id, title or metadata of document {document.id!r}")
            claim = claim_of(document)
            place = document.metadata.get(ROOT, ""), document.metadata.get(FILE, "the same file")
            for chunk in chunk_documents([document], count_tokens, cutting.chunk_size, cutting.overlap):
                ids.take(claim, *place)
                if chunk is not document:
                    ids.take(claim_of(chunk), *place)
                yield chunk, claim
        except ValueError as error:
            on_problem(str(error))


def _metadata_of(document: Document) -> str:
    try:
        return checked_metadata(document.metadata)
    except ValueError as error:
        raise ValueError(f"document {document.id!r} has metadata that no index holds ({error})") from error


def in_short(problems: Sequence[str]) -> str:
    """The first problems of one file, and how many there are more."""
    more = len(problems) - SHOWN
    return "; ".join([*problems[:SHOWN], *([f"and {more:,} more"] if more > 0 else [])])


def file_size(source: Source) -> int:
    """Bytes of a file; 0 where it is gone."""
    try:
        return source.path.stat().st_size
    except OSError:
        return 0


def gather(paths: Sequence[Path], count_tokens: Callable[[str], int], cutting: Cutting) -> Gathered:
    """Chunks of all files under `paths`, and what was left out.

    Raises:
        ValueError: a path does not exist, or there is nothing that can be read.
    """
    listing = list_sources(paths)
    chunks: list[Document] = []
    skipped = listing.skipped
    bar = ProgressBar(Roots().place(listing.sources), desc="parse", unit="file", disable=None)
    for file in read_files(bar, count_tokens, cutting):
        chunks += file.chunks
        skipped += file.skipped
    if not chunks:
        raise ValueError(nothing_in(paths, skipped))
    return Gathered(chunks, skipped)


def refuse_faults(skipped: Sequence[Skipped]) -> None:
    """Raise a ValueError that names everything that cannot be read, if there is anything."""
    if faults := [each for each in skipped if each.extent != "nothing"]:
        lines = "".join(f"\n  {line}" for line in skipped_lines(faults)[1:])
        raise ValueError(f"{_count(faults)} cannot be read, and nothing was stored, as --strict says:{lines}")


def nothing_in(paths: Sequence[Path], skipped: Sequence[Skipped]) -> str:
    """What to say where nothing can be read."""
    lines = "".join(f"\n  {line}" for line in skipped_lines(skipped)) or ": the folder is empty"
    return f"nothing to index in {', '.join(map(str, paths))}{lines}"


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """A line for each reason for which nothing was asked of a file, the commonest first; then one for each file, or
    part of one, that should have been read and could not."""
    lines = []
    left_out = [each for each in skipped if each.extent == "nothing"]
    for reason, count in Counter(each.reason for each in left_out).most_common():
        first = next(each.path for each in left_out if each.reason == reason)
        lines.append(f"left out {count} ({reason}): {first}{' and others' if count > 1 else ''}")
    faults = [each for each in skipped if each.extent != "nothing"]
    if faults:
        lines.append(f"{_count(faults)} could not be read, and the others were:")
    for path, reason, extent in faults:
        lines.append(f"{'not read' if extent == 'file' else 'read in part'}: {path}: {' '.join(reason.split())}")
    return lines


def _count(faults: Sequence[Skipped]) -> str:
    whole = len({each.path for each in faults if each.extent == "file"})
    parts = len({each.path for each in faults if each.extent == "part"})
    files = f"{whole} file{'s' * (whole != 1)}" if whole else ""
    of = f"parts of {parts} file{'s' * (parts != 1)}" if parts else ""
    return " and ".join(filter(None, [files, of]))
