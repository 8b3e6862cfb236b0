"""Files as people have them, made by the libraries that people make them with."""

import copy
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import docx
from docx.enum.text import WD_BREAK
from docx.oxml import parse_xml
from ebooklib import epub
from fpdf import FPDF
from fpdf.enums import AccessPermission
from openpyxl import Workbook
from pptx import Presentation

PAGES = (
    "The island of Osk has one village and two lighthouses. Its oldest house is a smithy.",
    "The last ferry to Osk leaves at four in the afternoon. In winter there is none on Sundays.",
    "The baker of Osk opens at six in the morning. He sells rye bread with caraway.",
)
MATH = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
NAMESPACE = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def make_pdf(path: Path, pages: Sequence[str] = PAGES, title: str = "Osk for visitors", password: str = "") -> Path:
    """With a password if one is given; ``"owner"`` only restricts copying."""
    pdf = FPDF()
    pdf.set_title(title)
    pdf.set_font("helvetica", size=14)
    if password:
        user = {} if password == "owner" else {"user_password": password}
        pdf.set_encryption(owner_password="secret", permissions=AccessPermission.none(), **user)
    for text in pages:
        pdf.add_page()
        if text:
            pdf.multi_cell(0, 8, text)
    pdf.output(str(path))
    return path


def make_docx(path: Path) -> Path:
    document = docx.Document()
    document.core_properties.title = "Osk handbook"
    document.add_paragraph("Everything about the island.")
    document.add_heading("Getting there", 1)
    document.add_paragraph("The ferry takes an hour.")
    document.add_heading("Timetable", 2)
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ("Port", "Departure", "Osk", "16:00"), strict=True):
        cell.text = text
    document.add_paragraph("Before the break.").add_run().add_break(WD_BREAK.PAGE)
    document.add_heading("Bakery", 1)
    document.add_paragraph("The baker opens at six.")
    control = "<w:p><w:r><w:t>In a content control.</w:t></w:r></w:p>"
    tracked = (
        '<w:ins w:id="1" w:author="a"><w:r><w:t>Inserted.</w:t></w:r></w:ins>'
        '<w:del w:id="2" w:author="a"><w:r><w:delText>Deleted.</w:delText></w:r></w:del>'
    )
    for xml in (
        f"<w:sdt {NAMESPACE}><w:sdtContent>{control}</w:sdtContent></w:sdt>",
        f"<w:p {NAMESPACE}>{tracked}</w:p>",
    ):
        document.element.body.insert(-1, parse_xml(xml))
    document.save(str(path))
    return path


def make_pptx(path: Path) -> Path:
    presentation = Presentation()
    presentation.core_properties.title = "Osk in slides"
    for title, body in (("Welcome", "An island in the north."), ("Ferries", "The last one leaves at four.")):
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, body
    slide.notes_slide.notes_text_frame.text = "Mention the storm of 1911."
    table = slide.shapes.add_table(1, 2, 0, 0, 100, 100).table
    table.cell(0, 0).text, table.cell(0, 1).text = "Osk", "16:00"
    presentation.save(str(path))
    return path


def make_pptx_with_formula(path: Path, formula: str) -> Path:
    """A slide as PowerPoint writes it: the text box that holds a formula is there a second time, as a picture."""
    presentation = Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    slide.shapes.title.text = "Circles"
    for text in ("First.", "The area is "):
        slide.shapes.add_textbox(0, 0, 100, 100).text_frame.text = text
    slide.shapes.add_textbox(0, 0, 100, 100).text_frame.text = "Last."
    frame = slide.shapes[2].text_frame
    drawing = "http://schemas.microsoft.com/office/drawing/2010/main"
    drawn = f'<a14:m xmlns:a14="{drawing}"><m:oMathPara {MATH}>{formula}</m:oMathPara></a14:m>'
    frame.paragraphs[0]._p.append(parse_xml(drawn))
    frame.paragraphs[0].add_run().text = "."
    box = slide.shapes[2].element
    picture = copy.deepcopy(box)
    compatible = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    both = parse_xml(
        f'<mc:AlternateContent {compatible}><mc:Choice xmlns:a14="{drawing}" Requires="a14"/><mc:Fallback/>'
        "</mc:AlternateContent>"
    )
    box.addprevious(both)
    both[0].append(box)
    both[1].append(picture)
    presentation.save(str(path))
    return path


def make_xlsx(path: Path, rows: int = 2) -> Path:
    workbook = Workbook()
    sheet = workbook.active
    sheet.title = "Ports"
    sheet.append(["Port", "Departure", "Fare"])
    for number in range(rows):
        sheet.append([f"Osk {number}", "16:00", 4.0])
    notes = workbook.create_sheet("Notes")
    notes["B3"] = "No ferry on Sundays."
    workbook.save(path)
    return path


def make_html(path: Path) -> Path:
    path.write_text(
        "<!doctype html><title>Osk online</title><nav>Home | About</nav><script>alert('no')</script>"
        "<p>Welcome to <b>Osk</b>&nbsp;island, <!-- a secret -->friend.</p>"
        "<h1>Ferries</h1><p>The last leaves\n at four.</p>"
        "<h2>Fares</h2><table><tr><th>From<th>Fare</tr><tr><td>Osk</td><td>4 kr</td></tr></table>"
        "<pre>a\n  b</pre><div hidden>unseen</div><ul><li>bread</li><li>süße Milch</li></ul>",
        "utf-8",
    )
    return path


def make_epub(path: Path) -> Path:
    book = epub.EpubBook()
    book.set_identifier("osk")
    book.set_title("Tales of Osk")
    chapters = []
    for name, body in (("b", "<h1>The smith</h1><p>He never slept.</p>"), ("a", "<p>No heading here.</p>")):
        chapter = epub.EpubHtml(title=name, file_name=f"text/{name} 1.xhtml")
        chapter.content = f"<html><body>{body}</body></html>"
        book.add_item(chapter)
        chapters.append(chapter)
    book.spine = chapters
    book.add_item(epub.EpubNcx())
    epub.write_epub(str(path), book)
    return path


def make_bomb(path: Path, megabytes: int) -> Path:
    """An archive of a few kilobytes that says it unpacks to this much."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as entry:
        for _ in range(megabytes):
            entry.write(bytes(1 << 20))
    return path


def rewritten(path: Path, name: str, data: bytes) -> Path:
    """A ZIP archive with one entry changed or added."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            if entry.filename != name:
                new.writestr(entry, old.read(entry))
        new.writestr(name, data)
    return path
