"""Rows: .jsonl and .csv, each row a document. Text files are decoded here too, line by line."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

from gritrag.records import Document

_BOM = b"\xef\xbb\xbf"
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")
_MAX_CSV_FIELD = 2**31 - 1


def read_rows(file: BinaryIO, name: str, where: str, metadata: Mapping[str, Any]) -> Iterator[Document]:
    """Documents of the rows of a .jsonl or .csv file; `gritrag.documents.read.read_file` says what a row may hold."""
    rows = _jsonl_rows(file, where) if name.lower().endswith(".jsonl") else _csv_rows(file, where)
    for line, row in rows:
        yield _row_document(f"{where}, line {line}", f"{name}#{line}", row, metadata)


def decoded_lines(file: BinaryIO, where: str) -> Iterator[tuple[int, str]]:
    """Lines with their ends, numbered from 1; decoded one by one, so that a broken one is known by its number."""
    for number, line in enumerate(file, start=1):
        try:
            yield number, (line.removeprefix(_BOM) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); "
                "convert the file: iconv -f LATIN1 -t UTF-8"
            ) from None


def _jsonl_rows(file: BinaryIO, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in decoded_lines(file, where):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}, line {number}: not valid JSON ({error}); mend or delete the line") from None
        if not isinstance(row, dict):
            raise ValueError(f'{where}, line {number}: a {type(row).__name__}, not an object; write {{"text": ...}}')
        yield number, row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _csv_rows(file: BinaryIO, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(_MAX_CSV_FIELD)  # process-wide; the default, 128 KiB, is less than a long document
    reader = csv.DictReader((line for _, line in decoded_lines(file, where)), strict=True)
    try:
        names = list(reader.fieldnames or ())
        if len(set(names)) < len(names):
            raise ValueError(f"{where}, line 1: the header names a column twice ({', '.join(names)}); rename one")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{where}, line {reader.line_num}: not as many fields as the header has columns "
                    f"({len(names)}); put quotes around a field that holds commas or line breaks"
                )
            reserved = {"text", "passage", "id", "title"}
            yield reader.line_num, {name: v if name in reserved else _number(v) for name, v in row.items()}
    except csv.Error as error:
        raise ValueError(f"{where}, line {reader.reader.line_num}: not valid CSV ({error}); mend its quotes") from None


def _number(field: str) -> str | int | float:
    """A number if it prints as it was written: ``1999`` is one, ``007`` and ``1.10`` stay text."""
    if not _NUMBER.fullmatch(field):
        return field
    number = float(field) if "." in field else int(field)
    return number if str(number) == field else field


def _row_document(where: str, id_without: str, row: Mapping[str, Any], origin: Mapping[str, Any]) -> Document:
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
    for taken in sorted(origin.keys() & row.keys()):
        raise ValueError(f"{where}: the column {taken!r} is taken for where this file is; rename it")
    metadata = {name: value for name, value in row.items() if name not in (column, "id", "title")}
    given = "" if id is None else str(id)
    return Document(text, id=given or id_without, title=title or "", metadata={**metadata, **origin})
