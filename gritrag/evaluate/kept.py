"""What is kept of one file of questions and one model: scores of the search, and each question with its answers.

Given results with a folder, it is kept on disk as soon as it is there, and a run that was stopped has it again.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gritrag.evaluate.scores import Scores
from gritrag.evaluate.suite import Results

SEARCHED, ANSWERED = "searched", "answered"

Record = dict[str, Any]
"""A question with its answers; see `gritrag.evaluate.quality.record_of`."""

LINE = ("id", "kind", "question", "answers", "document", "contexts", "given")
"""What the file of answers tells of a record."""


class Kept:
    """Scores by way to search (None as long as it was not searched), and records by the number of their question.

    Args:
        results: where they are kept, and found again; in memory alone where None.
        cell: names the file, its content and the model.
        hear: is told each record, and whether it is of an earlier run; these at once.
    """

    def __init__(
        self,
        results: Results | None = None,
        cell: Mapping[str, Any] | None = None,
        hear: Callable[[Record, bool], None] | None = None,
    ) -> None:
        self._results, self._cell, self._hear = results, dict(cell or {}), hear
        self.searched: dict[str, Scores] | None = None
        self.records: dict[int, Record] = {}
        for row in results.rows if results is not None else ():
            number = row["cell"].get("number")
            if {key: value for key, value in row["cell"].items() if key != "number"} != self._cell:
                continue
            if row["kind"] == SEARCHED:
                self.searched = row["ways"]
            elif row["kind"] == ANSWERED:
                self.records[number] = row["record"]
        for record in self.in_order():
            self._say(record, is_earlier=True)

    def in_order(self) -> list[Record]:
        return [self.records[number] for number in sorted(self.records)]

    def keep_searched(self, ways: dict[str, Scores]) -> None:
        self.searched = ways
        if self._results is not None:
            self._results.write(SEARCHED, [(self._cell, {"ways": ways})])

    def keep(self, number: int, record: Record) -> None:
        self.records[number] = record
        if self._results is not None:
            self._results.write(ANSWERED, [({**self._cell, "number": number}, {"record": record})])
        self._say(record, is_earlier=False)

    def _say(self, record: Record, is_earlier: bool) -> None:
        if self._hear is not None:
            self._hear(record, is_earlier)
