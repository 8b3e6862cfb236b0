"""A file that cannot be read is refused in one clear line, in bounded time and memory."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from files import make_bomb, make_docx, make_epub, make_pdf, make_pptx, make_xlsx, rewritten
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gritrag.documents import pdf, read, sections, xlsx
from gritrag.documents.read import SUFFIXES, read_file

ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
LAUGHS = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "laugh"> {ENTITIES}]><x>&e9;</x>'.encode()


def refusal(name: str, data: bytes) -> str:
    with pytest.raises(ValueError, match=name) as caught:
        list(read_file(io.BytesIO(data), name))
    message = str(caught.value)
    assert "\n" not in message.strip()
    return message


@pytest.mark.parametrize("suffix", sorted(read.PARSERS))
def test_noise_and_nothing_are_refused(suffix: str) -> None:
    assert "empty" in refusal(f"a{suffix}", b"")
    if "htm" not in suffix:
        assert "save it" in refusal(f"a{suffix}", b"noise" * 100)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    for make, suffix in (
        (make_pdf, "pdf"),
        (make_docx, "docx"),
        (make_pptx, "pptx"),
        (make_xlsx, "xlsx"),
        (make_epub, "epub"),
    ):
        data = make(tmp_path / f"a.{suffix}").read_bytes()
        assert "broken" in refusal(f"a.{suffix}", data[: len(data) // 3])


def test_passwords_are_named(tmp_path: Path) -> None:
    assert "it has a password" in refusal("a.pdf", make_pdf(tmp_path / "a.pdf", password="open sesame").read_bytes())
    assert "it has a password" in refusal("a.docx", sections.OLE_MAGIC + bytes(600))
    drm = b'<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptionMethod Algorithm="aes"/></encryption>'
    book = rewritten(make_epub(tmp_path / "a.epub"), "META-INF/encryption.xml", drm)
    assert "DRM" in refusal("a.epub", book.read_bytes())


def test_scrambled_fonts_lock_no_book(tmp_path: Path) -> None:
    font = b'<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptionMethod Algorithm="http://ns.adobe.com/pdf/enc#RC"/></encryption>'
    book = rewritten(make_epub(tmp_path / "a.epub"), "META-INF/encryption.xml", font)
    assert len(list(read_file(io.BytesIO(book.read_bytes()), "a.epub"))) == 2


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx", ".epub"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, suffix: str) -> None:
    bomb = make_bomb(tmp_path / f"a{suffix}", 300)
    assert bomb.stat().st_size < 1 << 20
    assert "unpacks to 300 MiB" in refusal(bomb.name, bomb.read_bytes())


@pytest.mark.parametrize(
    ("make", "entry"),
    [
        (make_docx, "word/document.xml"),
        (make_docx, "docProps/core.xml"),
        (make_pptx, "ppt/slides/slide1.xml"),
        (make_xlsx, "xl/sharedStrings.xml"),
        (make_xlsx, "xl/worksheets/sheet1.xml"),
        (make_xlsx, "xl/workbook.xml"),
        (make_epub, "META-INF/container.xml"),
        (make_epub, "EPUB/content.opf"),
    ],
)
def test_entities_are_never_expanded(tmp_path: Path, make: Callable[[Path], Path], entry: str) -> None:
    path = rewritten(make(tmp_path / f"a.{make.__name__.removeprefix('make_')}"), entry, LAUGHS)
    try:
        found = list(read_file(io.BytesIO(path.read_bytes()), path.name))
    except ValueError:
        return
    assert sum(each.text.count("laugh") + each.title.count("laugh") for each in found) < 100


def test_an_external_entity_reads_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("password")
    evil = f'<!DOCTYPE x [<!ENTITY s SYSTEM "file://{secret}">]><html><body><p>text &s;</p></body></html>'.encode()
    (found,) = read_file(io.BytesIO(evil), "a.xhtml")
    assert "password" not in found.text
    path = rewritten(make_epub(tmp_path / "a.epub"), "EPUB/text/b 1.xhtml", evil)
    assert all("password" not in each.text for each in read_file(io.BytesIO(path.read_bytes()), "a.epub"))


def test_an_epub_names_only_its_own_files(tmp_path: Path) -> None:
    book = make_epub(tmp_path / "a.epub")
    secret = tmp_path / "secret.xhtml"
    secret.write_text("<p>password</p>")
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="a" href="../../../../../..'
        f'{secret}"/></manifest><spine><itemref idref="a"/></spine></package>'
    )
    assert "broken" in refusal("a.epub", rewritten(book, "EPUB/content.opf", package.encode()).read_bytes())


def test_too_many_pages_cells_characters_or_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_pdf(tmp_path / "a.pdf").read_bytes()
    table = make_xlsx(tmp_path / "a.xlsx").read_bytes()
    monkeypatch.setattr(pdf, "MAX_PAGES", 2)
    assert "3 pages, more than the limit of 2: split it" in refusal("a.pdf", data)
    monkeypatch.setattr(pdf, "MAX_PAGES", 3)
    monkeypatch.setattr(pdf, "MAX_CONTENT_BYTES", 10)
    assert "page 1: it has 0 MiB of drawing instructions" in refusal("a.pdf", data)
    monkeypatch.undo()
    monkeypatch.setattr(read, "MAX_CHARACTERS", 100)
    assert "more than 100 characters" in refusal("a.pdf", data)
    monkeypatch.setattr(read, "MAX_FILE_BYTES", 100)
    assert "more than the limit" in refusal("a.pdf", data)
    monkeypatch.undo()
    monkeypatch.setattr(xlsx, "MAX_CELLS", 5)
    assert "more than 5 cells" in refusal("a.xlsx", table)


def test_ten_thousand_pages_end_with_a_line(tmp_path: Path) -> None:
    from pypdf import PdfWriter

    writer = PdfWriter()
    for _ in range(10_000):
        writer.add_blank_page(100, 100)
    writer.write(tmp_path / "long.pdf")
    assert "10,000 pages" in refusal("long.pdf", (tmp_path / "long.pdf").read_bytes())


def test_a_sheet_that_claims_to_be_huge_is_read_as_it_is(tmp_path: Path) -> None:
    sheet = (
        b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><dimension ref="A1:XFD1048576"/>'
        b'<sheetData><row r="1048000"><c r="A1048000"><v>7</v></c></row></sheetData></worksheet>'
    )
    path = rewritten(make_xlsx(tmp_path / "a.xlsx"), "xl/worksheets/sheet1.xml", sheet)
    first = next(iter(read_file(io.BytesIO(path.read_bytes()), "a.xlsx")))
    assert (first.text, first.metadata["row"]) == ("7", 1_048_000)


def test_a_page_that_is_broken_takes_no_other_with_it(tmp_path: Path) -> None:
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import ArrayObject, NameObject, NumberObject

    writer = PdfWriter(clone_from=PdfReader(make_pdf(tmp_path / "a.pdf")))
    writer.pages[1][NameObject("/Contents")] = ArrayObject([NumberObject(1)])
    writer.write(tmp_path / "b.pdf")
    losses: list[str] = []
    found = list(read_file(io.BytesIO((tmp_path / "b.pdf").read_bytes()), "b.pdf", on_loss=losses.append))
    assert [each.metadata["page"] for each in found] == [1, 3]
    assert losses
    assert "page 2" in losses[0]


def test_unknown_kinds_are_named_with_the_remedy() -> None:
    assert "unknown kind .doc: save it as .docx; known are" in refusal("a.doc", b"x")
    assert "no suffix" in refusal("README", b"x")


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "PARSERS", {".pdf": ("nothing", "read")})
    assert "pip install 'gritrag[documents]'" in refusal("a.pdf", b"x")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("samples")
    makers = {"pdf": make_pdf, "docx": make_docx, "pptx": make_pptx, "xlsx": make_xlsx, "epub": make_epub}
    return {f"a.{suffix}": make(folder / f"a.{suffix}").read_bytes() for suffix, make in makers.items()}


def assert_whole_or_refused(data: bytes, name: str) -> None:
    try:
        found = list(read_file(io.BytesIO(data), name))
    except ValueError as error:
        refused = str(error)
    else:
        refused = name
        assert all(each.text.strip() for each in found)
    assert refused.startswith(name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_documents_or_one_clear_error(samples: dict[str, bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(samples)))
    content = bytearray(samples[name])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert_whole_or_refused(bytes(content), name)


@given(data=st.binary(max_size=300), suffix=st.sampled_from(sorted(SUFFIXES)))
@settings(max_examples=60, deadline=None)
def test_any_bytes_under_any_name(data: bytes, suffix: str) -> None:
    assert_whole_or_refused(data, f"a{suffix}")
