"""HTML and EPUB, with lxml: what a reader sees, cut at headings. No script runs and nothing is fetched."""

import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import unquote

from lxml import etree
from lxml.html import HTMLParser, fromstring

from gritrag.documents.sections import Section, Sections, Unreadable, check_archive
from gritrag.documents.text import BOMS, HEAD, reason_for_no_text

HEADINGS = {f"h{level}": level for level in range(1, 7)}
UNSEEN = {"head", "script", "style", "noscript", "template", "svg", "math", "object", "iframe", "select", "button"}
UNSEEN |= {"nav", "dialog"}
BLOCKS = {"address", "article", "aside", "blockquote", "body", "br", "caption", "center", "dd", "details", "div", "dl"}
BLOCKS |= {"dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hgroup", "hr", "html", "legend", "li"}
BLOCKS |= {"main", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul", *HEADINGS}
_SPACE = re.compile(r"[ \t\r\n\f]+")
_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}rootfile"
_TOO_DEEP = "elements lie in one another more than 2,000 deep, and nothing behind that is read: simplify the page"
_RESOURCE_LIMIT = 114  # the number of libxml2, for which lxml before 6 has no name
_FONT_OBFUSCATION = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


def read_html(file: BinaryIO) -> Iterator[Section]:
    """A section per heading. Navigation, hidden parts and everything that is no text are left out."""
    tree, problem = _parse(file.read())
    found = tree.find(".//title")
    sections = Sections("" if found is None else found.text_content())
    _walk(tree, sections)
    yield from sections.finished
    if problem:
        yield Section("", sections.finished[-1].place if sections.finished else {}, problem=problem)


def read_epub(file: BinaryIO) -> Iterator[Section]:
    """A section per heading, in the order of the book; a chapter without one is called by its number."""
    check_archive(file, ".epub")
    with zipfile.ZipFile(file) as archive:
        _refuse_rights_management(archive)
        package_path = _package_path(archive)
        package = _xml(archive, package_path)
        title = package.findtext(".//{http://purl.org/dc/elements/1.1/}title", "")
        hrefs = {item.get("id"): item.get("href", "") for item in package.iterfind(".//{*}manifest/{*}item")}
        for part, item in enumerate(package.iterfind(".//{*}spine/{*}itemref"), start=1):
            href = unquote(hrefs.get(item.get("idref"), ""))
            path = posixpath.normpath(posixpath.join(posixpath.dirname(package_path), href))
            tree, problem = _parse(archive.read(path))
            sections = Sections(title)
            _walk(tree, sections)
            for section in sections.finished:
                yield section if section.place else section._replace(place={"part": part})
            if problem:
                yield Section("", {"part": part}, problem=problem)


def _parse(data: bytes) -> tuple[etree._Element, str]:
    """A document's tree, and what is wrong with it where its end is missing.

    Text that is UTF-8 is taken for that; else the document says, or it is Windows-1252.
    """
    encoding = next((name for bom, name in BOMS if data.startswith(bom)), None)
    if encoding is None:
        if reason := reason_for_no_text(data[:HEAD]):
            raise Unreadable(reason)
        try:
            data.decode("utf-8")
            encoding = "utf-8"
        except UnicodeDecodeError:
            declared = re.search(rb"charset\s*=\s*[\"']?\s*([\w-]+)|encoding\s*=\s*[\"']([\w-]+)", data[:2048])
            encoding = (declared[1] or declared[2]).decode() if declared else "windows-1252"
    try:
        text = data.decode(encoding, "replace").removeprefix("\ufeff")
    except LookupError:
        text = data.decode("windows-1252", "replace")
    if not text.strip():
        raise Unreadable("it is empty")
    # without `huge_tree` the parser drops, in silence, all behind 256 open elements or a picture of 10 MB in the page
    parser = HTMLParser(encoding="utf-8", no_network=True, huge_tree=True)
    tree = fromstring(text.replace("\0", "").encode("utf-8"), parser=parser)
    is_cut = any(entry.type == _RESOURCE_LIMIT for entry in parser.error_log)
    return tree, _TOO_DEEP if is_cut else ""


class _Block:
    """Text as a reader sees it, up to where a section ends.

    A run of white space is one space, but in `preformatted` elements, which are counted.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.preformatted = 0

    def put(self, piece: str | None) -> None:
        piece = piece or ""
        if not self.preformatted:
            piece = _SPACE.sub(" ", piece)
            piece = piece.lstrip(" ") if not self._pieces or self._pieces[-1].endswith((" ", "\n")) else piece
        if piece:
            self._pieces.append(piece)

    def mark(self, piece: str) -> None:
        """Put what the page does not say, such as the dash of a list."""
        self._pieces.append(piece)

    def end_line(self) -> None:
        if self._pieces and not self._pieces[-1].endswith("\n"):
            self._pieces.append("\n")

    def flush(self) -> str:
        text = "".join(self._pieces)
        self._pieces.clear()
        return re.sub(r"[ \t]+\n", "\n", text)


def _walk(tree: etree._Element, sections: Sections) -> None:
    """Hand the text of a tree to `sections`, block by block, without recursion: a tree may be deep."""
    block, skipped = _Block(), None
    walker = etree.iterwalk(tree, events=("start", "end", "comment", "pi"))
    for event, element in walker:
        tag = element.tag if isinstance(element.tag, str) else ""
        tag = tag.rpartition("}")[2].lower()
        if event == "start":
            if _is_unseen(element, tag):
                walker.skip_subtree()
                skipped = element  # whose end comes next
                continue
            if tag in BLOCKS:
                block.end_line()
            if tag in HEADINGS:
                sections.add(block.flush())
            elif tag == "li":
                block.mark("- ")
            block.preformatted += tag == "pre"
            block.put(element.text)
            continue
        if event == "end" and element is not skipped:
            block.preformatted -= tag == "pre"
            if tag in HEADINGS:
                sections.heading(block.flush(), HEADINGS[tag])
            elif tag in ("td", "th"):
                block.mark(" | " if element.getnext() is not None else "")
            elif tag in BLOCKS:
                block.end_line()
        block.put(element.tail)
    sections.add(block.flush())
    sections.cut()


def _is_unseen(element: etree._Element, tag: str) -> bool:
    return tag in UNSEEN or "hidden" in element.attrib or element.get("aria-hidden") == "true"


def _refuse_rights_management(archive: zipfile.ZipFile) -> None:
    """Fonts may be scrambled, which hides no text."""
    if "META-INF/encryption.xml" in archive.namelist():
        encryption = _xml(archive, "META-INF/encryption.xml")
        methods = {each.get("Algorithm", "") for each in encryption.iter("{*}EncryptionMethod")}
        if not methods <= set(_FONT_OBFUSCATION):
            raise Unreadable("it is encrypted by its publisher (DRM)")


def _package_path(archive: zipfile.ZipFile) -> str:
    if "META-INF/container.xml" not in archive.namelist():
        raise Unreadable("it is no EPUB: META-INF/container.xml is missing")
    rootfile = next(_xml(archive, "META-INF/container.xml").iter(_CONTAINER), None)
    if rootfile is None:
        raise Unreadable("it is no EPUB: its container names no book")
    return rootfile.get("full-path", "")


def _xml(archive: zipfile.ZipFile, path: str) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
    return etree.fromstring(archive.read(path), parser)
