"""Word documents (.docx), cut at headings and pages.

python-docx opens the file and knows its styles. The text is taken from the XML, since the library's paragraphs leave
out what stands in content controls, tracked insertions, text boxes and formulas.
"""

from collections.abc import Iterator
from typing import BinaryIO

import docx
from docx.document import Document as WordDocument
from docx.oxml.ns import qn
from lxml import etree

from gritrag.documents.formula import FORMULA, in_line
from gritrag.documents.sections import Section, Sections, check_archive

MAX_BASED_ON = 12  # styles, each based on the next
BODY_LEVEL = 9
LEFT_OUT = {qn(name) for name in ("w:del", "w:moveFrom", "w:pPr", "w:rPr", "w:instrText", "w:delText")} | {
    "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
}
PARAGRAPH, TABLE, ROW, CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
TEXT, TAB, BREAK, RETURN, HYPHEN = qn("w:t"), qn("w:tab"), qn("w:br"), qn("w:cr"), qn("w:noBreakHyphen")
RENDERED_BREAK = qn("w:lastRenderedPageBreak")
BREAK_BEFORE = f"{qn('w:pPr')}/{qn('w:pageBreakBefore')}"
PAGE = "\f"  # stands in a paragraph's text where a page begins; XML can hold no such character


def read(file: BinaryIO) -> Iterator[Section]:
    """Sections of text under their headings, tables as lines of cells.

    A .docx file has no pages of its own: Word notes where they began when it last laid the text out, and those notes
    are counted. Where there are none, page breaks that the author set are. With neither, no section says its page.
    """
    check_archive(file, ".docx")
    document = docx.Document(file)
    levels = _heading_levels(document)
    body = document.element.body
    is_laid_out = next(body.iter(RENDERED_BREAK), None) is not None
    sections = Sections(document.core_properties.title or "")
    for block in _blocks(body):
        if block.tag == TABLE:
            _add(sections, "\n".join(_rows(block, is_laid_out)))
            continue
        text = _text(block, is_laid_out)
        level = _level(block, levels)
        if level is None:
            _add(sections, text)
        else:
            for _ in range(text.count(PAGE)):
                sections.next_page()
            text = text.replace(PAGE, "")
            sections.title = sections.title or (text if level == 0 else "")
            sections.heading(text, level)
    sections.cut()
    is_paged = sections.page is not None
    for section in sections.finished:
        first = {"page": 1} if is_paged and "page" not in section.place else {}
        yield section._replace(place={**first, **section.place}, title=sections.title)


def _add(sections: Sections, text: str) -> None:
    first, *others = text.split(PAGE)
    sections.add(first)
    for page in others:
        sections.next_page()
        sections.add(page)


def _heading_levels(document: WordDocument) -> dict[str, int]:
    """Levels of the styles that are headings, by the styles' ids; 0 is the title. Names are English in every Word."""
    styles = {style.get(qn("w:styleId")): style for style in document.styles.element.iter(qn("w:style"))}
    levels = {}
    for id, style in styles.items():
        current = style
        for _ in range(MAX_BASED_ON):
            name = current.find(qn("w:name"))
            named = "" if name is None else name.get(qn("w:val"), "").lower()
            outline = current.find(f"{qn('w:pPr')}/{qn('w:outlineLvl')}")
            if named == "title":
                levels[id] = 0
            elif named.startswith("heading ") and named[8:].isdigit():
                levels[id] = int(named[8:])
            elif outline is not None and int(outline.get(qn("w:val"), BODY_LEVEL)) < BODY_LEVEL:
                levels[id] = int(outline.get(qn("w:val"))) + 1
            parent = current.find(qn("w:basedOn"))
            if id in levels or parent is None or parent.get(qn("w:val")) not in styles:
                break
            current = styles[parent.get(qn("w:val"))]
    return levels


def _level(paragraph: etree._Element, levels: dict[str, int]) -> int | None:
    style = paragraph.find(f"{qn('w:pPr')}/{qn('w:pStyle')}")
    outline = paragraph.find(f"{qn('w:pPr')}/{qn('w:outlineLvl')}")
    if outline is not None and int(outline.get(qn("w:val"), BODY_LEVEL)) < BODY_LEVEL:
        return int(outline.get(qn("w:val"))) + 1
    return None if style is None else levels.get(style.get(qn("w:val"), ""))


def _blocks(parent: etree._Element) -> Iterator[etree._Element]:
    """Paragraphs and tables, those inside of content controls and tracked insertions too, in their order."""
    for child in parent:
        if child.tag in (PARAGRAPH, TABLE):
            yield child
        elif child.tag not in LEFT_OUT and isinstance(child.tag, str):
            yield from _blocks(child)


def _rows(table: etree._Element, is_laid_out: bool) -> Iterator[str]:
    """Lines of cells. A table in a cell becomes part of that cell's line."""
    for row in _nearest(table, ROW):
        cells = (" ".join(_text(cell, is_laid_out).split(" ")) for cell in _nearest(row, CELL))
        yield " | ".join(cell.strip().replace("\n", "; ") for cell in cells)


def _nearest(parent: etree._Element, tag: str) -> Iterator[etree._Element]:
    for child in parent:
        if child.tag == tag:
            yield child
        elif child.tag not in LEFT_OUT and child.tag != TABLE:
            yield from _nearest(child, tag)


def _text(element: etree._Element, is_laid_out: bool) -> str:
    """All text in an element in its order, with a line break between paragraphs and `PAGE` where a page begins."""
    text: list[str] = []
    walker = etree.iterwalk(element, events=("start", "end"))
    for event, child in walker:
        if event == "start":
            if child.tag == PARAGRAPH and not is_laid_out and child.find(BREAK_BEFORE) is not None:
                text.append(PAGE)
            if child.tag in LEFT_OUT:
                walker.skip_subtree()
            elif child.tag == FORMULA:
                text.append(in_line(child))
                walker.skip_subtree()
            elif child.tag == TEXT:
                text.append(child.text or "")
            elif child.tag == TAB:
                text.append("\t")
            elif child.tag == HYPHEN:
                text.append("-")
            elif child.tag == RENDERED_BREAK:
                text.append(PAGE)
            elif child.tag == BREAK and child.get(qn("w:type")) == "page":
                text.append("" if is_laid_out else PAGE)
            elif child.tag in (BREAK, RETURN):
                text.append("\n")
        elif child.tag == PARAGRAPH and child is not element:
            text.append("\n")
    return "".join(text)
