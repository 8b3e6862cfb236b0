"""One file of any known kind becomes documents. Parsers are imported when the first file of their kind is met."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, BinaryIO

from gritrag.documents.rows import read_rows
from gritrag.documents.sections import (
    MAX_CHARACTERS,
    MAX_FILE_BYTES,
    Section,
    Unreadable,
    attempt,
    place_in_words,
    short_title,
)
from gritrag.documents.text import AS_IT_IS, TextOptions, decoded_lines
from gritrag.records import Document

PROSE_SUFFIXES = frozenset({".txt", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex"})
CODE_SUFFIXES = frozenset({".py", ".pyi", ".js", ".mjs", ".ts", ".jsx", ".tsx", ".java", ".kt", ".scala", ".c", ".h"})
CODE_SUFFIXES |= {".cc", ".cpp", ".hpp", ".cs", ".go", ".rs", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".swift"}
CODE_SUFFIXES |= {".sh", ".bash", ".ps1", ".sql", ".css", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".proto"}
ROW_SUFFIXES = frozenset({".jsonl", ".csv", ".tsv", ".parquet"})
PARSERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        ".pdf": ("pdf", "read"),
        ".docx": ("docx", "read"),
        ".pptx": ("pptx", "read"),
        ".xlsx": ("xlsx", "read"),
        ".html": ("markup", "read_html"),
        ".htm": ("markup", "read_html"),
        ".xhtml": ("markup", "read_html"),
        ".epub": ("markup", "read_epub"),
    }
)
"""For each kind that a library parses: the module of this folder, and its function of an open file to sections."""
SUFFIXES = PROSE_SUFFIXES | CODE_SUFFIXES | ROW_SUFFIXES | PARSERS.keys()
SHOWN = 5  # places of what was left out, in a message
OLDER = {".doc": ".docx", ".ppt": ".pptx", ".xls": ".xlsx", ".rtf": ".docx", ".odt": ".docx", ".mobi": ".epub"}


def reason_to_refuse(name: str) -> str:
    """Why a file of this name cannot be read; empty if it can."""
    suffix = PurePath(name).suffix.lower()
    if suffix in SUFFIXES:
        return ""
    if suffix in OLDER:
        return f"unknown kind {suffix}: save it as {OLDER[suffix]}"
    return f"unknown kind {suffix}" if suffix else "no suffix"


def read_file(
    file: BinaryIO,
    name: str,
    *,
    where: str = "",
    metadata: Mapping[str, Any] = MappingProxyType({}),
    options: TextOptions = AS_IT_IS,
    on_loss: Callable[[str], None] = lambda reason: None,
) -> Iterator[Document]:
    """Documents of an open file.

    * Prose and code (.txt, .md, .rst, .py ...): one document of the whole text.
    * Rows (.jsonl, .csv, .tsv, .parquet): one per row. A row is an object (.jsonl), a row of a table (.parquet), or a
      line under a header (.csv, .tsv). It has a column of text (`gritrag.documents.rows.TEXT_COLUMNS`), and may have
      `id` and `title`; every other column becomes metadata. A row without an id is called ``<name>#<line>``. The
      delimiter of a .csv file is found.
    * PDF, DOCX, PPTX, XLSX, HTML and EPUB: one per page, slide, block of rows or heading, called ``<name>#page=3``,
      ``<name>#slide=3`` or ``<name>#section=3``. Metadata say the place: ``page``, ``slide``, ``sheet``, ``row``,
      ``heading``, ``part``, as far as the file does. The title is the file's own, with the heading.

    Args:
        file: open for reading bytes, and able to seek.
        name: of the file, whose suffix says the kind; begins the ids.
        where: what errors call the file; its name if left out.
        metadata: given to every document.
        options: what text files do not say themselves, such as their encoding.
        on_loss: told in words of each part that cannot be read, such as scanned pages and broken rows, though others
            can.

    Raises:
        ValueError: the file is of no known kind, binary under the name of a text, broken, encrypted, empty, larger than
            the limits of `gritrag.documents.sections`, or of another encoding; names file, line and remedy. Or a
            library is missing: the extra `documents` brings all.
    """
    where = where or name
    suffix = PurePath(name).suffix.lower()
    if reason := reason_to_refuse(name):
        raise ValueError(f"{where}: {reason}; known are {', '.join(sorted(SUFFIXES))}")
    try:
        if suffix in ROW_SUFFIXES:
            yield from read_rows(file, name, metadata, options, on_loss)
        elif suffix in PARSERS:
            for number, section in enumerate(_sections(file, suffix, on_loss), start=1):
                yield _document(section, number, name, metadata)
        else:
            yield Document(_prose(file, options), id=name, metadata=metadata)
    except Unreadable as error:
        raise ValueError(f"{where}: {error}") from error


def _prose(file: BinaryIO, options: TextOptions) -> str:
    _check_size(file)
    text = "".join(line for _, line in decoded_lines(file, options))
    if not text.strip():
        raise Unreadable("it holds nothing but white space: remove the file or give it text")
    return text


def _check_size(file: BinaryIO) -> int:
    size = file.seek(0, 2)
    file.seek(0)
    if size > MAX_FILE_BYTES:
        raise Unreadable(f"it has {size >> 20:,} MiB, more than the limit of {MAX_FILE_BYTES >> 20}: split it")
    return size


def _sections(file: BinaryIO, suffix: str, on_loss: Callable[[str], None]) -> list[Section]:
    """All sections with text. A file is read whole before the first is given: it is indexed as it is, or not at all."""
    if not _check_size(file):
        raise Unreadable("the file is empty")
    module, function = PARSERS[suffix]
    try:
        parse = getattr(import_module(f"gritrag.documents.{module}"), function)
    except ModuleNotFoundError as error:
        raise Unreadable(f"reading {suffix} needs {error.name}: pip install 'gritrag[documents]'") from error
    return _with_text(attempt(lambda: list(_within_limit(parse(file)))), on_loss)


def _within_limit(sections: Iterator[Section]) -> Iterator[Section]:
    characters = 0
    for section in sections:
        characters += len(section.text)
        if characters > MAX_CHARACTERS:
            raise Unreadable(f"it holds more than {MAX_CHARACTERS:,} characters of text: split it")
        yield section


def _with_text(sections: Sequence[Section], on_loss: Callable[[str], None]) -> list[Section]:
    read = [section for section in sections if section.text.strip()]
    blank = [section for section in sections if not section.text.strip() and not section.problem]
    remedy = "pictures of text, such as scans, need text recognition (OCR) first"
    problems = [
        ": ".join(filter(None, [place_in_words(each.place), each.problem])) for each in sections if each.problem
    ]
    if not read:
        raise Unreadable("; ".join(problems) or f"it holds no text: {remedy}")
    if blank:
        shown = ", ".join([place_in_words(section.place) for section in blank[:SHOWN]] + ["..."] * bool(blank[SHOWN:]))
        problems.append(f"{len(blank)} of {len(sections)} parts hold no text ({shown}): {remedy}")
    for problem in problems:
        on_loss(problem)
    return read


def _document(section: Section, number: int, name: str, metadata: Mapping[str, Any]) -> Document:
    return Document(
        _clean(section.text),
        id=f"{name}#{section.anchor or f'section={number}'}",
        title=_clean(short_title(section.title, str(section.place.get("heading", "")))),
        metadata={**section.place, **metadata},
    )


def _clean(text: str) -> str:
    """Without what no text holds but broken fonts give: NUL and halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode().replace("\0", "").strip()
