"""The whole report, from `results.jsonl` alone: what ran where, every section that there are rows for, and losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gritrag.evaluate import limits_report, quality_report, speed_report, steady_report
from gritrag.evaluate.facts import table
from gritrag.evaluate.quality_report import Graded
from gritrag.evaluate.report import Section, Table, html, markdown, put_between_markers
from gritrag.evaluate.speed_report import BASELINE, Grid, context
from gritrag.evaluate.suite import FILE, RUN, Row, latest, read_rows

TITLE = "What reuse saves, and what it costs"
NOT_REUSE = (BASELINE, "no-retrieval", "query-doc")
IN_README = ("model", "commit", "hardware", "cores", "threads", "dtype", "torch")
BUSY = 0.3
"""Load average per core above which a machine is not idle."""


class Measured(NamedTuple):
    """Rows of each kind, of the run that measured it last."""

    runs: list[Row]
    grid: Grid
    indexes: list[Row]
    ceilings: Row | None
    graded: list[Graded]
    steady: Row | None

    def config(self, row: Row, part: str) -> dict[str, Any]:
        """The part of a configuration by which a row was measured."""
        (run,) = [run for run in self.runs if run["run"] == row["run"]]
        return dict(run["config"][part])


def measured(rows: Sequence[Row]) -> Measured:
    of = latest(rows)
    seeds = {run["run"]: run["config"]["seed"] for run in of[RUN]}
    quality = of.get("quality", [])
    return Measured(
        of[RUN],
        Grid(of.get("speed", [])),
        of.get("index", []),
        next(iter(of.get("limits", [])), None),
        [Graded(quality, seeds[quality[0]["run"]])] if quality else [],
        next(iter(of.get("steady", [])), None),
    )


def sections(found: Measured) -> list[Section]:
    every = [_facts(found.runs)]
    if found.grid.rows:
        every += speed_report.sections(found.grid, found.indexes)
        if found.ceilings is not None:
            every.append(limits_report.section(found.grid, found.indexes, found.ceilings))
    every += [quality_report.section(graded, found.config(graded.rows[0], "quality")) for graded in found.graded]
    if found.steady is not None:
        (run,) = [run for run in found.runs if run["run"] == found.steady["run"]]
        every.append(steady_report.section(found.steady, run["config"]["steady"], run["config"]["seed"]))
    return [*every, _losses(found)]


def write(folder: Path) -> list[Section]:
    """Write `report.md` and `report.html` beside `results.jsonl`, and return what is in them.

    Raises:
        ValueError: no results there, or broken ones.
    """
    every = sections(measured(read_rows(folder / FILE)))
    (folder / "report.md").write_text(markdown(TITLE, every), "utf-8")
    (folder / "report.html").write_text(html(TITLE, every), "utf-8")
    return every


def readme_block(path: Path) -> str:
    """What a README shows of a file of results: where it was measured, the first token, and the modes."""
    found = measured(read_rows(path))
    values = {name: dict.fromkeys(str(run["facts"].get(name) or "") for run in found.runs) for name in IN_README}
    told = ", ".join(f"{name} {'; '.join(of)}" for name, of in values.items() if any(of))
    parts = [f"Measured by `gritrag bench`: {told}. Medians with quartiles, scores with 95% bootstrap intervals."]
    shown = [
        row
        for row in found.grid.rows
        if row["cell"]["batch"] == 1
        and row["cell"]["mode"] in (BASELINE, "doc-cache")
        and row["cell"]["cache"] == "warm"
    ]
    tables = [speed_report.first_token_table(found.grid, shown)] if shown else []
    tables += [quality_report.table(graded) for graded in found.graded]
    return "\n\n".join([*parts, *(table(each.columns, each.rows) for each in tables)])


def write_readme(folder: Path, readme: Path) -> None:
    """Put `readme_block` between the markers of a Markdown file.

    Raises:
        ValueError: no results, or no markers.
    """
    put_between_markers(readme, readme_block(folder / FILE))


def _facts(runs: Sequence[Row]) -> Section:
    """Facts in which runs agree are told once."""
    names = list(dict.fromkeys(name for run in runs for name in {**run["facts"], **run["notes"]}))
    rows = []
    for name in names:
        values = list(dict.fromkeys(str({**run["facts"], **run["notes"]}.get(name, "")) for run in runs))
        rows.append([name, "; ".join(values)])
    rows.append(["seed", "; ".join(dict.fromkeys(str(run["config"]["seed"]) for run in runs))])
    rows.append(["n", "; ".join(_counts(run["config"]) for run in runs)])
    busy = [run for run in runs if run["notes"].get("load average", 0) > BUSY * (run["facts"].get("cores") or 1)]
    warning = "Other processes were busy when a run began: its times are not to be quoted." if busy else ""
    return Section("What was measured, and where", warning, (), [Table(["fact", "value"], rows)])


def _counts(config: dict[str, Any]) -> str:
    counts = {"speed": "repetitions", "quality": "questions", "steady": "requests"}
    return ", ".join(f"{config[part][count]} {count}" for part, count in counts.items() if config.get(part))


def _losses(found: Measured) -> Section:
    slower = [
        f"{row['cell']['mode']} ({row['cell']['codec']}, {row['cell']['cache']}), {context(row['cell'])} tokens, batch "
        f"{row['cell']['batch']}: first token {sooner.show('.2f')} times sooner"
        for row in found.grid.rows
        if row["cell"]["mode"] not in NOT_REUSE and (sooner := found.grid.sooner(row)) is not None and sooner.high < 1
    ]
    worse, open_cases = [], 0
    for graded in found.graded:
        for row in graded.rows:
            loss = graded.loss(row, "F1")
            if loss is None or row["cell"]["mode"] in NOT_REUSE:
                continue
            cell = row["cell"]
            if loss.high < 0:
                worse.append(f"{cell['mode']} ({cell['codec']}), {cell['documents']} documents: F1 {loss.show('+.1f')}")
            open_cases += loss.low <= 0 <= loss.high
    told = [["slower", line] for line in slower] + [["answers worse", line] for line in worse]
    undecided = f" In {open_cases} cells the interval of the F1 difference holds 0." if found.graded else ""
    none = "" if told else " No cell of either kind."
    return Section(
        "Where reuse loses",
        f"Slower: at least three quarters of the rounds were slower than {BASELINE}. Answers worse: the 95% interval "
        f"of the paired F1 difference to {BASELINE} lies below 0.{undecided}{none}",
        (),
        [Table(["loss", "cell"], told)],
    )
