"""Suites: named cases with their settings, measured into rows, from which every report is made.

A suite writes a row for each case that it has finished. Given a folder, the rows are lines of `results.jsonl`, and a
case that the same suite has finished there, measured by the same code on the same machine, is not measured again.
What comes of a run is a `Result`, which a JSON file `{"command", "facts", "rows"}` holds whole: `gritrag bench
render` makes the same report of it anywhere.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from gritrag.evaluate.report import Section, flat, header, markdown
from gritrag.evaluate.statistics import as_json, from_json
from gritrag.progress import ProgressBar

FILE = "results.jsonl"
RUN = "run"

BUSY = 0.3
"""Load average per core above which a machine is not idle."""

T = TypeVar("T")

Row = dict[str, Any]
"""`kind` and `cell` say what was measured, all other keys what came of it."""

REPORTS = {
    "bench first-token": "first_token",
    "bench reading": "reading",
    "bench codecs": "codecs",
    "bench decoding": "decoding",
    "bench grid": "grid",
    "bench table7": "grid",
    "bench steady": "grid",
    "bench report": "grid",
    "bench peers": "peers",
    "bench memory": "memory",
    "eval questions": "overview",
    "eval embedding": "embedding",
}
"""By command the module whose `sections` makes a report of facts and rows."""


class Results:
    """The rows of one run, and those of earlier runs in the same folder, which is made if need be.

    Args:
        folder: holds `results.jsonl`; None to keep rows in memory alone.
        settings: what is measured, as JSON can hold it.
        facts: what it is measured with; a difference in either makes another run.
        notes: what is worth knowing of this start of the run, such as its time.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = folder / FILE if folder else None
        self.run = xxhash.xxh3_64_hexdigest(json.dumps([settings, facts], sort_keys=True).encode())
        earlier: list[Row] = []
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                _drop_torn_line(self.path)
                earlier = read_rows(self.path)
        self._rows = [row for row in earlier if row["run"] == self.run and row["kind"] != RUN]
        started = {"kind": RUN, "run": self.run, "settings": settings, "facts": facts, "notes": notes or {}}
        if not any(row["kind"] == RUN and row["run"] == self.run for row in earlier[-1:]):
            self._append([started])

    @property
    def rows(self) -> list[Row]:
        """Of this run, the last one of each case."""
        return list({(row["kind"], _name(row["cell"])): row for row in self._rows}.values())

    def has(self, kind: str, cell: Mapping[str, Any]) -> bool:
        """Whether this run has finished that case."""
        return any((row["kind"], _name(row["cell"])) == (kind, _name(cell)) for row in self._rows)

    def write(self, kind: str, cells: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
        """Append `(cell, figures)` pairs that were measured together, in one write."""
        rows = [{"kind": kind, "run": self.run, "cell": dict(cell), **as_json(figures)} for cell, figures in cells]
        self._append(rows)
        self._rows += rows

    def _append(self, rows: Sequence[Row]) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Result:
    """What a command measured.

    Args:
        command: such as ``bench first-token``.
        facts: commit, machine, versions and the run's `settings`.
        rows: see `Row`.
    """

    command: str
    facts: dict[str, Any]
    rows: list[Row]

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read a JSON file that `--out` wrote; see `load_results`."""
        (result,) = load_results(path)
        return result

    def json(self) -> str:
        """With a line for each row, so that two files can be compared line by line."""
        rows = ",\n".join(json.dumps({k: as_json(v) for k, v in row.items() if k != RUN}) for row in self.rows)
        head = f'"command": {json.dumps(self.command)},\n"facts": {json.dumps(as_json(self.facts))},\n'
        return f'{{\n{head}"rows": [\n{rows}\n]\n}}\n'

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.with_name(f"{path.name}.tmp")
        torn.write_text(self.json(), "utf-8")
        torn.replace(path)

    def sections(self) -> list[Section]:
        """The report, from facts and rows alone."""
        module = import_module(f"gritrag.evaluate.{REPORTS[self.command]}")
        facts, rows = json.loads(json.dumps(as_json([self.facts, self.rows])))
        sections: list[Section] = module.sections(facts, [from_json(row) for row in rows])
        return sections

    def warning(self) -> str:
        """What makes times worthless; empty if nothing does."""
        is_busy = float(self.facts.get("load_average") or 0) > BUSY * int(self.facts.get("cores") or 1)
        return "Other processes were busy when the run began: its times are not to be quoted." if is_busy else ""

    def show(self) -> str:
        """Facts, a line each, and the report, as a terminal shows them."""
        told = markdown("", [Section("", self.warning()), *self.sections()])
        return f"{header(self.facts)}\n\n{told}"

    def render(self) -> str:
        """The report, as a page of Markdown shows it: the facts are one paragraph at its end."""
        told = "; ".join(f"{name} {value}" for name, value in flat(self.facts) if value not in ("", None))
        warning = f" {self.warning()}" if self.warning() else ""
        return f"{markdown('', self.sections())}\nMeasured by `gritrag {self.command}`: {told}.{warning}\n"


def load_results(path: Path) -> list[Result]:
    """Read a JSON file that `--out` wrote, or one that holds a list of such.

    Raises:
        ValueError: no such file, or one of another form.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        each = found if isinstance(found, list) else [found]
        results = [Result(one["command"], dict(one["facts"]), [dict(row) for row in one["rows"]]) for one in each]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of a benchmark, which --out writes: {error!r}") from None
    for result in results:
        if result.command not in REPORTS:
            raise ValueError(f"{path} is of {result.command!r}; this version reports of: {', '.join(REPORTS)}")
    return results


def run(
    command: str,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    measure: Callable[[Results], None],
    folder: Path | None = None,
) -> Result:
    """Run a suite: measure what `folder` does not have yet.

    Args:
        command: that is run; see `REPORTS`.
        settings: of the suite, as JSON can hold them.
        facts: see `gritrag.evaluate.machine`.
        measure: writes a row for each case that the results do not have.
        folder: of `results.jsonl`; None where nothing is to be resumed.
    """
    notes = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "load_average": round(os.getloadavg()[0], 2)}
    results = Results(folder, settings, facts, notes)
    measure(results)
    return Result(command, {**facts, "settings": dict(settings), **notes}, results.rows)


