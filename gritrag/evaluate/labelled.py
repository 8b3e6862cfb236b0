"""Rows with labels and pairs with scores, from JSONL files: what clustering, classification and STS are measured on.

Kinds of rows, told apart by their keys; a file holds one kind:

- ``{"text", "label"}``: a label is a text or a number;
- ``{"sentence1", "sentence2", "score"}``.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gritrag.evaluate.rows import numbered_lines


class Labelled(NamedTuple):
    text: str
    label: str


class Pair(NamedTuple):
    """Two sentences, and how alike they are in meaning; only the order of scores matters."""

    first: str
    second: str
    score: float


def keys_of(path: Path) -> set[str]:
    """Of the first row, by which a file is known.

    Raises:
        ValueError: the file cannot be read, or holds no rows that are objects.
    """
    for number, line in numbered_lines(path):
        return set(_row(path, number, line))
    raise ValueError(f"{path} holds no rows")


def read_labelled(path: Path) -> list[Labelled]:
    """All rows of a file with labels.

    Raises:
        ValueError: a broken row (file and line are named), or fewer than two different labels.
    """
    rows = [
        Labelled(_text(row, "text", where), _label(row, where))
        for where, row in ((f"{path}, line {n}", _row(path, n, line)) for n, line in numbered_lines(path))
    ]
    if len({row.label for row in rows}) < 2:
        raise ValueError(f"{path} has {len({row.label for row in rows})} different labels; it takes two to tell apart")
    return rows


def read_pairs(path: Path) -> list[Pair]:
    """All rows of a file of sentence pairs.

    Raises:
        ValueError: a broken row (file and line are named), or fewer than two different scores.
    """
    rows = [
        Pair(_text(row, "sentence1", where), _text(row, "sentence2", where), _score(row, where))
        for where, row in ((f"{path}, line {n}", _row(path, n, line)) for n, line in numbered_lines(path))
    ]
    if len({row.score for row in rows}) < 2:
        raise ValueError(f"{path} has {len({row.score for row in rows})} different scores; there is nothing to rank")
    return rows


def _row(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: broken row: {error}") from None
    if not isinstance(row, Mapping):
        raise ValueError(f"{path}, line {number}: broken row: a row must be an object, not {type(row).__name__}")
    return row


def _value(row: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise ValueError(f"{where}: broken row: it lacks the key {key!r}")
    return row[key]


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = _value(row, key, where)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: broken row: {key} must be a text that is not empty, got {value!r}")
    return value


def _label(row: Mapping[str, Any], where: str) -> str:
    value = _value(row, "label", where)
    if not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{where}: broken row: label must be a text or a whole number, got {value!r}")
    return str(value)


def _score(row: Mapping[str, Any], where: str) -> float:
    value = _value(row, "score", where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: broken row: score must be a number, got {value!r}")
    return float(value)
