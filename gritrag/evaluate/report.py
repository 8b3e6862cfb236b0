"""A report: sections of text, charts and tables, as Markdown and as one HTML file that needs nothing beside it."""

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
