"""Boxes, arrows and words as SVG: what the pictures of the documentation are made of. No dependency."""

from dataclasses import dataclass, field
from html import escape

INK, GREY, PAPER = "#1b1b1b", "#666666", "#ffffff"
BLUE, GREEN, ORANGE = "#dbeafe", "#dcfce7", "#ffedd5"
FONT = "font-family='Helvetica, Arial, sans-serif'"


@dataclass
class Drawing:
    """A picture of `width` by `height` pixels on white, readable on dark pages too."""

    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, lines: list[str], fill: str = PAPER) -> None:
        """A rounded box. The first line is bold."""
        self.parts.append(
            f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='6' fill='{fill}' stroke='{INK}'/>"
        )
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 18 * number, line, anchor="middle", is_bold=number == 0)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        anchor: str = "start",
        is_bold: bool = False,
        colour: str = INK,
        size: int = 14,
    ) -> None:
        weight = "bold" if is_bold else "normal"
        self.parts.append(
            f"<text x='{x}' y='{y}' text-anchor='{anchor}' font-size='{size}' font-weight='{weight}' "
            f"fill='{colour}' {FONT}>{escape(words)}</text>"
        )

    def arrow(self, *points: tuple[float, float], label: str = "") -> None:
        """Through all points. The label stands above the middle of the first stretch."""
        path = " L".join(f"{x},{y}" for x, y in points)
        self.parts.append(f"<path d='M{path}' fill='none' stroke='{INK}' stroke-width='1.5' marker-end='url(#head)'/>")
        if label:
            (x0, y0), (x1, y1) = points[:2]
            self.text((x0 + x1) / 2, (y0 + y1) / 2 - 6, label, anchor="middle", colour=GREY, size=12)

    def line(self, x0: float, y0: float, x1: float, y1: float, is_dashed: bool = False) -> None:
        dash = " stroke-dasharray='4 4'" if is_dashed else ""
        self.parts.append(f"<line x1='{x0}' y1='{y0}' x2='{x1}' y2='{y1}' stroke='{GREY}'{dash}/>")

    def svg(self, title: str) -> str:
        head = (
            f"<marker id='head' markerWidth='9' markerHeight='9' refX='8' refY='4.5' orient='auto'>"
            f"<path d='M0,0 L9,4.5 L0,9z' fill='{INK}'/></marker>"
        )
        body = "\n".join(self.parts)
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width} {self.height}' role='img' "
            f"width='{self.width}' height='{self.height}'>\n<title>{escape(title)}</title>\n<defs>{head}</defs>\n"
            f"<rect width='100%' height='100%' fill='{PAPER}'/>\n{body}\n</svg>\n"
        )
