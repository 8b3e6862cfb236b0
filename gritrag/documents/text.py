"""Bytes of a text file as lines of text: byte order marks are known, and what is no text is called by its name."""

import codecs
import io
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from gritrag.documents.sections import Unreadable

HEAD = 8192
"""Bytes that tell what a file is."""
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is how this one begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MAGIC = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive, or a file of an office program"),
    (bytes.fromhex("d0cf11e0a1b11ae1"), "a file of an older office program"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"(\xb5/\xfd", "compressed with zstd"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"PAR1", "a Parquet table"),
)
CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))
MOST_CONTROL = 0.02
"""Share of control characters in a text. Terminal output has escapes, which are not counted."""


class TextOptions(NamedTuple):
    """What a user says of text files that do not say it themselves.

    Args:
        encoding: of files that are not UTF-8 and have no byte order mark, such as ``"windows-1252"``.
        text_column: of .jsonl, .csv and .tsv rows: what is read; found by its name where empty.
        delimiter: of .csv files; found where empty.
    """

    encoding: str = ""
    text_column: str = ""
    delimiter: str = ""


AS_IT_IS = TextOptions()
"""UTF-8, or what a byte order mark says; columns by their names."""


def check_options(options: TextOptions) -> TextOptions:
    """The options, if there is such an encoding, and the delimiter is one character.

    Raises:
        ValueError: else.
    """
    try:
        if options.encoding:
            codecs.lookup(options.encoding)
    except LookupError:
        raise ValueError(f"{options.encoding!r} is no encoding that Python knows, such as windows-1252") from None
    if len(options.delimiter) > 1 or options.delimiter in ('"', "\r", "\n"):
        raise ValueError(f"a delimiter of CSV is one character, and no quote or line break: {options.delimiter!r}")
    return options


def decoded_lines(
    file: BinaryIO, options: TextOptions = AS_IT_IS, on_broken: Callable[[int, str], None] | None = None
) -> Iterator[tuple[int, str]]:
    """Lines with their ends, numbered from 1; decoded one by one, so that a broken one is known by its number.

    Args:
        file: open for reading bytes, at its beginning, and able to seek.
        options: the encoding of lines that are not UTF-8.
        on_broken: told number and problem of a line that cannot be decoded, which is left out.

    Raises:
        Unreadable: it is no text; or a line cannot be decoded, and nobody wants to be told.
    """
    head = file.read(HEAD)
    file.seek(0)
    encoding = next((name for bom, name in BOMS if head.startswith(bom)), "utf-8")
    if encoding != "utf-8":
        yield from _lines_of_wide(file, encoding)
        return
    if reason := reason_for_no_text(head):
        raise Unreadable(reason)
    for number, line in enumerate(file, start=1):
        try:
            yield number, (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            text, problem = _decoded(line, error, options.encoding)
            if not problem:
                yield number, text
            elif on_broken is None:
                raise Unreadable(f"line {number}: {problem}") from None
            else:
                on_broken(number, problem)


def reason_for_no_text(head: bytes) -> str:
    """Why a file that begins so holds no text that can be decoded; empty if it may."""
    for magic, name in MAGIC:
        if head.startswith(magic):
            return f"it is binary ({name}), not text: give it the suffix of its kind, or leave it out"
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > 0.4 * len(head) / 2 and min(even, odd) < 0.05 * len(head) / 2:
        name = "UTF-16LE" if odd > even else "UTF-16BE"
        return f"it is {name} without a byte order mark: convert it with iconv -f {name} -t UTF-8"
    controls = len(head) - len(head.translate(None, CONTROL))
    if b"\0" in head or controls > MOST_CONTROL * len(head):
        return "it is binary, not text: leave it out, or export its text"
    return ""


def _lines_of_wide(file: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    wrapper = io.TextIOWrapper(file, encoding=encoding, newline="")
    number = 0
    try:
        for number, line in enumerate(wrapper, start=1):
            yield number, line
    except UnicodeError as error:
        raise Unreadable(
            f"line {number + 1}: not {encoding.upper()}, as the byte order mark says ({error}); save it anew as UTF-8"
        ) from None
    finally:
        wrapper.detach()  # whoever opened the file closes it


def _decoded(line: bytes, error: UnicodeDecodeError, encoding: str) -> tuple[str, str]:
    """A line that is not UTF-8 as text, or why it is none."""
    if not encoding:
        byte = f"byte 0x{line[error.start]:02x} at {error.start}"
        return "", f"not UTF-8 ({byte}); save it as UTF-8, or name its encoding, such as --encoding windows-1252"
    try:
        return line.decode(encoding), ""
    except UnicodeError as other:
        return "", f"neither UTF-8 nor {encoding} ({other}); name its own encoding"
