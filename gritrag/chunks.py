"""Files become chunks, one file at a time. A file that cannot be read, or a part of one, is told and stops nothing."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gritrag.documents.sources import Extent, Skipped, Source, list_sources, read_source
from gritrag.documents.text import AS_IT_IS, TextOptions, check_options
from gritrag.progress import ProgressBar
from gritrag.records import Document
from gritrag.tokens import check_text, chunk_documents

SHOWN = 3  # documents of one file that are left out, in a message


Taken = dict[str, tuple[int, str]]
"""For each id a hash of its content, and the file where it was first met."""


class Cutting(NamedTuple):
    """How files are read and cut: most tokens of a chunk, tokens that neighbours share, and what text files are."""

    chunk_size: int = 256
    overlap: int = 0
    text: TextOptions = AS_IT_IS


class FileChunks(NamedTuple):
    """One file: its chunks, none if it cannot be read; and what of it cannot."""

    source: Source
    chunks: list[Document]
    skipped: list[Skipped]


class Gathered(NamedTuple):
    """Chunks of the files that could be read; and files, or parts of them, that could not, with the reasons."""

    chunks: list[Document]
    skipped: list[Skipped]


def check_cutting(cutting: Cutting, max_document_tokens: int) -> Cutting:
    """The settings, if documents can be cut so.

    Raises:
        ValueError: chunks would be too long for the model, or overlap wholly; or an unknown encoding or delimiter.
    """
    if cutting.chunk_size > max_document_tokens:
        raise ValueError(
            f"chunks of {cutting.chunk_size} tokens are longer than what the model reads at once, "
            f"{max_document_tokens}: give a smaller --chunk-size"
        )
    list(chunk_documents((), len, cutting.chunk_size, cutting.overlap))
    check_options(cutting.text)
    return cutting


def read_files(sources: Iterable[Source], count_tokens: Callable[[str], int], cutting: Cutting) -> Iterator[FileChunks]:
    """Chunks of each file in turn. An id that an earlier document had already, with another content, is left out."""
    taken: Taken = {}
    for source in sources:
        losses: list[str] = []
        try:
            documents = list(read_source(source, losses.append, cutting.text))
        except ValueError as error:
            reason = str(error).removeprefix(str(source.path)).lstrip(":, ")
            yield FileChunks(source, [], [Skipped(source.path, reason)])
            continue
        chunks, problem = cut(documents, count_tokens, cutting, taken, source.name)
        losses += [problem] if problem else []
        extent: Extent = "part" if chunks else "file"
        yield FileChunks(source, chunks, [Skipped(source.path, loss, extent) for loss in losses])


def cut(
    documents: Iterable[Document],
    count_tokens: Callable[[str], int],
    cutting: Cutting,
    taken: Taken | None = None,
    file: str = "the same file",
) -> tuple[list[Document], str]:
    """Chunks of one file's documents, and in words why some of them cannot be cut; empty if all can.

    `taken` has the ids of earlier files; those of this one are added.
    """
    taken = {} if taken is None else taken
    chunks: list[Document] = []
    problems: list[str] = []
    for document in documents:
        try:
            found = list(chunk_documents([document], count_tokens, cutting.chunk_size, cutting.overlap))
            _take(taken, document, found, file)
            chunks += found
        except ValueError as error:
            problems.append(str(error))
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return chunks, "; ".join(problems[:SHOWN]) + more


def _take(taken: Taken, document: Document, chunks: Sequence[Document], file: str) -> None:
    """Note the ids of a document and its chunks.

    Raises:
        ValueError: one of them is that of another content; or id, title or metadata are no Unicode text.
    """
    for part in (document.id, document.title, json.dumps(dict(document.metadata), ensure_ascii=False)):
        check_text(part, f"id, title or metadata of document {document.id!r}")
    for each in [document, *chunks]:
        content = hash((each.text, each.title, repr(each.metadata)))
        other, where = taken.setdefault(each.id, (content, file))
        if other != content:
            raise ValueError(f"its id {each.id!r} is that of an earlier document, in {where}; give each its own id")


def gather(
    paths: Sequence[Path], count_tokens: Callable[[str], int], cutting: Cutting, strict: bool = False
) -> Gathered:
    """Chunks of all files under `paths`, and what was left out.

    Raises:
        ValueError: a path does not exist, two files have one name, or there is nothing that can be read; with `strict`,
            a file, or a part of one, cannot be read: names all of them.
    """
    listing = list_sources(paths)
    chunks: list[Document] = []
    skipped = listing.skipped
    bar = ProgressBar(listing.sources, desc="parse", unit="file", disable=None)
    for file in read_files(bar, count_tokens, cutting):
        chunks += file.chunks
        skipped += file.skipped
    if strict:
        refuse_faults(skipped)
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
