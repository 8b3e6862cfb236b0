"""Rows of an experiment, kept in a file: a run that was stopped goes on, and further ways join what is there.

A row is what one way made of one question. It holds its `way`, the `id` of the question, and what else it is about.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gritrag.evaluate.statistics import difference, mean, percent, ratio

Row = dict[str, Any]


class Kept:
    """Rows in a file of JSONL, by what they were asked of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def of(self, **about: Any) -> list[Row]:
        """Those of which all this is true."""
        return [row for row in self.rows if all(row[name] == value for name, value in about.items())]

    def add(self, rows: Iterable[Row], **about: Any) -> None:
        """Rows, and what is true of all of them: to the file too, all at once."""
        new = [{**about, **row} for row in rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
        self.rows += new


def lacking(rows: Sequence[Row], ways: Sequence[str]) -> list[str]:
    """Of these ways, those that there is no row of."""
    have = {row["way"] for row in rows}
    return [way for way in ways if way not in have]


class Paired(NamedTuple):
    """The rows of each way, of the questions that have all of them and in one order.

    Args:
        questions: how many they are.
        rows: by way.
    """

    questions: int
    rows: dict[str, list[Row]]

    @classmethod
    def of(cls, rows: Sequence[Row], ways: Sequence[str]) -> "Paired":
        """Without rows of other ways, and of questions that lack one."""
        known = {(row["way"], row["id"]): row for row in rows}
        ids = dict.fromkeys(row["id"] for row in rows)
        whole = [id for id in ids if all((way, id) in known for way in ways)]
        return cls(len(whole), {way: [known[way, id] for id in whole] for way in ways})

    def each(self) -> Iterator[tuple[str, list[Row]]]:
        """Each way with its rows; nothing where no question has all."""
        yield from self.rows.items() if self.questions else ()

    def values(self, way: str, name: str) -> list[float]:
        """One number for each question."""
        return [row[name] for row in self.rows[way]]

    def shares(self, way: str, name: str, of: str, seed: int) -> list[str]:
        """Two cells: the mean of a number in points of 100, and how much that is of another way's, paired."""
        own, other = self.values(way, name), self.values(of, name)
        return [mean(own, seed).show(), percent(ratio(own, other, seed))]

    def change(self, way: str, name: str, against: str, seed: int, form: str = "+.1f", scale: float = 100.0) -> str:
        """One cell: the mean difference of a number to that of another way, paired; see `Interval.show`."""
        return difference(self.values(way, name), self.values(against, name), seed).show(form, scale)
