"""The record of a run: one line of JSON per step and per validation, and its curves as a drawing."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

FILE, DRAWING = "metrics.jsonl", "losses.svg"

WIDTH, HEIGHT, MARGIN = 900, 420, 48
COLOURS = ("#1f5fa8", "#c2571a", "#2a7f3f", "#8a3f9c", "#a8871f", "#3f8a8f", "#8f3f4f", "#5f5f5f")


class Metrics:
    """Appends to `metrics.jsonl` of a run; what a crash left behind the snapshot that is resumed from is dropped.

    Args:
        run: folder of the run.
        step: steps that are done, according to the snapshot.
    """

    def __init__(self, run: Path, step: int) -> None:
        self._run = run
        kept = [
            line
            for line in self._lines()
            if (record := json.loads(line))["step"] < step or (record["step"] == step and "losses" not in record)
        ]
        (run / FILE).write_text("".join(line + "\n" for line in kept), "utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one line."""
        with (self._run / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return [json.loads(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        """Whole lines; the last may have been torn."""
        path = self._run / FILE
        text = path.read_text("utf-8") if path.is_file() else ""
        return [line for line in text[: text.rfind("\n") + 1].split("\n") if line]

    def draw(self) -> None:
        """Write `losses.svg`: every loss, smoothed, and every validation figure, over steps."""
        curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for record in self.records():
            for name, value in {**record.get("losses", {}), **record.get("validation", {})}.items():
                past = curves[name][-1][1] if curves[name] and "losses" in record else value
                curves[name].append((record["step"], 0.9 * past + 0.1 * value))
        (self._run / DRAWING).write_text(_svg(curves), "utf-8")


def _svg(curves: dict[str, list[tuple[int, float]]]) -> str:
    points = [point for curve in curves.values() for point in curve]
    last = max((step for step, _ in points), default=0) or 1
    top = max((value for _, value in points), default=0.0) or 1.0

    def at(step: float, value: float) -> str:
        x = MARGIN + (WIDTH - 5 * MARGIN) * step / last
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top
        return f"{x:.1f},{y:.1f}"

    lines = [f'<polyline fill="none" stroke="#999" points="{at(0, top)} {at(0, 0)} {at(last, 0)}"/>']
    for number, (name, curve) in enumerate(sorted(curves.items())):
        colour = COLOURS[number % len(COLOURS)]
        dash = ' stroke-dasharray="4 3"' if "/" in name else ""  # validation
        path = " ".join(at(step, value) for step, value in curve)
        lines.append(f'<polyline fill="none" stroke="{colour}"{dash} points="{path}"/>')
        x, y = WIDTH - 4 * MARGIN + 6, MARGIN + 16 * number
        lines.append(f'<text x="{x}" y="{y}" fill="{colour}">{name} {curve[-1][1]:.3f}</text>')
    lines.append(f'<text x="{MARGIN}" y="{HEIGHT - MARGIN + 18}">0</text>')
    lines.append(f'<text x="{WIDTH - 4 * MARGIN}" y="{HEIGHT - MARGIN + 18}" text-anchor="end">step {last}</text>')
    lines.append(f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{top:.2g}</text>')
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