def in_turn(cells: Sequence[T], warmup: int, rounds: int) -> Iterator[tuple[int, T]]:
    """`(round, cell)`: each round has every cell once, so that drift of the machine hits all alike, and begins with
    another cell than the one before, so that none always follows the same. Rounds below 0 warm up."""
    for number in range(-warmup, rounds):
        first = number % len(cells)
        yield from ((number, cell) for cell in (*cells[first:], *cells[:first]))


def rounds(ways: Mapping[str, Callable[[int], T]], repetitions: int, about: str) -> dict[str, list[T]]:
    """What each way gave in each round, by its name; ways take turns, and a round before them warms up.

    Args:
        ways: are told the number of the round, which is -1 for the one that warms up.
        repetitions: rounds that count.
        about: says on the progress bar what is measured.
    """
    found: dict[str, list[T]] = {way: [] for way in ways}
    for number, way in ProgressBar(list(in_turn(list(ways), 1, repetitions)), desc=about, unit="turn"):
        given = ways[way](number)
        if number >= 0:
            found[way].append(given)
    return found


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a `results.jsonl`.

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
            needed = ("kind", "run", *(("settings", "facts", "notes") if row["kind"] == RUN else ("cell",)))
            rows.append({**row, **{key: row[key] for key in needed}})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: no row of results ({error})") from None
    return rows


def latest(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by kind: of each kind those of the run that wrote it last, and of each cell the last one.

    Under `run` stand the runs that these rows are of.
    """
    last_run = {row["kind"]: row["run"] for row in rows if row["kind"] != RUN}
    found: dict[str, list[Row]] = {}
    for kind, of_run in last_run.items():
        of_cell = {_name(row["cell"]): row for row in rows if (row["kind"], row["run"]) == (kind, of_run)}
        found[kind] = list(of_cell.values())
    used = set(last_run.values())
    found[RUN] = list({row["run"]: row for row in rows if row["kind"] == RUN and row["run"] in used}.values())
    return found


def _name(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def _drop_torn_line(path: Path) -> None:
    data = path.read_bytes()
    os.truncate(path, data.rfind(b"\n") + 1)
