"""Reports of results that are known: what tables say, and that the page needs nothing but itself."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from repository import ROOT, TINY
from typer.testing import CliRunner

from gritrag.cli import app
from gritrag.evaluate import grid
from gritrag.evaluate.report import LINE, Point, Scale, Section, Series, Table, bar_chart, html, line_chart, markdown
from gritrag.evaluate.suite import FILE

SVG = "{http://www.w3.org/2000/svg}"
RUN = {
    "kind": "run",
    "run": "r",
    "settings": {
        "seed": 0,
        "speed": {"repetitions": 3},
        "quality": {"file": None, "questions": 4, "context": "gold", "new_tokens": 8},
        "steady": {"requests": 4, "documents": 9, "tokens": 50, "k": 2, "exponent": 1.0, "mode": "doc-cache"}
        | {"warmup": 1, "window": 2},
    },
    "facts": {"model": "m", "commit": "abc1234", "hardware": "a machine <fast>", "cores": 2},
    "notes": {"load_average": 1.9},
}


def speed(mode: str, documents: int, seconds: list[float], cached: int = 0, codec: str = "-") -> dict[str, Any]:
    rounds = []
    for number, first in enumerate(seconds):
        parts = {"retrieve": 0.02, "load": 0.01, "place": 0.01, "question": first - 0.04, "decode": 0.1}
        tokens = {"prompt_tokens": 110, "cached_tokens": cached, "generated_tokens": 5}
        rounds.append({"round": number, "first_token": first, "total": first + 0.1, "parts": parts, **tokens})
    cell = {"mode": mode, "documents": documents, "tokens": 100, "codec": codec, "cache": "warm", "batch": 1}
    return {"kind": "speed", "run": "r", "cell": cell, "memory": {"before": 10**8, "peak": 3 * 10**8}, "rounds": rounds}


def quality(mode: str, f1: list[float], codec: str = "-") -> dict[str, Any]:
    scores = {"EM": f1, "F1": f1, "match": f1, "first_token": [0.1] * 4, "total": [0.2] * 4}
    cell = {"mode": mode, "documents": 5, "codec": codec}
    return {"kind": "quality", "run": "r", "cell": cell, "ids": ["1", "2", "3", "4"], "bytes": 2_500_000, **scores}


ROWS = [
    RUN,
    speed("doc-query", 1, [1.0, 2.0, 3.0]),
    speed("doc-cache", 1, [0.1, 0.1, 0.1], cached=100, codec="bf16"),
    speed("query-cache", 1, [2.0, 2.5, 4.0], cached=10),
    speed("doc-query", 4, [4.0, 4.0, 4.0]),
    speed("doc-cache", 4, [0.2, 0.2, 0.2], cached=100, codec="bf16"),
    quality("doc-query", [1.0, 1.0, 0.0, 1.0]),
    quality("doc-cache", [1.0, 1.0, 0.0, 1.0], codec="bf16"),
    quality("query-cache", [0.0, 0.0, 0.0, 0.0]),
    {
        "kind": "steady",
        "run": "r",
        "cell": {},
        "requests": [{"first_token": 0.1, "total": 0.1, "asked": 2, "had": 2}] * 4,
        "state_bytes": 1e6,
        "state_bytes_of_all": 1e6,
    },
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FILE).write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    grid.write(tmp_path)
    return tmp_path


def cells(text: str) -> list[list[str]]:
    """Rows of all Markdown tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


