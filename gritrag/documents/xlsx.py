"""Workbooks (.xlsx), in blocks of rows, with openpyxl."""

import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import Any, BinaryIO

from openpyxl import load_workbook

from gritrag.documents.sections import Section, Unreadable, check_archive

BLOCK_ROWS = 20
"""Rows of one section: a citation then names the row that it begins with."""
MAX_CELLS = 2_000_000
_CONTROL = re.compile("_x00[01][0-9A-Fa-f]_")
"""How a sheet writes control characters, such as carriage returns that other programs export; openpyxl leaves it."""


def read(file: BinaryIO) -> Iterator[Section]:
    """Blocks of rows, sheet by sheet, each row a line. Of formulas, the values that were last computed.

    Where the first row that is not empty holds nothing but texts, at least two, these name the columns, and each line
    says them again: ``Port: Osk; Departure: 16:00``. A line alone then tells what it is about.
    """
    check_archive(file, ".xlsx")
    workbook = load_workbook(file, read_only=True, data_only=True, keep_links=False)
    title = workbook.properties.title or ""
    cells = 0
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # some programs write wrong ones, and rows would be padded to them
        names: list[str] | None = None
        block: list[str] = []
        first = 0
        for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
            cells += len(row)
            if cells > MAX_CELLS:
                raise Unreadable(f"it has more than {MAX_CELLS:,} cells: export its sheets as .csv")
            fields = [_field(value) for value in row]
            if not any(fields):
                continue
            if names is None:
                names = fields if _names_columns(row) else []
                if names:
                    continue
            first = first if block else number
            block.append(_line(names, fields))
            if len(block) == BLOCK_ROWS:
                yield Section("\n".join(block), {"sheet": sheet.title, "row": first}, title)
                block = []
        if block:
            yield Section("\n".join(block), {"sheet": sheet.title, "row": first}, title)


def _names_columns(row: Sequence[Any]) -> bool:
    filled = [value for value in row if value is not None]
    return len(filled) > 1 and all(isinstance(value, str) for value in filled)


def _line(names: Sequence[str], fields: Sequence[str]) -> str:
    if not names:
        return " | ".join(field for field in fields if field)
    named = [*names, *[""] * (len(fields) - len(names))]
    return "; ".join(f"{name}: {field}" if name else field for name, field in zip(named, fields, strict=False) if field)


def _field(value: Any) -> str:
    """As a reader sees it: a date without midnight, a whole number without ``.0``."""
    if value is None:
        return ""
    if isinstance(value, datetime) and value.time() == datetime.min.time():
        value = value.date()
    if isinstance(value, date):
        return value.isoformat(*([" ", "minutes"] if isinstance(value, datetime) else []))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return " ".join(_CONTROL.sub(" ", str(value)).split())
