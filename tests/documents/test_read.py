"""Every kind of file becomes documents that say their place; nothing of the text is lost on the way."""

import datetime
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import docx
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docx.oxml import parse_xml
from files import (
    MATH,
    PAGES,
    make_docx,
    make_epub,
    make_html,
    make_pdf,
    make_pptx,
    make_pptx_with_formula,
    make_xlsx,
    rewritten,
)
from lxml import etree

from gritrag.documents.read import read_file
from gritrag.documents.sections import MAX_TITLE, place_in_words, short_title
from gritrag.records import Document

CUTS = etree.LIBXML_VERSION >= (2, 13)
"""Earlier ones read on, however deep elements lie in one another."""


def documents(path: Path) -> list[Document]:
    with path.open("rb") as file:
        return list(read_file(file, path.name, metadata={"owner": "me"}))


def test_a_row_of_a_parquet_table_is_read_as_a_line_of_jsonl_is(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}\0", "id": f"r{n}", "year": n, "tags": ["a"], "part": 0.5} for n in range(600)]
    rows[7] |= {"text": " "}
    day = datetime.date(2026, 11, 27)
    table = pa.Table.from_pylist([{**row, "day": day, "raw": b"x", "odd": math.nan} for row in rows])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    lines = [json.dumps({**row, "day": "2026-11-27", "odd": None}) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    losses: list[str] = []
    found = {}
    for name in ("a.parquet", "a.jsonl"):
        with (tmp_path / name).open("rb") as file:
            found[name] = list(read_file(file, name, on_loss=losses.append))
    assert len(found["a.jsonl"]) == 599
    assert found["a.parquet"] == found["a.jsonl"]
    assert losses[0] == losses[1]
    broken = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(broken[: len(broken) // 2])
    with pytest.raises(ValueError, match=r"b\.parquet: no Parquet table"):
        documents(tmp_path / "b.parquet")


def places(found: list[Document]) -> list[dict[str, object]]:
    return [{name: value for name, value in each.metadata.items() if name != "owner"} for each in found]


def test_a_pdf_gives_its_pages(tmp_path: Path) -> None:
    found = documents(make_pdf(tmp_path / "a.pdf"))
    assert [" ".join(each.text.split()) for each in found] == list(PAGES)
    assert [each.id for each in found] == ["a.pdf#page=1", "a.pdf#page=2", "a.pdf#page=3"]
    assert {each.title for each in found} == {"Osk for visitors"}
    assert found[1].metadata == {"page": 2, "owner": "me"}


def test_a_password_that_only_restricts_is_no_hindrance(tmp_path: Path) -> None:
    assert len(documents(make_pdf(tmp_path / "a.pdf", password="owner"))) == 3


def test_words_that_a_pdf_cuts_at_the_end_of_a_line_are_whole_again(tmp_path: Path) -> None:
    (found,) = documents(make_pdf(tmp_path / "a.pdf", ["A light-\nhouse on the North-\nEast cape"]))
    assert found.text == "A lighthouse on the North-\nEast cape"


def test_pages_without_text_are_left_out_and_said(tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "a.pdf", ["one", "", "three"])
    losses: list[str] = []
    with path.open("rb") as file:
        found = list(read_file(file, "a.pdf", on_loss=losses.append))
    assert [each.metadata["page"] for each in found] == [1, 3]
    assert len(losses) == 1
    assert "1 of 3 parts hold no text (page 2): pictures of text" in losses[0]


def test_a_docx_gives_headings_pages_and_tables_and_what_its_library_leaves_out(tmp_path: Path) -> None:
    found = documents(make_docx(tmp_path / "a.docx"))
    assert places(found) == [
        {"page": 1},
        {"page": 1, "heading": "Getting there"},
        {"page": 1, "heading": "Getting there > Timetable"},
        {"page": 2, "heading": "Bakery"},
    ]
    assert found[0].title == "Osk handbook"
    assert found[2].title == "Osk handbook > Getting there > Timetable"
    assert found[2].text == "Port | Departure\nOsk | 16:00\nBefore the break."
    assert found[3].text == "The baker opens at six.\nIn a content control.\nInserted."
    assert [each.id for each in found] == [f"a.docx#section={number}" for number in range(1, 5)]


def test_a_docx_without_page_breaks_says_no_page(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph("One line.")
    document.save(str(tmp_path / "a.docx"))
    assert places(documents(tmp_path / "a.docx")) == [{}]


def test_a_pptx_gives_slides_with_tables_and_notes(tmp_path: Path) -> None:
    first, second = documents(make_pptx(tmp_path / "a.pptx"))
    assert first.text == "Welcome\nAn island in the north."
    assert second.text == "Ferries\nThe last one leaves at four.\nOsk | 16:00\nNotes: Mention the storm of 1911."
    assert (second.id, second.title) == ("a.pptx#slide=2", "Osk in slides > Ferries")
    assert places([second]) == [{"slide": 2, "heading": "Ferries"}]


FORMULAS = {
    "A=πr^2": "<m:r><m:rPr><m:sty/></m:rPr><m:t>A=π</m:t></m:r><m:sSup><m:e>r</m:e><m:sup>2</m:sup></m:sSup>",
    "x_(i+1)^2": "<m:sSubSup><m:e>x</m:e><m:sub>i+1</m:sub><m:sup>2</m:sup></m:sSubSup>",
    "(-b±√(b-4ac))/2a": "<m:f><m:num>-b±<m:rad><m:deg/><m:e>b-4ac</m:e></m:rad></m:num><m:den>2a</m:den></m:f>",
    "3√n": "<m:rad><m:deg>3</m:deg><m:e>n</m:e></m:rad>",
    "∑_(k=1)^n k": '<m:nary><m:naryPr><m:chr m:val="∑"/></m:naryPr><m:sub>k=1</m:sub><m:sup>n</m:sup><m:e>k</m:e>'
    "</m:nary>",
    "∫ x": "<m:nary><m:sub/><m:sup/><m:e>x</m:e></m:nary>",
    "f(x|y)": "f<m:d><m:e>x</m:e><m:e>y</m:e></m:d>",
    "{1,2": '<m:d><m:dPr><m:begChr m:val="{"/><m:sepChr m:val=","/><m:endChr/></m:dPr><m:e>1</m:e><m:e>2</m:e></m:d>',
    "sin x": "<m:func><m:fName>sin</m:fName><m:e>x</m:e></m:func>",
    "lim_(x→0)": "<m:limLow><m:e>lim</m:e><m:lim>x→0</m:lim></m:limLow>",
    "e": "<m:sSub><m:e>e</m:e><m:sub/></m:sSub>",
    "a^b": "<m:limUpp><m:e>a</m:e><m:lim>b</m:lim></m:limUpp>",
    "[a, b; c, d]": "<m:m><m:mr><m:e>a</m:e><m:e>b</m:e></m:mr><m:mr><m:e>c</m:e><m:e>d</m:e></m:mr></m:m>",
}
"""Each with its elements, where a letter between tags stands for a run of text."""


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_text(tmp_path: Path, text: str) -> None:
    runs = re.sub(r"(?<=>)([^<>]+)(?=<(?!/m:t>))", r"<m:r><m:t>\1</m:t></m:r>", f">{FORMULAS[text]}<")[1:-1]
    formula = f"<m:oMath {MATH}>{runs}</m:oMath>"
    word = docx.Document()
    word.add_paragraph("The area is ")._p.append(parse_xml(formula))
    word.save(str(tmp_path / "a.docx"))
    assert [each.text for each in documents(tmp_path / "a.docx")] == [f"The area is {text}"]
    (slide,) = documents(make_pptx_with_formula(tmp_path / "a.pptx", formula))
    assert slide.text == f"Circles\nFirst.\nThe area is {text}.\nLast."


def test_an_xlsx_gives_blocks_of_rows_that_name_their_columns(tmp_path: Path) -> None:
    found = documents(make_xlsx(tmp_path / "a.xlsx", rows=25))
    assert places(found) == [{"sheet": "Ports", "row": 2}, {"sheet": "Ports", "row": 22}, {"sheet": "Notes", "row": 3}]
    assert found[1].text.splitlines()[0] == "Port: Osk 20; Departure: 16:00; Fare: 4"
    assert [len(each.text.splitlines()) for each in found] == [20, 5, 1]
    assert found[2].text == "No ferry on Sundays."


def test_an_xlsx_shows_no_escaped_control_characters(tmp_path: Path) -> None:
    workbook = openpyxl.Workbook()
    workbook.active.append(["Port_x000D_\nname", "Note"])
    workbook.active.append(["Osk_x0009_harbour", "No ferry_x000d_\non Sundays_x000D_"])
    workbook.save(tmp_path / "a.xlsx")
    (found,) = documents(tmp_path / "a.xlsx")
    assert found.text == "Port name: Osk harbour; Note: No ferry on Sundays"


def test_html_gives_what_a_reader_sees(tmp_path: Path) -> None:
    welcome, ferries, fares = documents(make_html(tmp_path / "a.html"))
    assert welcome.text == "Welcome to Osk\u00a0island, friend."
    assert (ferries.text, ferries.title) == ("The last leaves at four.", "Osk online > Ferries")
    assert fares.text == "From | Fare\nOsk | 4 kr\na\n  b\n- bread\n- süße Milch"
    assert places([fares]) == [{"heading": "Ferries > Fares"}]


@pytest.mark.parametrize(
    "data",
    [
        "<p>süß</p>".encode(),
        "<p>süß</p>".encode("latin-1"),
        '<meta charset="iso-8859-1"><p>süß</p>'.encode("latin-1"),
        "<p>süß</p>".encode("utf-16"),
        '<meta charset="no such"><p>süß</p>'.encode("latin-1"),
        '<?xml version="1.0" encoding="utf-8"?><html><body><p>süß</p></body></html>'.encode(),
    ],
)
def test_html_in_any_encoding(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.htm").write_bytes(data)
    assert [each.text for each in documents(tmp_path / "a.htm")] == ["süß"]


@pytest.mark.parametrize(
    "html",
    [
        f"<p>süß</p>{'<font>' * 300}sauer<p>salzig</p>",
        f"<p>süß</p>sauer<img src='data:image/png;base64,{'A' * 11_000_000}'><p>salzig</p>",
        f"<p>süß</p>sauer<script>{'x = 1;' * 2_000_000}</script><p>salzig</p>",
    ],
    ids=["deep", "picture", "script"],
)
def test_html_is_read_to_its_end(tmp_path: Path, html: str) -> None:
    (tmp_path / "a.html").write_text(html, "utf-8")
    assert [each.text.split() for each in documents(tmp_path / "a.html")] == [["süß", "sauer", "salzig"]]


@pytest.mark.parametrize("heading", ["", "<h1>Taste</h1>"])
def test_html_whose_end_cannot_be_read_says_so(tmp_path: Path, heading: str) -> None:
    (tmp_path / "a.html").write_text(f"{heading}<p>süß</p>{'<font>' * 3000}sauer", "utf-8")
    losses: list[str] = []
    with (tmp_path / "a.html").open("rb") as file:
        texts = [each.text for each in read_file(file, "a.html", on_loss=losses.append)]
    said = "“Taste”: elements lie" if heading else "elements lie"
    assert (texts, [loss[: len(said)] for loss in losses]) == ((["süß"], [said]) if CUTS else (["süß\nsauer"], []))


def test_a_slip_in_a_page_is_none_of_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>süß</p></b></table><p id=a id=a>sauer &nosuch; <nosuch>salzig</p>", "utf-8")
    losses: list[str] = []
    with (tmp_path / "a.html").open("rb") as file:
        (section,) = read_file(file, "a.html", on_loss=losses.append)
    assert section.text.split() == ["süß", "sauer", "&nosuch;", "salzig"]
    assert not losses


def test_an_epub_gives_chapters_in_the_order_of_the_book(tmp_path: Path) -> None:
    smith, other = documents(make_epub(tmp_path / "a.epub"))
    assert (smith.text, smith.title) == ("He never slept.", "Tales of Osk > The smith")
    assert (other.text, places([other])) == ("No heading here.", [{"part": 2}])


def test_a_chapter_whose_end_cannot_be_read_says_so(tmp_path: Path) -> None:
    path = rewritten(make_epub(tmp_path / "a.epub"), "EPUB/text/b 1.xhtml", b"<p>salt</p>" + b"<i>" * 3000 + b"sour")
    losses: list[str] = []
    with path.open("rb") as file:
        texts = [each.text for each in read_file(file, "a.epub", on_loss=losses.append)]
    assert texts == ["salt" if CUTS else "salt\nsour", "No heading here."]
    assert [loss.startswith("part 1: elements lie") for loss in losses] == [True] * CUTS


def test_what_is_hidden_leaves_no_trace_in_what_is_seen(tmp_path: Path) -> None:
    """Not even where it would have been a heading, a cell, or the end of text that keeps its white space."""
    page = (
        "<h1>Ferries</h1><p>One.</p><h2 hidden>Menu</h2><pre hidden>x</pre><p>Two   words.</p>"
        "<table><tr><td>a</td><td aria-hidden=true>b</td><td>c</td></tr></table>"
    )
    (tmp_path / "a.html").write_text(f"<html><body>{page}</body></html>")
    (found,) = documents(tmp_path / "a.html")
    assert found.text == "One.\nTwo words.\na | c"
    assert found.metadata["heading"] == "Ferries"


@pytest.mark.parametrize("name", ["a.py", "a.rst", "A.RS", "a.tex"])
def test_code_and_markup_for_authors_are_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("def f():\n    return 1\n")
    (found,) = documents(tmp_path / name)
    assert (found.id, found.text) == (name, "def f():\n    return 1\n")


@pytest.mark.parametrize("make", [make_pdf, make_docx, make_pptx, make_xlsx, make_html, make_epub])
def test_reading_twice_gives_the_same_documents(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / f"a.{make.__name__.removeprefix('make_')}")
    assert documents(path) == documents(path)


def test_a_place_is_words_for_people() -> None:
    assert place_in_words({"page": 3, "heading": "Fares"}) == "page 3, “Fares”"
    assert place_in_words({"sheet": "Ports", "row": 22, "source": "x"}) == "sheet Ports, row 22"
    assert place_in_words({}) == ""


def test_a_title_says_nothing_twice_and_stays_short() -> None:
    assert short_title("Osk", "Osk", "untitled", " Two\n lines ") == "Osk > Two lines"
    assert len(short_title("x" * 500)) == MAX_TITLE


def test_reading_text_imports_no_parser() -> None:
    code = (
        "import io, sys; from gritrag.documents.read import read_file; list(read_file(io.BytesIO(b'x'), 'a.txt'));"
        "sys.exit(bool({'pypdf', 'docx', 'pptx', 'openpyxl', 'lxml'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