class Page(HTMLParser):
    """What a page is made of, and whether its tags are closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_ratios_are_of_the_same_rounds_and_losses_are_listed(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    rows = cells(text)
    first = ["1 x 100", "1", "doc-cache", "bf16", "warm", "100 [100, 100]", "20.00 [15.00, 25.00]"]
    assert [*first, "80.0 [80.0, 80.0]", "200 [200, 200]", "100 of 110"] in rows
    assert ["1 x 100", "1", "doc-query", "-", "warm", "2000 [1500, 2500]", "-"] in [row[:7] for row in rows]
    losses = [row[0] for row in rows if row[0].startswith("slower")]
    assert losses == [
        "slower: query-cache (-, warm), 1 x 100 tokens, batch 1: first token 0.75 [0.62, 0.78] times sooner"
    ]
    assert [row[0] for row in rows if row[0].startswith("answers worse")] == [
        "answers worse: query-cache (-), 5 documents: F1 -75.0 [-100.0, -25.0]"
    ]
    assert "In 1 cells the interval of the F1 difference holds 0" in text


def test_parts_memory_and_decoding(folder: Path) -> None:
    rows = cells((folder / "report.md").read_text())
    of_parts = ["20.0 [20.0, 20.0]", "10.0 [10.0, 10.0]", "10.0 [10.0, 10.0]", "60.0 [60.0, 60.0]", "100 [100, 100]"]
    assert ["1 x 100", "1", "doc-cache", "bf16", "warm", *of_parts] in rows
    memory = ["1 x 100", "1", "doc-cache", "bf16", "warm", "300", "100", "40.0 [40.0, 40.0]"]
    assert memory in rows


def test_the_table_of_modes(folder: Path) -> None:
    rows = {tuple(row[:2]): row for row in cells((folder / "report.md").read_text())}
    assert rows["5", "doc-query"][2:7] == ["-", "75.0 [25.0, 100.0]", "75.0 [25.0, 100.0]", "-", "-"]
    assert rows["5", "doc-cache"][5:] == [
        "+0.0 [+0.0, +0.0]",
        "100 [100, 100]",
        "100 [100, 100]",
        "200 [200, 200]",
        "2.5",
    ]


def test_a_machine_that_was_busy_is_told(folder: Path) -> None:
    assert "Other processes were busy" in (folder / "report.md").read_text()
    (folder / FILE).write_text((folder / FILE).read_text().replace('"load_average": 1.9', '"load_average": 0.1'))
    grid.write(folder)
    assert "Other processes were busy" not in (folder / "report.md").read_text()


def test_the_page_is_whole_and_loads_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    assert not {"src", "href", "xlink:href", "data", "action"} & {name for name, _ in page.attributes}
    assert not re.search(r"url\(|@import|javascript:", text)
    assert set(re.findall(r"https?://[^\"<\s]*", text)) == {"http://www.w3.org/2000/svg"}, "a name, not an address"
    assert "a machine &lt;fast&gt;" in text


def test_the_page_has_its_charts_and_a_table_under_each(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    parsed = [ElementTree.fromstring(chart) for chart in charts]
    titles = [chart.findtext(f"{SVG}title") for chart in parsed]
    assert titles == [
        "First token against context length",
        "Parts of an answer, 4 x 100 tokens",
        "Parts of an answer from states, 4 x 100 tokens",
        "Quality against speed",
        "First token over time",
    ]
    labels = [{node.text for node in chart.iter(f"{SVG}text")} for chart in parsed]
    assert {"doc-query", "doc-cache", "query-cache"} <= labels[0]
    assert {"retrieve", "load", "place", "question", "decode", "doc-cache"} <= labels[1]
    assert "doc-query" not in labels[2]
    assert {"doc-query", "doc-cache", "query-cache"} <= labels[3]
    assert {"p50", "p95"} <= labels[4]
    sections = [part for part in text.split("<section>") if "<svg" in part]
    assert len(sections) == 4
    assert all(part.index("<table") > part.index("<svg") for part in sections)


def test_a_report_is_made_from_results_alone_and_again_the_same(folder: Path) -> None:
    files = [folder / "report.md", folder / "report.html"]
    before = [file.read_text() for file in files]
    for file in files:
        file.unlink()
    told = CliRunner().invoke(app, ["bench", "report", str(folder)])
    assert told.exit_code == 0, told.output
    assert told.stdout.partition("## First")[2].strip() == before[0].partition("## First")[2].strip()
    assert [file.read_text() for file in files] == before


def test_results_of_one_kind_alone_make_a_report(tmp_path: Path) -> None:
    for kind in ("speed", "quality", "steady"):
        rows = [row for row in ROWS if row["kind"] in ("run", kind)]
        (tmp_path / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        assert grid.write(tmp_path).sections()[-1].title == "Where it loses"


def test_text_is_data_in_both_forms() -> None:
    section = Section("<b>", "a & b", (), [Table(["<i>"], [["<script>"]]), Table(["empty"], [])])
    page = html("t", [section])
    assert "script" not in Page(page).tags
    assert "empty" not in page
    assert markdown("t", [section]).splitlines() == [
        "# t",
        "",
        "## <b>",
        "",
        "a & b",
        "",
        *["| <i>      |", "| -------- |", "| <script> |"],
    ]


@pytest.mark.parametrize("is_log", [True, False])
@pytest.mark.parametrize("values", [[0.003, 0.2, 7.0], [40.0, 41.0], [5.0], [1e-4, 1e5]])
def test_a_scale_keeps_values_in_order_and_its_ticks_inside(values: list[float], is_log: bool) -> None:
    scale = Scale(values, 100, 500, is_log)
    placed = [scale(value) for value in values]
    assert placed == sorted(placed)
    assert all(100 <= place <= 500 for place in placed)
    assert all(100 <= scale(tick) <= 500 for tick in scale.ticks)
    assert is_log or len(scale.ticks) >= 3


def test_names_of_lines_that_end_together_do_not_touch() -> None:
    series = [Series(f"s{n}", [Point(1, 1, 1, 1), Point(2, 5 + n / 100, 5, 6)], n) for n in range(7)]
    chart = ElementTree.fromstring(line_chart("t", series, "x", "y"))
    named = [node for node in chart.iter(f"{SVG}text") if (node.text or "").startswith("s")]
    heights = sorted(float(node.attrib["y"]) for node in named)
    assert len(heights) == 7
    assert all(b - a >= LINE - 0.1 for a, b in pairwise(heights))


def test_nothing_measured_makes_no_chart() -> None:
    assert line_chart("t", [], "x", "y") == bar_chart("t", {}, "x") == ""


def test_the_smoke_configuration_measures_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    told = CliRunner().invoke(app, ["bench", "grid", "configs/bench/smoke.yaml", "--folder", str(tmp_path)])
    assert told.exit_code == 0, told.output
    headings = [line[3:] for line in told.stdout.splitlines() if line.startswith("## ")]
    parts = ["First token", "Where the time goes", "Memory and decoding", "Indexing", "Limits", "Modes", "Steady state"]
    assert headings == [*parts, "Where it loses"]
    whole = (tmp_path / "report.md").read_text()
    assert "## What was measured, and where" in whole
    assert told.stdout.partition("## ")[2].strip() in whole
    assert (tmp_path / "report.html").read_text().count("<svg") == 5


def test_the_commands_run_resume_and_print_json(tmp_path: Path) -> None:
    rows = [{"question": f"Who has {n}?", "passage": f"Ann has {n} owls.", "answers": ["Ann"]} for n in range(4)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ["--model", TINY, "--dtype", "float32", "--folder", str(tmp_path / "out"), "--json"]
    small = ["--questions", "2", "-k", "2", "--max-new-tokens", "2", "--context", "gold"]
    table7 = CliRunner().invoke(app, ["bench", "table7", str(tmp_path / "questions.jsonl"), *small, *common])
    assert table7.exit_code == 0, table7.output
    cells = [row["cell"] for row in json.loads(table7.stdout)["rows"]]
    assert len(cells) == 14, "seven modes, one and two documents"
    assert [row["bytes"] for row in json.loads(table7.stdout)["rows"] if row["cell"]["mode"] == "no-retrieval"] == [
        0,
        0,
    ]
    stream = ["--requests", "6", "--documents", "9", "--tokens", "40", "-k", "2", "--window", "3"]
    out = tmp_path / "steady.json"
    steady = CliRunner().invoke(app, ["bench", "steady", *stream, *common, "--out", str(out)])
    assert steady.exit_code == 0, steady.output
    assert [row["kind"] for row in json.loads(steady.stdout)["rows"]] == ["steady"]
    assert json.loads(out.read_text()) == json.loads(steady.stdout)
    both = CliRunner().invoke(app, ["bench", "report", str(tmp_path / "out")])
    assert [line for line in both.stdout.splitlines() if line.startswith("## ")] == [
        "## Modes",
        "## Steady state",
        "## Where it loses",
    ]
    page = CliRunner().invoke(app, ["bench", "render", str(out)])
    assert page.stdout.startswith("## Steady state\n")
    assert "Measured by `gritrag bench steady`: model " in page.stdout
