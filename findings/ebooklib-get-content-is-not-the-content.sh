#!/usr/bin/env bash
# EbookLib 0.20: get_content() of a chapter that was read from a book gives other text than the book holds, and write_epub() writes that: words
# that stand in the body itself are gone.
#
# get_content() does not return what was read but builds a new page: of the body it takes the elements, not the text before the first one.
# A body that opens with bare words loses them ("Once upon" before <b>a time</b>), one without any element is empty, as EPUB 3 allows
# both. (That the page's head goes is known.) Everyone who takes text from books with BeautifulSoup(item.get_content()) indexes
# the rest, and a book that is read and written, say to change its author, has lost it for good, without an error or a warning.
# item.content holds the file's bytes.
#
# Seen with EbookLib 0.20, lxml 6.1.3, text of the body:
#   <body>Once upon <b>a time</b> there was.</body>: content 'Once upon a time there was.', get_content() 'a time there was.'
#   <body>The whole chapter.</body>: content 'The whole chapter.', get_content() ''
#   <body><p>In a paragraph.</p></body>: the same in both
#   read and written again: 'a time there was.', '', 'In a paragraph.'
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile EbookLib==0.20 lxml==6.1.3
cat > "$folder/book.py" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

import ebooklib
from ebooklib import epub
from lxml import etree

XHTML = "{http://www.w3.org/1999/xhtml}"
BODIES = {
    "a": "Once upon <b>a time</b> there was.",
    "b": "The whole chapter.",
    "c": "<p>In a paragraph.</p>",
}
CONTAINER = """<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
ITEMS = "".join(f'<item id="{name}" href="{name}.xhtml" media-type="application/xhtml+xml"/>' for name in BODIES)
SPINE = "".join(f'<itemref idref="{name}"/>' for name in BODIES)
PACKAGE = f"""<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:identifier id="id">1</dc:identifier><dc:title>Book</dc:title>
<dc:language>en</dc:language></metadata><manifest>{ITEMS}</manifest><spine>{SPINE}</spine></package>"""

folder = Path(sys.argv[1])
with zipfile.ZipFile(folder / "book.epub", "w") as book:
    book.writestr("mimetype", "application/epub+zip")
    book.writestr("META-INF/container.xml", CONTAINER)
    book.writestr("book.opf", PACKAGE)
    for name, body in BODIES.items():
        page = f"<html xmlns='http://www.w3.org/1999/xhtml'><head><title>Chapter</title></head><body>{body}</body></html>"
        book.writestr(f"{name}.xhtml", page)


def text(page: bytes) -> str:
    """Of the body."""
    return "".join(etree.fromstring(page).find(f"{XHTML}body").itertext()).strip()


book = epub.read_epub(str(folder / "book.epub"))
items = {item.get_name().removesuffix(".xhtml"): item for item in book.get_items_of_type(ebooklib.ITEM_DOCUMENT)}
held = {name: text(items[name].content) for name in BODIES}
given = {name: text(items[name].get_content()) for name in BODIES}
epub.write_epub(str(folder / "again.epub"), book)
with zipfile.ZipFile(folder / "again.epub") as again:
    written = {name: text(again.read(f"EPUB/{name}.xhtml")) for name in BODIES}
for name, body in BODIES.items():
    print(f"<body>{body}</body>: content {held[name]!r}, get_content() {given[name]!r}, written {written[name]!r}")
whole = ["Once upon a time there was.", "The whole chapter.", "In a paragraph."]
rest = ["a time there was.", "", "In a paragraph."]
sys.exit(not (list(held.values()) == whole and list(given.values()) == list(written.values()) == rest))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/book.py" "$folder" && echo "as described"
