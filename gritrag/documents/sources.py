"""Sources: files and folders of .txt, .md, .jsonl and .csv that documents come from. Nothing is left out in silence."""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from gritrag.records import Document

TEXT_SUFFIXES = frozenset({".txt", ".md"})
ROW_SUFFIXES = frozenset({".jsonl", ".csv"})
SUFFIXES = TEXT_SUFFIXES | ROW_SUFFIXES
FILE = "source_file"
"""Metadata field of every document from here: `Source.name` of its file."""
ROOT = "source_root"
"""Metadata field of every document from here: `Source.root` of its file. Names are unique below one root only."""

_BOM = b"\xef\xbb\xbf"
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")
_MAX_CSV_FIELD = 2**31 - 1


class Source(NamedTuple):
    """A file to read. `name` is its path below `root`, and starts its documents' ids.

    `root` is the folder that was asked for, or the one that holds the file that was: absolute, links resolved.
    """

    path: Path
    name: str
    root: str

    @property
    def metadata(self) -> dict[str, str]:
        """What every document of this file says of where it is from."""
        return {FILE: self.name, ROOT: self.root}


class Skipped(NamedTuple):
    """A file or folder that is not read, and why."""

    path: Path
    reason: str


class Listing(NamedTuple):
    """What `list_sources` found, each in sorted order."""

    sources: list[Source]
    skipped: list[Skipped]


def list_sources(paths: Iterable[str | Path]) -> Listing:
    """The files under `paths`, which are files or folders.

    In a folder, links are followed (a loop of links is entered once); hidden entries, empty files and files of another
    kind are skipped and reported.

    Raises:
        ValueError: a path does not exist or cannot be listed, a file asked for by name is of another kind or empty, or
            two files would give documents of the same id.
    """
    sources: dict[str, Source] = {}
    skipped: list[Skipped] = []
    for path in map(Path, paths):
        found = _list_folder(path) if path.is_dir() else Listing([_named_file(path)], [])
        for source in found.sources:
            other = sources.setdefault(source.name, source)
            if not _same_file(other.path, source.path):
                raise ValueError(
                    f"{other.path} and {source.path} would both be called {source.name!r} in the index; "
                    "index the folder that holds both, or rename one"
                )
        skipped += found.skipped
    return Listing(sorted(sources.values(), key=lambda source: source.name), skipped)


def read_source(source: Source) -> Iterator[Document]:
    """Documents of one file: the whole file, or one per row.

    A row is an object (.jsonl) or a line under a header (.csv) with a column `text` or `passage`, and may have `id` and
    `title`; every other column becomes metadata. A row without an id is called ``<name>#<line>``. Each document's
    metadata hold the name of its file as `source_file` and the folder above that name as `source_root`.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or a row is broken; names file, line and remedy.
    """
    try:
        if source.path.suffix.lower() in TEXT_SUFFIXES:
            text = "".join(line for _, line in _lines(source.path))
            if not text.strip():
                raise ValueError(f"{source.path}: holds nothing but white space; remove the file or give it text")
            yield Document(text, id=source.name, metadata=source.metadata)
            return
        rows = _jsonl_rows(source.path) if source.path.suffix.lower() == ".jsonl" else _csv_rows(source.path)
        for line, row in rows:
            yield _row_document(source, line, row)
    except OSError as error:
        raise ValueError(
            f"{source.path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from error


def read_sources(listing: Listing) -> Iterator[Document]:
    """Documents of all files of a listing, in its order."""
    for source in listing.sources:
        yield from read_source(source)


def _named_file(path: Path) -> Source:
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: cannot read files of kind {path.suffix!r}; known are {', '.join(sorted(SUFFIXES))}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    return Source(path, path.name, os.path.realpath(path.parent))


def _list_folder(root: Path) -> Listing:
    sources: list[Source] = []
    skipped: list[Skipped] = []
    entered: set[str] = set()
    real_root = os.path.realpath(root)

    def unlistable(error: OSError) -> NoReturn:
        raise ValueError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=unlistable):
        real = os.path.realpath(folder)
        if real in entered:
            skipped.append(Skipped(Path(folder), "a link to a folder that was already entered"))
            subfolders.clear()
            continue
        entered.add(real)
        skipped += [Skipped(Path(folder, name), "hidden folder") for name in sorted(subfolders) if name[0] == "."]
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
        for name in sorted(files):
            path = Path(folder, name)
            if reason := _reason_to_skip(path):
                skipped.append(Skipped(path, reason))
            else:
                sources.append(Source(path, path.relative_to(root).as_posix(), real_root))
    return Listing(sources, skipped)


def _reason_to_skip(path: Path) -> str:
    """Empty if the file is to be read. A dead link is: reading it fails, and that says which."""
    if path.name.startswith("."):
        return "hidden file"
    if path.suffix.lower() not in SUFFIXES:
        return f"unknown kind {path.suffix}" if path.suffix else "no suffix"
    return "empty file" if path.exists() and path.stat().st_size == 0 else ""


def _same_file(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their ends, numbered from 1; decoded one by one, so that a broken one is known by its number."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, (line.removeprefix(_BOM) if number == 1 else line).decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); "
                    f"convert the file: iconv -f LATIN1 -t UTF-8 {path.name!r}"
                ) from None


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error}); mend or delete the line") from None
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {number}: a {type(row).__name__}, not an object; write {{"text": ...}}')
        yield number, row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(_MAX_CSV_FIELD)  # process-wide; the default, 128 KiB, is less than a long document
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        names = list(reader.fieldnames or ())
        if len(set(names)) < len(names):
            raise ValueError(f"{path}, line 1: the header names a column twice ({', '.join(names)}); rename one")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: not as many fields as the header has columns "
                    f"({len(names)}); put quotes around a field that holds commas or line breaks"
                )
            reserved = {"text", "passage", "id", "title"}
            yield reader.line_num, {name: v if name in reserved else _number(v) for name, v in row.items()}
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: not valid CSV ({error}); mend its quotes") from None


def _number(field: str) -> str | int | float:
    """A number if it prints as it was written: ``1999`` is one, ``007`` and ``1.10`` stay text."""
    if not _NUMBER.fullmatch(field):
        return field
    number = float(field) if "." in field else int(field)
    return number if str(number) == field else field


def _row_document(source: Source, line: int, row: Mapping[str, Any]) -> Document:
    where = f"{source.path}, line {line}"
    column = "text" if "text" in row else "passage"
    if column not in row:
        raise ValueError(f"{where}: no column 'text' or 'passage'; it has {', '.join(map(repr, row)) or 'none'}")
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: {column!r} must be a text that is not empty; mend or delete the line")
    id, title = row.get("id"), row.get("title")
    if not isinstance(id, str | int | None) or isinstance(id, bool):
        raise ValueError(f"{where}: 'id' must be a text or a whole number, not {type(id).__name__}")
    if not isinstance(title, str | None):
        raise ValueError(f"{where}: 'title' must be a text, not {type(title).__name__}")
    for taken in sorted(source.metadata.keys() & row.keys()):
        raise ValueError(f"{where}: the column {taken!r} is taken for where this file is; rename it")
    metadata = {name: value for name, value in row.items() if name not in (column, "id", "title")}
    given = "" if id is None else str(id)
    return Document(
        text, id=given or f"{source.name}#{line}", title=title or "", metadata={**metadata, **source.metadata}
    )
