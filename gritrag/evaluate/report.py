"""A report: sections of text, charts and tables, as Markdown and as one HTML file that needs nothing beside it."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gritrag.evaluate.statistics import Spread

STYLE = """
body { font: 15px/1.5 sans-serif; color: #111; background: #fff; max-width: 66em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2.2em } p { max-width: 48em }
table { border-collapse: collapse; margin: 1em 0; font-size: .87em; font-variant-numeric: tabular-nums }
th, td { padding: .2em .7em; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #555 } td.number, th.number { text-align: right; white-space: nowrap }
.wide { overflow-x: auto } svg { max-width: 100%; height: auto; margin: .5em 0 }
@media print { body { margin: 0; max-width: none; font-size: 11px } section { break-inside: avoid-page } }
"""
NUMBER = re.compile(r"[-+]?[\d.,]+( ?\[.*\]| .?B)?|-")


@dataclass(frozen=True)
class Table:
    """Cells are text; numbers with their unit in the column's name."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """What was measured, then charts as SVG, then tables; a table that is empty is not shown."""

    title: str
    text: str
    charts: Sequence[str] = ()
    tables: Sequence[Table] = ()


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def header(facts: Mapping[str, Any]) -> str:
    """A line for each fact; those of a group carry its name, but for the settings of a run, which need none."""
    return "\n".join(f"{name}: {value}" for name, value in flat(facts))


def flat(facts: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, groups dissolved."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from flat(value, group if name == "settings" else f"{group}{name}.")
        else:
            yield f"{group}{name}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def ms(seconds: Sequence[float]) -> str:
    """Median and quartiles in milliseconds."""
    spread = Spread.of(seconds, 1e3)
    return spread.show(".1f" if spread.median < 100 else ".0f")


def losing(lines: Sequence[str], what: str) -> Section:
    """Cases in which what is measured for is the worse choice; every report ends with them.

    Args:
        lines: a case each.
        what: counts as a loss.
    """
    told = "" if lines else " There is none."
    return Section("Where it loses", f"{what}{told}", (), [Table(["case"], [[line] for line in lines])])


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Without charts: those are in the HTML file. Without a title where that is empty."""
    parts = [f"# {title}"] if title else []
    for section in sections:
        parts += [f"## {section.title}" if section.title else "", section.text]
        parts += [aligned(table.columns, table.rows) for table in section.tables if table.rows]
    return "\n\n".join(part for part in parts if part) + "\n"


def html(title: str, sections: Sequence[Section]) -> str:
    """Charts as inline SVG, no scripts, nothing to load."""
    body = []
    for section in sections:
        text = "".join(f"<p>{escape(line)}</p>" for line in section.text.split("\n") if line)
        shown = [*(chart for chart in section.charts if chart), *(_table(table) for table in section.tables)]
        body.append(f"<section>\n<h2>{escape(section.title)}</h2>\n{text}\n" + "\n".join(shown) + "\n</section>")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    numeric = [all(NUMBER.fullmatch(row[i]) for row in table.rows) for i in range(len(table.columns))]

    def line(tag: str, cells: Sequence[str]) -> str:
        marks = [' class="number"' if is_number else "" for is_number in numeric]
        return "<tr>" + "".join(f"<{tag}{m}>{escape(c)}</{tag}>" for m, c in zip(marks, cells, strict=True)) + "</tr>"

    head, rows = line("th", table.columns), "\n".join(line("td", row) for row in table.rows)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table></div>'


# --- charts -----------------------------------------------------------------------------------------------------------
#
# Standalone SVG without scripts, fonts or files of its own, to be read on a screen and on grey paper. Series differ in
# colour (Okabe and Ito's palette, which colour-blind readers can tell apart), in their marker and in their dash, and
# are named where they end.

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 20, 54
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
LINE = 15
MARKERS = (
    "M-4,0 a4,4 0 1,0 8,0 a4,4 0 1,0 -8,0z",
    "M-4,-4 h8 v8 h-8z",
    "M0,-5 L5,4 H-5z",
    "M0,-5.5 L5.5,0 L0,5.5 L-5.5,0z",
    "M0,5 L5,-4 H-5z",
    "M-5,-2 h3 v-3 h4 v3 h3 v4 h-3 v3 h-4 v-3 h-3z",
    "M-5,-4 L-3,-5 L0,-2 L3,-5 L5,-4 L2,0 L5,4 L3,5 L0,2 L-3,5 L-5,4 L-2,0z",
)


@dataclass(frozen=True)
class Point:
    """`low` and `high` bound `y`."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """Points that a line joins. `style` chooses the colour and the marker, `dash` the line."""

    name: str
    points: Sequence[Point]
    style: int
    dash: int = 0


class Scale:
    """From values to pixels, linear or logarithmic, with ticks at round values.

    Args:
        values: that must fit.
        start, end: pixels of the two ends.
        is_log: logarithmic; values must be above 0 then.
    """

    def __init__(self, values: Sequence[float], start: float, end: float, is_log: bool) -> None:
        self._is_log, self._start, self._end = is_log, start, end
        low, high = min(values), max(values)
        if is_log:
            self._low, self._high = math.log10(low / 1.15), math.log10(high * 1.15)
        else:
            self._low, self._high = min(0.0, low), high * 1.05 or 1.0

    def __call__(self, value: float) -> float:
        place = math.log10(value) if self._is_log else value
        return self._start + (self._end - self._start) * (place - self._low) / (self._high - self._low)

    @property
    def ticks(self) -> list[float]:
        if self._is_log:
            decades = range(math.floor(self._low), math.ceil(self._high) + 1)
            every = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
            return [value for value in every if self._low <= math.log10(value) <= self._high]
        rough = (self._high - self._low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough))
        return [step * n for n in range(math.ceil(self._low / step), math.floor(self._high / step) + 1)]


def line_chart(title: str, series: Sequence[Series], x_label: str, y_label: str, *, is_log: bool = False) -> str:
    """Lines with error bars over two axes, both logarithmic or both linear; no series, no chart."""
    return _chart(title, series, (x_label, y_label), (is_log, is_log), is_named_at_ends=True)


def scatter_chart(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Points with error bars over a logarithmic and a linear axis, those of a series joined; no series, no chart."""
    return _chart(title, series, (x_label, y_label), (True, False), is_named_at_ends=False)


def _chart(
    title: str, series: Sequence[Series], labels: tuple[str, str], is_log: tuple[bool, bool], is_named_at_ends: bool
) -> str:
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    x = Scale([point.x for point in points], LEFT, WIDTH - RIGHT, is_log[0])
    y = Scale([value for point in points for value in (point.low, point.high)], HEIGHT - BOTTOM, TOP, is_log[1])
    body = [*_axes(x, y, *labels), *(_drawn(one, x, y) for one in series)]
    ends = {one.name: y(one.points[-1].y) if is_named_at_ends else TOP for one in series}
    beside = _apart(ends)
    for one in series:
        last, left, at = one.points[-1], WIDTH - RIGHT + 34, beside[one.name]
        if is_named_at_ends:
            start = f"{x(last.x) + 6:.1f},{y(last.y):.1f}"
            body.append(f'<path d="M{start} L{left - 18},{at:.1f}" stroke="#bbb" fill="none"/>')
        body.append(_marker(one, left - 10, at))
        body.append(f'<text x="{left}" y="{at + 4:.1f}">{escape(one.name)}</text>')
    return _svg(title, HEIGHT, body)


def bar_chart(title: str, bars: Mapping[str, Mapping[str, float]], x_label: str) -> str:
    """One horizontal bar per name, its parts stacked in their order; no bars, no chart."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    if not bars:
        return ""
    left, height = LEFT + 130, TOP + 30 + 26 * len(bars) + BOTTOM
    x = Scale([sum(bar.values()) for bar in bars.values()], left, WIDTH - 90, False)
    body = []
    for number, part in enumerate(parts):
        at = left + 120 * number
        body.append(f'<rect x="{at}" y="{TOP - 10}" width="12" height="12" fill="{_colour(number)}"/>')
        body.append(f'<text x="{at + 17}" y="{TOP}">{escape(part)}</text>')
    for tick in x.ticks:
        body.append(f'<path d="M{x(tick):.1f},{TOP + 14} V{height - BOTTOM}" stroke="#ddd"/>')
        body.append(f'<text x="{x(tick):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{_number(tick)}</text>')
    for row, (name, bar) in enumerate(bars.items()):
        top, end = TOP + 24 + 26 * row, 0.0
        body.append(f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{escape(name)}</text>')
        for number, part in enumerate(parts):
            start, end = end, end + max(bar.get(part, 0.0), 0.0)
            box = f'x="{x(start):.1f}" y="{top}" width="{x(end) - x(start):.1f}" height="18"'
            told = f"<title>{escape(part)}: {_number(end - start)}</title>"
            body.append(f'<rect {box} fill="{_colour(number)}" stroke="white">{told}</rect>')
        body.append(f'<text x="{x(end) + 6:.1f}" y="{top + 13}">{_number(end)}</text>')
    middle = (left + WIDTH - 90) / 2
    body.append(f'<text x="{middle}" y="{height - 12}" text-anchor="middle">{escape(x_label)}</text>')
    return _svg(title, height, body)


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    body = []
    for tick in y.ticks:
        body.append(f'<path d="M{LEFT},{y(tick):.1f} H{right}" stroke="#ddd"/>')
        body.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x.ticks:
        body.append(f'<path d="M{x(tick):.1f},{bottom} v5" stroke="#555"/>')
        body.append(f'<text x="{x(tick):.1f}" y="{bottom + 19}" text-anchor="middle">{_number(tick)}</text>')
    body.append(f'<path d="M{LEFT},{TOP} V{bottom} H{right}" stroke="#555" fill="none"/>')
    body.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="translate(16,{(TOP + bottom) / 2}) rotate(-90)"'
    return [*body, f'<text {turned} text-anchor="middle">{escape(y_label)}</text>']


def _drawn(one: Series, x: Scale, y: Scale) -> str:
    colour = _colour(one.style)
    path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in one.points)
    dash = DASHES[one.dash % len(DASHES)]
    drawn = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"/>']
    for point in one.points:
        at, told = x(point.x), f"{one.name}: {_number(point.y)} [{_number(point.low)}, {_number(point.high)}]"
        drawn.append(f'<path d="M{at:.1f},{y(point.low):.1f} V{y(point.high):.1f}" stroke="{colour}"/>')
        drawn.append(_marker(one, at, y(point.y), told))
    return "".join(drawn)


def _marker(one: Series, x: float, y: float, told: str = "") -> str:
    shape, told = MARKERS[one.style % len(MARKERS)], f"<title>{escape(told)}</title>" if told else ""
    return f'<path d="{shape}" transform="translate({x:.1f},{y:.1f})" fill="{_colour(one.style)}">{told}</path>'


def _apart(ends: Mapping[str, float]) -> dict[str, float]:
    """Where names are written: as near to where their lines end as they can without touching each other."""
    placed: dict[str, float] = {}
    below = -math.inf
    for name, end in sorted(ends.items(), key=lambda item: item[1]):
        placed[name] = below = max(end, below + LINE)
    above = math.inf
    for name in reversed(placed):
        placed[name] = above = min(placed[name], above - LINE, HEIGHT - BOTTOM)
    return placed


def _colour(style: int) -> str:
    return COLOURS[style % len(COLOURS)]


def _number(value: float) -> str:
    """Three digits that matter, without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.4f}".rstrip("0").rstrip(".") or "0"


def _svg(title: str, height: int, body: Sequence[str]) -> str:
    lines = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">\n'
        f'<title>{escape(title)}</title>\n<rect width="100%" height="100%" fill="white"/>\n{lines}\n</svg>'
    )
