"""A section: what a reader gives of a file, with the place that a citation names; and limits that all readers keep."""

import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeVar

T = TypeVar("T")

MAX_FILE_BYTES = 256 << 20
"""Larger files of the kinds that are not read line by line are refused: their parsers hold them in memory."""
MAX_UNPACKED_BYTES = 256 << 20
MAX_ARCHIVE_ENTRIES = 20_000
MAX_PAGES = 5_000
MAX_CHARACTERS = 20_000_000
"""Of text in one file, about five million tokens."""
MAX_TITLE = 120
"""Characters. A title is read with every chunk of its file, so it must leave room for text."""

OLE_MAGIC = bytes.fromhex("d0cf11e0a1b11ae1")


class Section(NamedTuple):
    """A page, a slide, a block of rows, or what stands under a heading.

    Args:
        text: what is read. A section without text, such as a scanned page, says so by an empty one.
        place: metadata that say where it is: ``page``, ``slide``, ``sheet`` and ``row``, ``heading``, ``part``.
        title: of the file, as the file itself says it.
        anchor: names the section in its file, as in the ids of documents: ``page=3``; its number if left out.
        problem: why a section could not be read although the others could; it has no text then.
    """

    text: str
    place: Mapping[str, str | int]
    title: str = ""
    anchor: str = ""
    problem: str = ""


class Unreadable(ValueError):  # noqa: N818 - what the file is, not that an error is one
    """A file that cannot be read; the message says why, and what to do, and does not name the file."""


def attempt(parse: Callable[[], T]) -> T:
    """What a parser gives. All that goes wrong inside of it means that the file is broken.

    Raises:
        Unreadable: the file is broken, or the parser said so itself.
    """
    try:
        return parse()
    except Unreadable:
        raise
    except Exception as error:  # parsers meet broken files in more ways than their authors have named
        raise Unreadable(f"it is broken ({type(error).__name__}: {error}): save it anew") from error


def place_in_words(metadata: Mapping[str, Any]) -> str:
    """Where a document of a file stands, for a citation: ``"page 3"``, ``"sheet Ports, row 2"``; empty if unknown."""
    heading = str(metadata.get("heading", ""))
    words = [f"{name} {metadata[name]}" for name in ("page", "slide", "part", "sheet", "row") if name in metadata]
    return ", ".join([*words, *([f"“{heading}”"] if heading else [])])


def short_title(*parts: str) -> str:
    """The parts that say something, joined, at most `MAX_TITLE` characters: of a longer one the end."""
    words = [" ".join(part.split()) for part in parts]
    title = " > ".join(dict.fromkeys(word for word in words if word and word.lower() != "untitled"))
    return title if len(title) <= MAX_TITLE else "..." + title[3 - MAX_TITLE :]


def check_archive(file: BinaryIO, kind: str) -> None:
    """Refuse what is no ZIP archive, is encrypted, or would fill memory when it is unpacked.

    The sizes that are checked are those that the archive declares; `zipfile` unpacks no more than these.
    """
    file.seek(0)
    if file.read(len(OLE_MAGIC)) == OLE_MAGIC:
        raise Unreadable(f"it has a password, or is of an older format: save it as {kind} without a password")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise Unreadable(f"it is broken, or no {kind} file ({error}): save it anew") from None
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_UNPACKED_BYTES or len(entries) > MAX_ARCHIVE_ENTRIES:
        raise Unreadable(
            f"it unpacks to {unpacked / 2**20:,.0f} MiB in {len(entries):,} parts, more than the limit of "
            f"{MAX_UNPACKED_BYTES >> 20} MiB in {MAX_ARCHIVE_ENTRIES:,}: split it, or remove its pictures"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise Unreadable("it is encrypted: save it without a password")
    file.seek(0)


class Sections:
    """Collects running text, and cuts it where a heading or a page begins.

    Args:
        title: of the file.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title
        self.finished: list[Section] = []
        self.page: int | None = None
        self._headings: dict[int, str] = {}
        self._lines: list[str] = []

    def add(self, text: str) -> None:
        """A block of text, such as a paragraph or a table."""
        if text.strip():
            self._lines.append(text.strip("\n"))

    def heading(self, text: str, level: int) -> None:
        """A heading begins a section, below those of lower levels."""
        if text.strip():
            self.cut()
            self._headings = {above: name for above, name in self._headings.items() if above < level}
            self._headings[level] = " ".join(text.split())

    def next_page(self) -> None:
        """A page begins; without one of these calls no section says its page."""
        self.cut()
        self.page = (self.page or 1) + 1

    def cut(self) -> None:
        """End the section here. One that holds nothing but headings leaves no trace: the sections below name them."""
        text = "\n".join(self._lines)
        self._lines = []
        if text.strip():
            place: dict[str, str | int] = {} if self.page is None else {"page": self.page}
            if heading := short_title(*self._headings.values()):
                place["heading"] = heading
            self.finished.append(Section(text, place, self.title))
