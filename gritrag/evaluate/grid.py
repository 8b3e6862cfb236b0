"""A benchmark run: a configuration, measured into `results.jsonl`, and its reports."""

import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from gritrag.answer import MODES
from gritrag.codecs import get_codec
from gritrag.evaluate import full_report, limits, modes, speed, steady
from gritrag.evaluate.config import BenchConfig
from gritrag.evaluate.facts import machine_of
from gritrag.evaluate.process import how_memory
from gritrag.evaluate.report import markdown
from gritrag.evaluate.suite import Results
from gritrag.model.grit import GritModel


def main(config: BenchConfig, out: Path, as_json_text: bool = False) -> str:
    """Run and return what to print: the report, as Markdown or as JSON."""
    measure(config, out)
    return show(out, as_json_text)


def show(folder: Path, as_json_text: bool = False) -> str:
    """Write the reports of a folder anew from its `results.jsonl`, and return what to print.

    Raises:
        ValueError: no results there, or broken ones.
    """
    every = full_report.write(folder)
    return json.dumps([section.as_json() for section in every]) if as_json_text else markdown(full_report.TITLE, every)


def measure(config: BenchConfig, out: Path) -> None:
    """Measure what `out` does not have yet.

    A run that was stopped goes on where it was; so does one whose files are there, if code, machine and model are the
    same. Indexes are made in `out` and deleted, so that cold reads are of its disk.

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
        "cores": os.cpu_count(),
        "memory": how_memory(model.lm.device),
    }
    notes = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "load average": os.getloadavg()[0]}
    results = Results(out, config.model_dump(mode="json"), facts, notes)
    with tempfile.TemporaryDirectory(prefix="indexes-", dir=out) as scratch:
        folder = Path(scratch)
        if config.speed is not None:
            if not results.has("limits", {}):
                results.write("limits", [({}, limits.ceilings(model, config.speed.codecs[0], folder / "limits"))])
            speed.measure(model, config.speed, names, config.seed, results, folder / "speed")
        if config.quality is not None:
            modes.measure(model, config.quality, names, config.seed, results, folder / "quality")
        if config.steady is not None and not results.has("steady", {}):
            figures = steady.measure(model, config.steady, config.seed, folder / "steady")
            results.write("steady", [({}, figures)])


def _check(config: BenchConfig, names: list[str]) -> None:
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
