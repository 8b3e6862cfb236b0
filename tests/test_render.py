"""What a terminal shows can be read back by a program."""

import json
from dataclasses import replace
from pathlib import Path

from gritrag import render
from gritrag.records import Answer, Citation, Document, Hit, Timings, Usage

HIT = Hit(Document("one\n two " + "x" * 200, id="a", metadata={"year": 1999}), score=0.5, rank=1)
ANSWER = Answer(
    text="süß",
    hits=[HIT],
    citations=[Citation("a", "", 0, 7)],
    usage=Usage(10, 7, 2),
    timings=Timings(0.1, 0.2, 0.3, 0.7, 1.0),
    exact=False,
    mode="doc-cache",
    finish_reason="stop",
)


def test_json_keeps_the_names_of_every_field_and_the_text_as_it_is() -> None:
    text = render.as_json(ANSWER)
    read = json.loads(text)
    assert "süß" in text
    assert read["citations"] == [{"id": "a", "title": "", "start": 0, "end": 7}]
    assert read["hits"][0]["document"]["metadata"] == {"year": 1999}
    assert read["timings"]["first_token"] == 0.7


def test_a_hit_is_one_line_whatever_its_text() -> None:
    line = render.hit_line(HIT)
    assert "\n" not in line
    assert line.split()[:4] == ["1", "0.5000", "a", "one"]
    assert line.endswith("...")
    assert len(line) < 120


def test_a_document_does_not_drive_the_terminal() -> None:
    """Escape sequences can clear the screen, forge lines, and with some terminals do worse; JSON escapes them."""
    document = Document("\x1b[2Jall \x9b31m gone\r\n\x07", id="a\nb\x1b]0;x\x07", title="\x1b[1mT")
    hit = Hit(document, 0.5, 1)
    answer = replace(ANSWER, hits=[hit], citations=[Citation(document.id, document.title, 0, 7)])
    for line in (render.hit_line(hit), render.document_line(document), render.footer(answer)):
        assert not {"\x1b", "\x9b", "\x07", "\n", "\r"} & set(line)
    assert render.harmless("a\r\n\tb é 👩‍👩‍👧 \u200f") == "a\n\tb é 👩‍👩‍👧 \u200f"
    assert "\x1b" not in render.as_json(hit)
    assert json.loads(render.as_json(hit))["document"]["text"] == document.text


def test_fields_are_lines_with_the_fields_of_inner_records() -> None:
    record = {"index": Path("a/b"), "bytes": {"states": 924}, "seconds": 0.00199455, "problems": []}
    lines = [line.split() for line in render.as_lines(record).splitlines()]
    assert lines == [["index", "a/b"], ["bytes.states", "924"], ["seconds", "0.001995"], ["problems", "none"]]


def test_the_footer_says_what_was_reused_and_whether_that_was_exact() -> None:
    assert render.footer(ANSWER) == "[a; 7 of 10 tokens reused, approximate; first token 0.700 s, all 1.000 s]"


def test_the_footer_says_how_likely_the_documents_do_not_say() -> None:
    footer = render.footer(replace(ANSWER, unanswerable=0.934))
    assert footer.startswith("[a; 93% likely that they do not say; 7 of 10 tokens")


def test_the_footer_names_title_and_page_of_what_it_cites() -> None:
    page = Hit(Document("text", id="a.pdf#page=2", title="Osk", metadata={"page": 2}), score=0.5, rank=1)
    answer = replace(ANSWER, hits=[page], citations=[Citation("a.pdf#page=2", "Osk", 0, 7)])
    assert render.footer(answer).startswith("[a.pdf#page=2 (Osk, page 2); 7 of 10")
