"""Presentations (.pptx), slide by slide, with python-pptx.

The library knows no shape that a slide holds in two forms, one for older programs, as PowerPoint writes every text box
with a formula in it. Such shapes are put in their places before it looks.
"""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from lxml import etree
from pptx import Presentation
from pptx.oxml.ns import qn

from gritrag.documents.formula import FORMULA, in_line
from gritrag.documents.sections import MAX_PAGES, Section, Unreadable, check_archive, short_title

TWO_FORMS = "{http://schemas.openxmlformats.org/markup-compatibility/2006}AlternateContent"
DRAWN_FORMULA = "{http://schemas.microsoft.com/office/drawing/2010/main}m"


def read(file: BinaryIO) -> Iterator[Section]:
    """One section per slide: its texts, tables and the speaker's notes. Text in pictures and charts is not read."""
    check_archive(file, ".pptx")
    presentation = Presentation(file)
    title = presentation.core_properties.title or ""
    title = "" if title == "PowerPoint Presentation" else title  # what PowerPoint writes where nobody gave one
    if len(presentation.slides) > MAX_PAGES:
        raise Unreadable(f"it has {len(presentation.slides):,} slides, more than the limit of {MAX_PAGES:,}: split it")
    for number, slide in enumerate(presentation.slides, start=1):
        _settle(slide.shapes.element)
        head = slide.shapes.title
        heading = short_title(head.text_frame.text) if head is not None and head.has_text_frame else ""
        texts = list(_texts(slide.shapes))
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            notes = slide.notes_slide.notes_text_frame.text.strip()
            texts += [f"Notes: {notes}"] if notes else []
        text = "\n".join(text.replace("\v", "\n").strip() for text in texts if text.strip())
        yield Section(text, {"slide": number, **({"heading": heading} if heading else {})}, title, f"slide={number}")


def _settle(shapes: etree._Element) -> None:
    """Of what is there in two forms let the first be there, and of formulas their text."""
    for both in list(shapes.iter(TWO_FORMS)):
        for shape in list(next(iter(both), ())):
            both.addprevious(shape)
        both.getparent().remove(both)
    for formula in list(shapes.iter(DRAWN_FORMULA)):
        run = etree.SubElement(formula.getparent(), qn("a:r"))
        etree.SubElement(run, qn("a:t")).text = "".join(map(in_line, formula.iter(FORMULA)))
        formula.getparent().replace(formula, run)


def _texts(shapes: Iterable[Any]) -> Iterator[str]:
    """Shapes of python-pptx are typed by what they have, not by class: a group has shapes."""
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _texts(shape.shapes)
        elif shape.has_text_frame:
            yield shape.text_frame.text
        elif getattr(shape, "has_table", False):
            for row in shape.table.rows:
                yield " | ".join(cell.text.strip() for cell in row.cells if not cell.is_spanned)
