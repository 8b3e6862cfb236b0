"""A report: sections of text, charts and tables, as Markdown and as one HTML file that needs nothing beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from gritrag.evaluate import facts

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

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

    def as_json(self) -> dict[str, Any]:
        """Without charts; each row of a table as an object."""
        tables = [[dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in self.tables]
        return {"title": self.title, "text": self.text, "tables": tables}


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Without charts: those are in the HTML file."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", section.text]
        parts += [facts.table(table.columns, table.rows) for table in section.tables if table.rows]
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


def put_between_markers(path: Path, block: str) -> None:
    """Replace what stands between the markers of a Markdown file.

    Raises:
        ValueError: the file does not have both markers, each once and in their order.
    """
    text = path.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"{path} must have one line {BEGIN} and, below it, one line {END}: what is between is replaced"
        )
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    path.write_text(f"{before}{BEGIN}\n\n{block.strip()}\n\n{after}", "utf-8")
