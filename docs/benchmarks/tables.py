"""The tables of docs/benchmarks.md, each from the JSON file that its mark names.

python docs/benchmarks/tables.py    # writes every table anew

A file has `command`, `facts` and `rows`. Rows of one command of `gritrag bench` or `gritrag eval` are shown as
`gritrag bench render` shows them, others as a table with a column for each key.
"""

import json
import re
from pathlib import Path
from typing import Any

from gritrag.evaluate.suite import load_results

HERE = Path(__file__).parent
PAGE = HERE.with_suffix(".md")
MARKS = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def plain(record: dict[str, Any]) -> str:
    """A column for each key, and the facts behind it."""
    rows = record["rows"]
    columns = list(rows[0])
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in rows]
    facts = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["facts"].items() if value != "")
    return "\n".join(["", *lines, "", f"Measured by `{record['command']}`: {facts}.", ""])


def table(name: str) -> str:
    """Of one file."""
    record = json.loads((HERE / name).read_text("utf-8"))
    if isinstance(record, dict) and record["command"].startswith("python "):
        return plain(record)

    shown = "\n".join(result.render() for result in load_results(HERE / name))
    return "\n" + re.sub(r"^## ", "### ", shown, flags=re.MULTILINE) + "\n"


def rendered(page: str) -> str:
    """The page with all its tables written anew."""
    return MARKS.sub(lambda found: found[1] + table(found[2]) + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text("utf-8")), "utf-8")
