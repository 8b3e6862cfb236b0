"""How states get their positions: one after another, or all ending where the question begins.

python docs/pictures/positions.py    # writes positions.svg beside this file
"""

from pathlib import Path

from drawing import BLUE, GREEN, GREY, ORANGE, Drawing

DOCUMENTS = (("document C", 110), ("document B", 150), ("document A (best)", 190))


def draw() -> str:
    picture = Drawing(760, 330)
    picture.text(20, 28, "In a row (relevance_bias = 0)", is_bold=True)
    left = 20
    for name, width in DOCUMENTS:
        picture.box(left, 44, width, 36, [name], GREEN)
        left += width
    picture.box(left, 44, 120, 36, ["question"], ORANGE)
    picture.text(left + 132, 101, "position", colour=GREY)
    picture.arrow((20, 96), (left + 120, 96))

    picture.text(20, 142, "Shared positions (relevance_bias > 0, the default)", is_bold=True)
    right = 470
    for number, (name, width) in enumerate(DOCUMENTS):
        picture.box(right - width, 158 + 42 * number, width, 36, [name], GREEN)
    picture.box(right, 242, 120, 36, ["question"], ORANGE)
    picture.line(right, 150, right, 292, is_dashed=True)
    picture.arrow((20, 296), (right + 120, 296))
    picture.text(
        20, 318, "Every document ends where the question begins. Its order says nothing; its score does.", colour=GREY
    )
    picture.box(20, 176, 200, 60, ["attention to a token", "+ bias x (score/best - 1)"], BLUE)
    return picture.svg("Two ways to give states their positions in the context")


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), "utf-8")
