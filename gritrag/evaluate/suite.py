"""Results of benchmark runs: `results.jsonl`, one row per finished cell, from which every report is made.

A run is a configuration, measured by one version of the code on one machine; a cell that a run has finished is not
measured again. Rows of kind `run` say what a run was; all others carry its name, their `kind` and their `cell`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

FILE = "results.jsonl"
RUN = "run"

Row = dict[str, Any]


class Results:
    """The rows of a folder, which is made if need be.

    Args:
        folder: holds `results.jsonl`.
        config: what is measured, as JSON can hold it.
        facts: what it is measured with; a difference in either makes another run.
        notes: what is worth knowing of this start of the run, such as its time.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], facts: Mapping[str, Any], notes: Mapping[str, Any] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self.run = xxhash.xxh3_64_hexdigest(json.dumps([config, facts], sort_keys=True).encode())
        if self.path.exists():
            _drop_torn_line(self.path)
        rows = read_rows(self.path) if self.path.exists() else []
        self._done = {(row["kind"], _name(row["cell"])) for row in rows if row["run"] == self.run and "cell" in row}
        started = {"kind": RUN, "run": self.run, "config": config, "facts": facts, "notes": notes or {}}
        if not any(row["kind"] == RUN and row["run"] == self.run for row in rows[-1:]):
            self._append([started])

    def has(self, kind: str, cell: Mapping[str, Any]) -> bool:
        """Whether this run has finished that cell."""
        return (kind, _name(cell)) in self._done

    def write(self, kind: str, cells: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
        """Append `(cell, figures)` pairs that were measured together, in one write."""
        self._append([{"kind": kind, "run": self.run, "cell": dict(cell), **figures} for cell, figures in cells])
        self._done |= {(kind, _name(cell)) for cell, _ in cells}

    def _append(self, rows: Sequence[Row]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a file.

    Raises:
        ValueError: no such file, or a line that is no row.
    """
    try:
        lines = path.read_text("utf-8").split("\n")[:-1]  # what follows the last line break was torn
    except OSError as error:
        raise ValueError(f"cannot read results from {path}: {error.strerror}; run gritrag bench grid first") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "kind": row["kind"], "run": row["run"]})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: no row of results ({error})") from None
    return rows


def latest(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by kind: of each kind those of the run that wrote it last, and of each cell the last one.

    Under `run` stand the runs that these rows are of.
    """
    last_run = {row["kind"]: row["run"] for row in rows if row["kind"] != RUN}
    found: dict[str, list[Row]] = {}
    for kind, run in last_run.items():
        of_cell = {_name(row["cell"]): row for row in rows if (row["kind"], row["run"]) == (kind, run)}
        found[kind] = list(of_cell.values())
    used = set(last_run.values())
    found[RUN] = list({row["run"]: row for row in rows if row["kind"] == RUN and row["run"] in used}.values())
    return found


def _name(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def _drop_torn_line(path: Path) -> None:
    data = path.read_bytes()
    os.truncate(path, data.rfind(b"\n") + 1)
