"""`bench grid`, `table7` and `steady`: one configuration, measured into one folder and told in one report."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gritrag.codecs import get_codec
from gritrag.config import DEFAULT_MODEL, Recipe
from gritrag.evaluate import modes, speed, speed_report, steady
from gritrag.evaluate.machine import ceilings, how_memory, machine_of
from gritrag.evaluate.modes import Graded, QualityConfig
from gritrag.evaluate.report import Section, Table, flat, html, losing, markdown
from gritrag.evaluate.speed import BASELINE, Grid, SpeedConfig, context
from gritrag.evaluate.steady import SteadyConfig
from gritrag.evaluate.suite import FILE, RUN, Result, Results, Row, latest, read_rows, run
from gritrag.model.grit import GritModel
from gritrag.modes import MODES

TITLE = "What reuse saves, and what it costs"
NOT_REUSE = (BASELINE, "no-retrieval", "query-doc")
PART_OF = {"speed": "speed", "index": "speed", "limits": "speed", "quality": "quality", "steady": "steady"}
"""By kind of row the part of a configuration that it was measured by."""


class BenchConfig(Recipe):
    """A benchmark run: the contents of `configs/bench/*.yaml`. What is left out is not measured; an unknown key is an
    error.

    Args:
        model: as `GritModel.from_pretrained` takes it.
        dtype, device: likewise.
        modes: names of RAG modes; all of them where empty.
        seed: of documents, questions, their order, and resamples.
    """

    model: str = DEFAULT_MODEL
    dtype: str = "auto"
    device: str = "auto"
    modes: tuple[str, ...] = ()
    seed: int = 0
    speed: SpeedConfig | None = None
    quality: QualityConfig | None = None
    steady: SteadyConfig | None = None


def main(command: str, config: BenchConfig, folder: Path) -> Result:
    """Measure what `folder` does not have yet, and write `report.md` and `report.html` there.

    A run that was stopped goes on where it was; so does one whose files are there, if code, machine and model are the
    same. Indexes are made in `folder` and deleted, so that cold reads are of its disk.

    Raises:
        ValueError: an unknown mode, codec or model, a broken file of questions, a context that is too long.
    """
    names = list(config.modes or MODES)
    _check(config, names)
    model = GritModel.from_pretrained(config.model, dtype=config.dtype, device=config.device)
    facts = {
        "model": config.model,
        "fingerprint": model.fingerprint.digest,
        **machine_of(model),
        "memory": how_memory(model.lm.device),
    }

    def work(results: Results) -> None:
        with tempfile.TemporaryDirectory(prefix="indexes-", dir=folder) as scratch:
            _measure(model, config, names, results, Path(scratch))

    result = run(command, config.model_dump(mode="json"), facts, work, folder)
    write(folder)
    return Result(command, {**result.facts, "settings": _settings(result.facts["settings"])}, result.rows)


def _measure(model: GritModel, config: BenchConfig, names: Sequence[str], results: Results, folder: Path) -> None:
    if config.speed is not None:
        if not results.has("limits", {}):
            results.write("limits", [({}, ceilings(model, config.speed.codecs[0], folder / "limits"))])
        speed.measure(model, config.speed, names, config.seed, results, folder / "speed")
    if config.quality is not None:
        modes.measure(model, config.quality, names, config.seed, results, folder / "quality")
    if config.steady is not None and not results.has("steady", {}):
        results.write("steady", [({}, steady.measure(model, config.steady, config.seed, folder / "steady"))])


def _check(config: BenchConfig, names: Sequence[str]) -> None:
    """What would be found out late."""
    asked = [*names, *([config.steady.mode] if config.steady else [])]
    if unknown := [mode for mode in asked if mode not in MODES]:
        raise ValueError(f"no mode {', '.join(unknown)}; there are: {', '.join(MODES)}")
    parts = [part for part in (config.speed, config.quality, config.steady) if part is not None]
    if not parts:
        raise ValueError("nothing to measure: give speed, quality or steady, see configs/bench/default.yaml")
    for codec in (*(config.speed.codecs if config.speed else ()), *(config.quality.codecs if config.quality else ())):
        get_codec(codec)
    if config.quality is not None:
        modes.sheets(config.quality, config.seed)
    if config.steady is not None:
        get_codec(config.steady.codec)
        next(steady.combinations(config.steady, config.seed))


# --- reports ----------------------------------------------------------------------------------------------------------


def write(folder: Path) -> Result:
    """Write `report.md` and `report.html` of a folder anew, from its `results.jsonl` alone: of each kind of rows
    those of the run that measured it last.

    Raises:
        ValueError: no results there, or broken ones.
    """
    of = latest(read_rows(folder / FILE))
    runs = of.pop(RUN)
    rows = [row for kind in of.values() for row in kind]
    settings: dict[str, Any] = {}
    for kind, measured in of.items():
        (own,) = [each for each in runs if each["run"] == measured[0]["run"]]
        settings[PART_OF[kind]] = _settings(own["settings"])[PART_OF[kind]]
    facts: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in runs for name in {**each["facts"], **each["notes"]}):
        values = list(dict.fromkeys(str({**each["facts"], **each["notes"]}.get(name, "")) for each in runs))
        facts[name] = "; ".join(values)
    loads = [each["notes"].get("load_average", 0) for each in runs]
    result = Result("bench report", {**facts, "load_average": max(loads), "settings": settings}, rows)
    every = [_facts(result), *result.sections()]
    (folder / "report.md").write_text(markdown(TITLE, every), "utf-8")
    (folder / "report.html").write_text(html(TITLE, every), "utf-8")
    return result


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a configuration that were measured, each with its seed."""
    parts = dict.fromkeys(PART_OF.values())
    return {part: {**config[part], "seed": config["seed"]} for part in parts if config.get(part)}


