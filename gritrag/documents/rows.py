"""Rows: .jsonl, .csv, .tsv and .parquet, each row a document. A row that is broken is told, and the others are read."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import chain, islice
from typing import Any, BinaryIO, NoReturn

from gritrag.documents.sections import Unreadable
from gritrag.documents.text import AS_IT_IS, TextOptions, decoded_lines
from gritrag.records import Document

TEXT_COLUMNS = ("text", "passage", "content", "body", "page_content", "contents", "document")
"""Names of the column that is read: the first of these that there is, in any case of letters."""
DELIMITERS = ",;\t|"
SAMPLE_LINES = 50
SHOWN = 3  # broken rows, in a message

_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")
_MAX_CSV_FIELD = 2**31 - 1

Row = tuple[int, Mapping[str, Any]]
"""Its line, and its columns."""
OnBroken = Callable[[int, str], None]


def read_rows(
    file: BinaryIO,
    name: str,
    metadata: Mapping[str, Any],
    options: TextOptions = AS_IT_IS,
    on_loss: Callable[[str], None] = lambda reason: None,
) -> Iterator[Document]:
    """Documents of the rows of a file; `gritrag.documents.read.read_file` says what a row may hold.

    `on_loss` is told once of all rows that are broken.

    Raises:
        Unreadable: the file is no text, its header is broken, or no row of it can be read.
    """
    broken: list[tuple[int, str]] = []

    def on_broken(line: int, problem: str) -> None:
        broken.append((line, problem))

    kind = name.lower().rpartition(".")[2]
    lines = decoded_lines(file, options, on_broken)
    if kind == "parquet":
        rows = _table(file)
    else:
        rows = _jsonl_rows(lines, on_broken) if kind == "jsonl" else _csv_rows(lines, kind, options, on_broken)
    read = 0
    for line, row in rows:
        try:
            yield _row_document(f"{name}#{line}", row, metadata, options.text_column)
            read += 1
        except Unreadable as error:
            on_broken(line, str(error))
    if not read:
        raise Unreadable(_in_words(broken) or "it holds no rows: remove the file or give it some")
    if broken:
        on_loss(f"{len(broken)} of {read + len(broken)} rows are left out: {_in_words(broken)}")


def _in_words(broken: Sequence[tuple[int, str]]) -> str:
    shown = [f"line {line}: {problem}" for line, problem in broken[:SHOWN]]
    more = len(broken) - len(shown)
    return "; ".join(shown + [f"and {more:,} more rows"] * bool(more))


def _table(file: BinaryIO) -> Iterator[Row]:
    try:
        module = import_module("gritrag.documents.parquet")
    except ModuleNotFoundError as error:
        raise Unreadable(f"reading .parquet needs {error.name}: pip install {error.name}") from error
    rows: Iterator[Row] = module.read_table(file)
    return rows


def _jsonl_rows(lines: Iterator[tuple[int, str]], on_broken: OnBroken) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            of_many = line.strip() in ("[", "{")
            remedy = "write each object on a line of its own (jq -c)" if of_many else "mend or delete the line"
            on_broken(number, f"not valid JSON ({error}); {remedy}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            on_broken(number, f'a {type(row).__name__}, not an object; write {{"text": ...}} on one line for each')


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _csv_rows(lines: Iterator[tuple[int, str]], kind: str, options: TextOptions, on_broken: OnBroken) -> Iterator[Row]:
    csv.field_size_limit(_MAX_CSV_FIELD)  # process-wide; the default, 128 KiB, is less than a long document
    texts = (line for _, line in lines)
    sample = list(islice(texts, SAMPLE_LINES))
    delimiter = "\t" if kind == "tsv" else options.delimiter or _delimiter(sample, options.text_column)
    reader = csv.reader(chain(sample, texts), delimiter=delimiter, strict=True)
    names: list[str] = []
    begins = 1  # where the next row does
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            on_broken(begins, f"not valid CSV ({error}); mend its quotes: what the open one holds is lost")
            begins = reader.line_num + 1
            continue
        begins = reader.line_num + 1
        if not names:
            names = _header(fields)
            keeps = {_text_column(names, options.text_column), "id", "title"}
        elif len(fields) not in (0, len(names)):
            on_broken(
                reader.line_num,
                f"not as many fields as the header has columns ({len(names)}); put quotes around a field that holds "
                f"a {delimiter!r} or a line break",
            )
        elif fields:
            row = zip(names, fields, strict=True)
            yield reader.line_num, {name: value if name in keeps else _value(value) for name, value in row}


def _header(fields: Sequence[str]) -> list[str]:
    names = [field.strip() for field in fields]
    if len(set(names)) < len(names):
        raise Unreadable(f"line 1: the header names a column twice ({', '.join(names)}); rename one")
    return names


def _delimiter(sample: Sequence[str], text_column: str) -> str:
    """The delimiter with which the header has the column that is read; else that which gives most columns, and as many
    in every row."""

    def fit(delimiter: str) -> tuple[bool, int, int]:
        try:
            rows = [row for row in csv.reader(sample, delimiter=delimiter) if row]
        except csv.Error:
            return False, 0, 0
        header = [name.strip() for name in rows[0]] if rows else []
        alike = sum(len(row) == len(header) for row in rows)
        wanted = text_column in header if text_column else any(name.lower() in TEXT_COLUMNS for name in header)
        return wanted and (len(header) > 1 or len(rows) < 2), alike if len(header) > 1 else 0, len(header)

    return max(DELIMITERS, key=fit)  # the first of equals: the comma


def _value(field: str) -> str | int | float | None:
    """None for an empty cell; a number if it prints as it was written: ``1999``, but not ``007`` or ``1.10``."""
    if not _NUMBER.fullmatch(field):
        return field if field.strip() else None
    number = float(field) if "." in field else int(field)
    return number if str(number) == field else field


def _text_column(names: Iterable[str], asked_for: str) -> str:
    listed = list(names)
    lower = {name.lower(): name for name in reversed(listed)}
    wanted = [asked_for] if asked_for else [lower[name] for name in TEXT_COLUMNS if name in lower]
    if not wanted or wanted[0] not in listed:
        has = ", ".join(map(repr, listed)) or "none"
        other = ", or the delimiter with --delimiter" if len(listed) == 1 else ""
        missing = repr(asked_for) if asked_for else "'text', 'passage', 'content' or 'body'"
        raise Unreadable(f"no column {missing}; it has {has}: say which is read with --text-column{other}")
    return wanted[0]


def _row_document(id_without: str, row: Mapping[str, Any], origin: Mapping[str, Any], asked_for: str) -> Document:
    column = _text_column(row, asked_for)
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise Unreadable(f"{column!r} must be a text that is not empty; mend or delete the line")
    id, title = (None if name == column else row.get(name) for name in ("id", "title"))
    if not isinstance(id, str | int | None) or isinstance(id, bool):
        raise Unreadable(f"'id' must be a text or a whole number, not {type(id).__name__}")
    if not isinstance(title, str | None):
        raise Unreadable(f"'title' must be a text, not {type(title).__name__}")
    for taken in sorted(origin.keys() & row.keys()):
        raise Unreadable(f"the column {taken!r} is taken for where this file is; rename it")
    metadata = {name: value for name, value in row.items() if name not in (column, "id", "title")}
    given = "" if id is None else str(id)
    return Document(text, id=given or id_without, title=title or "", metadata={**metadata, **origin})
