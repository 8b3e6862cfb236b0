"""The plot of README: first token against the length of the context, drawn from docs/benchmarks/first-token.json.

python docs/pictures/first_token.py    # writes first_token.svg beside this file
"""

import json
from pathlib import Path
from typing import Any

from gritrag.evaluate.report import Point, Series, line_chart

HERE = Path(__file__).parent
SOURCE = HERE.parent / "benchmarks" / "first-token.json"


def draw(record: dict[str, Any]) -> str:
    """Lines of all systems, in milliseconds over tokens, on logarithmic axes."""
    systems = list(dict.fromkeys(row["system"] for row in record["rows"]))
    series = []
    for number, system in enumerate(systems):
        rows = [row for row in record["rows"] if row["system"] == system]
        points = [Point(row["context_tokens"], row["median_ms"], row["low_ms"], row["high_ms"]) for row in rows]
        series.append(Series(system, points, number))
    return line_chart("First token", series, "tokens of the context", "first token, ms", is_log=True)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(json.loads(SOURCE.read_text("utf-8"))) + "\n", "utf-8")