def sections(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """Every part that there are rows for, and losses."""
    settings = facts["settings"]
    of: dict[str, list[Row]] = {kind: [row for row in rows if row["kind"] == kind] for kind in PART_OF}
    grid, every = Grid(of["speed"]), list[Section]()
    if grid.rows:
        every += speed_report.sections(grid, of["index"])
        every += [speed_report.limits(grid, of["index"], row) for row in of["limits"]]
    graded = Graded(of["quality"], settings["quality"]["seed"]) if of["quality"] else None
    if graded is not None:
        every.append(modes.section(graded, settings["quality"]))
    every += [steady.section(row, settings["steady"]) for row in of["steady"]]
    return [*every, _losses(grid, graded)]


def _facts(result: Result) -> Section:
    settings = result.facts["settings"]
    shown = [[name, str(value)] for name, value in flat({k: v for k, v in result.facts.items() if k != "settings"})]
    shown.append(["seed", "; ".join(dict.fromkeys(str(part["seed"]) for part in settings.values()))])
    counts = {"speed": "repetitions", "quality": "questions", "steady": "requests"}
    n = [f"{settings[part][count]} {count}" for part, count in counts.items() if part in settings]
    table = Table(["fact", "value"], [*shown, ["n", ", ".join(n)]])
    return Section("What was measured, and where", result.warning(), (), [table])


def _losses(grid: Grid, graded: Graded | None) -> Section:
    lost = [
        f"slower: {row['cell']['mode']} ({row['cell']['codec']}, {row['cell']['cache']}), {context(row['cell'])} tokens"
        f", batch {row['cell']['batch']}: first token {sooner.show('.2f')} times sooner"
        for row in grid.rows
        if row["cell"]["mode"] not in NOT_REUSE and (sooner := grid.sooner(row)) is not None and sooner.high < 1
    ]
    open_cases = 0
    for row in graded.rows if graded is not None else ():
        cell = row["cell"]
        assert graded is not None
        loss = graded.loss(row, "F1")
        if loss is None or cell["mode"] in NOT_REUSE:
            continue
        open_cases += loss.low <= 0 <= loss.high
        if loss.high < 0:
            what = f"{cell['mode']} ({cell['codec']}), {cell['documents']} documents: F1 {loss.show('+.1f')}"
            lost.append(f"answers worse: {what}")
    undecided = f" In {open_cases} cells the interval of the F1 difference holds 0." if graded is not None else ""
    return losing(
        lost,
        f"Slower: at least three quarters of the rounds were slower than {BASELINE}. Answers worse: the 95% interval "
        f"of the paired F1 difference to {BASELINE} lies below 0.{undecided}",
    )
