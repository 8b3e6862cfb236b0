"""Parquet: each row of a table is a document, as each line of a .jsonl file is."""

import datetime
import decimal
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from gritrag.documents.sections import Unreadable

AT_ONCE = 256
"""Rows."""


def read_table(file: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows, numbered from 1, with values as JSON has them: times and decimals as text, bytes left out.

    Raises:
        Unreadable: it is no table, or a broken one.
    """
    number = 0
    try:
        for batch in ParquetFile(file).iter_batches(AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield number, _plain(row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"no Parquet table, or one that is broken behind row {number} ({error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if not isinstance(each, bytes)}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value if not isinstance(each, bytes)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    times = datetime.date | datetime.time | datetime.timedelta | decimal.Decimal
    return str(value) if isinstance(value, times) else value
