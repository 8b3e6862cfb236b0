"""Files of rows: JSON, JSONL, CSV, TSV and Parquet, told apart by their suffix.

A JSON file holds a list of rows, or SQuAD's own form (`{"data": [{"title", "paragraphs": [{"context", "qas"}]}]}`).
Cells of CSV that hold a list or an object, in JSON or as Python prints it, are read as such; an empty cell is no value.
"""

import ast
import csv
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

try:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile
except ModuleNotFoundError:  # an extra; said where it is missed
    ParquetFile = None

MAX_CELL = 1 << 30
DELIMITERS = ",;\t|"


class Numbered(NamedTuple):
    """A row and where it stands: `place` is ``"line 3"`` or ``"row 3"``."""

    place: str
    number: int
    row: Any


def numbered_rows(path: Path) -> Iterator[Numbered]:
    """Every row of a file, whatever it is.

    Raises:
        ValueError: the file cannot be read, is no UTF-8 text, or is broken; file and line are named.
    """
    kind = path.suffix.lower()
    readers = {".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    try:
        yield from readers.get(kind, _lines)(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason}") from None


def _lines(path: Path) -> Iterator[Numbered]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Numbered(f"line {number}", number, _parsed(line, f"{path}, line {number}: broken row"))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from None


def _json(path: Path) -> Iterator[Numbered]:
    text = path.read_text("utf-8-sig")
    first = text.lstrip().partition("\n")[0].strip()
    if _is_object(first) and text.strip() != first:  # JSONL under another name
        yield from _lines(path)
        return
    content = _parsed(text, str(path))
    rows = content.get("data", content.get("questions", [content])) if isinstance(content, Mapping) else content
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds no list of rows")
    for number, row in enumerate(_flattened(rows), start=1):
        yield Numbered(f"row {number}", number, row)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), Mapping)
    except (ValueError, RecursionError):
        return False


def _flattened(rows: list[Any]) -> Iterator[Any]:
    """Articles of SQuAD's own form as one row for each question; anything else as it is."""
    for row in rows:
        if not isinstance(row, Mapping) or "paragraphs" not in row:
            yield row
            continue
        for paragraph in row["paragraphs"]:
            for question in paragraph["qas"]:
                yield {"title": row.get("title"), "context": paragraph["context"], **question}


def _csv(path: Path) -> Iterator[Numbered]:
    csv.field_size_limit(MAX_CELL)  # process-wide; the default is less than a long document
    with path.open(encoding="utf-8-sig", newline="") as lines:
        header = "".join(islice(lines, 1))
        lines.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=header.count)
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                number = reader.line_num
                if None in row:
                    raise ValueError(f"{path}, line {number}: broken row: more cells than the header has")
                yield Numbered(f"line {number}", number, {key: _cell(value) for key, value in row.items() if value})
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: broken row: {error}") from None


def _cell(text: str) -> Any:
    """A list or an object that a cell spells; else its text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last where brackets are too deep
            continue
        return parsed if isinstance(parsed, list | dict) else text
    return text


def _parquet(path: Path) -> Iterator[Numbered]:
    if ParquetFile is None:
        raise ValueError(f"{path}: reading Parquet needs pyarrow; run: pip install 'gritrag[eval]'")
    try:
        with ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=1000) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield Numbered(f"row {number}", number, row)
    except ArrowException as error:
        raise ValueError(f"{path} is no Parquet file that can be read: {error}") from None
