"""PDF, page by page, with pypdf."""

import logging
import re
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from pypdf import PageObject, PasswordType, PdfReader

from gritrag.documents.sections import MAX_PAGES, Section, Unreadable, attempt

MAX_CONTENT_BYTES = 20 << 20
"""Of one page's drawing instructions, which the parser goes through one by one, several MB a second."""

# It warns of every oddity of a file that it reads well; what it cannot read, it raises.
logging.getLogger("pypdf").setLevel(logging.ERROR)

_HYPHENATED = re.compile(r"(?<=[a-zà-öø-ÿ])-\n(?=[a-zà-öø-ÿ])|\u00ad\n?")


def read(file: BinaryIO) -> Iterator[Section]:
    """One section per page, empty where a page holds no text, or is broken though others are not.

    Words that were cut at the end of a line are joined.

    A password that only restricts printing or copying is no hindrance; one that is needed to open the file is.
    """
    if b"%PDF-" not in file.read(1024):
        raise Unreadable("it is no PDF: the file begins with something else; save it anew")
    reader = PdfReader(file)
    if reader.is_encrypted and reader.decrypt("") is PasswordType.NOT_DECRYPTED:
        raise Unreadable("it has a password: save it without one")
    count = len(reader.pages)
    if count > MAX_PAGES:
        raise Unreadable(f"it has {count:,} pages, more than the limit of {MAX_PAGES:,}: split it")
    title = str((reader.metadata and reader.metadata.title) or "")
    for number in range(count):
        place = {"page": number + 1}
        try:
            text = attempt(partial(_text, reader.pages[number]))
        except Unreadable as error:
            yield Section("", place, problem=str(error))
        else:
            yield Section(_HYPHENATED.sub("", text), place, title, f"page={number + 1}")


def _text(page: PageObject) -> str:
    contents = page.get_contents()
    size = 0 if contents is None else len(contents.get_data())
    if size > MAX_CONTENT_BYTES:
        raise Unreadable(f"it has {size >> 20} MiB of drawing instructions: print it to a new PDF")
    return page.extract_text() if size else ""
