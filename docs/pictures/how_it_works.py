"""The picture of README and quickstart: a document is read once, and questions are answered from what was kept.

python docs/pictures/how_it_works.py    # writes how_it_works.svg beside this file
"""

from pathlib import Path

from drawing import BLUE, GREEN, GREY, ORANGE, Drawing


def draw() -> str:
    picture = Drawing(880, 330)
    picture.text(20, 28, "Once for each document", is_bold=True)
    picture.box(20, 46, 120, 84, ["document", "text"])
    picture.arrow((140, 88), (206, 88))
    picture.box(208, 46, 170, 84, ["one forward pass", "(the read pass)"], ORANGE)
    picture.arrow((378, 66), (444, 66))
    picture.arrow((378, 110), (444, 110))
    picture.box(446, 46, 160, 38, ["vector"], BLUE)
    picture.box(446, 92, 160, 38, ["state: keys, values"], GREEN)
    picture.arrow((606, 66), (672, 66))
    picture.arrow((606, 110), (672, 110))
    picture.box(674, 46, 186, 84, ["index on disk", "words, vectors, states"])

    picture.line(20, 158, 860, 158, is_dashed=True)
    picture.text(20, 186, "For each question", is_bold=True)
    picture.box(20, 204, 120, 84, ["question"])
    picture.arrow((140, 246), (206, 246))
    picture.box(208, 204, 170, 84, ["search", "vectors and words"], BLUE)
    picture.arrow((378, 246), (444, 246))
    picture.box(446, 204, 160, 84, ["load states,", "give positions"], GREEN)
    picture.arrow((606, 246), (672, 246))
    picture.box(674, 204, 186, 84, ["same model reads", "only the question", "and writes the answer"], ORANGE)
    picture.arrow((767, 130), (767, 145), (526, 145), (526, 202))
    picture.text(
        440,
        314,
        "Documents are not read again: the time to the first token grows little with their length.",
        anchor="middle",
        colour=GREY,
    )
    return picture.svg(
        "How GritRAG works: each document is read once, and questions are answered from its stored state"
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), "utf-8")
