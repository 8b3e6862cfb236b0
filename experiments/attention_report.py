"""What shares of attention say: means over layers with intervals, every layer, and a drawing.

Shape letters: `N` texts, `L` layers, `P` parts.
"""

from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from gritrag.evaluate.facts import header, table
from gritrag.evaluate.statistics import Sampled

PARTS = ("prompt", "content", "self")
"""They sum to one."""
FIRST = "of prompt: first token"

WIDTH, HEIGHT, MARGIN = 320, 220, 40
COLOURS = {"prompt": "#c2571a", "content": "#1f5fa8", "self": "#2a7f3f"}


def summarise(found: dict[str, np.ndarray], facts: dict[str, Any], seed: int) -> dict[str, Any]:
    """Shares per layer, and their means over layers with intervals over texts, paired with the first model's.

    Args:
        found: by model, the one before training first; shares `[N, L, P + 1]` of the same texts.
        facts: what was looked at, and how.
        seed: of resamples.
    """
    models = []
    means = {name: shares_NLP.mean(1) for name, shares_NLP in found.items()}
    first = next(iter(means.values()))
    for name, shares_NLP in found.items():
        by_part = {part: Sampled.mean(means[name][:, n], seed) for n, part in enumerate((*PARTS, FIRST))}
        before = {part: Sampled.mean(first[:, n], seed) for n, part in enumerate((*PARTS, FIRST))}
        models.append(
            {
                "model": name,
                "layers": [dict(zip((*PARTS, FIRST), row, strict=True)) for row in shares_NLP.mean(0).tolist()],
                "mean": {part: value.interval() for part, value in by_part.items()},
                "change": {part: value.minus(before[part]).interval() for part, value in by_part.items()},
            }
        )
    return {"facts": facts, "models": models}


def show(result: dict[str, Any]) -> str:
    """Facts, means over layers, and every layer; points of 100."""
    names = (*PARTS, FIRST)
    means = [[model["model"], "mean", *(model["mean"][part].show() for part in names)] for model in result["models"]]
    means += [
        [model["model"], "change", *(model["change"][part].show("+.1f") for part in names)]
        for model in result["models"][1:]
    ]
    layers = [
        [model["model"], str(number), *(f"{100 * layer[part]:.1f}" for part in names)]
        for model in result["models"]
        for number, layer in enumerate(model["layers"])
    ]
    told = "attention of the pooled position, points of 100, with 95% bootstrap intervals over texts"
    return "\n\n".join(
        [
            header(result["facts"]),
            told,
            table(["model", "over layers", *names], means),
            table(["model", "layer", *names], layers),
        ]
    )


def draw(result: dict[str, Any]) -> str:
    """SVG: a panel per model, layers from left to right, the parts stacked from prompt (bottom) to self (top)."""
    panels = [_panel(model, number) for number, model in enumerate(result["models"])]
    legend = [
        f'<text x="{MARGIN + 90 * n}" y="{HEIGHT + 2 * MARGIN - 8}" fill="{colour}">{part}</text>'
        for n, (part, colour) in enumerate(COLOURS.items())
    ]
    body = "\n".join([*panels, *legend])
    width = len(panels) * (WIDTH + MARGIN) + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT + 2 * MARGIN}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _panel(model: dict[str, Any], number: int) -> str:
    left, layers = MARGIN + number * (WIDTH + MARGIN), model["layers"]

    def at(layer: int, share: float) -> str:
        return f"{left + WIDTH * layer / max(1, len(layers) - 1):.1f},{MARGIN + HEIGHT * (1 - share):.1f}"

    below, areas = [0.0] * len(layers), []
    for part, colour in COLOURS.items():
        above = [low + layer[part] for low, layer in zip(below, layers, strict=True)]
        outline = [at(n, share) for n, share in enumerate(above)]
        outline += [at(n, share) for n, share in reversed(list(enumerate(below)))]
        areas.append(f'<polygon fill="{colour}" fill-opacity="0.7" points="{" ".join(outline)}"/>')
        below = above
    title = f'<text x="{left}" y="{MARGIN - 10}">{escape(model["model"])}</text>'
    axis = f'<text x="{left}" y="{MARGIN + HEIGHT + 14}">layer 0 to {len(layers) - 1}</text>'
    return "\n".join([*areas, title, axis])
