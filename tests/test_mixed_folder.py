"""A folder of a hundred files, twenty of them bad in twenty ways, is indexed in one run that names all twenty."""

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gritrag import GritModel, Index
from gritrag.chunks import Cutting, check_cutting, cut, gather, skipped_lines
from gritrag.cli import app
from gritrag.documents.sources import Skipped
from gritrag.documents.text import TextOptions
from gritrag.records import Document

sys.path.insert(0, str(Path(__file__).parent / "documents"))
from files import make_docx, make_html, make_pdf, make_xlsx

GOOD = 80


def make_bad_files(folder: Path) -> dict[str, str]:
    """Twenty files, and for each what its line has to say: what is wrong, or what to do."""
    files: dict[str, tuple[bytes, str]] = {
        "latin.txt": ("süß\n".encode("latin-1"), "--encoding windows-1252"),
        "wide.txt": ("no mark\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        "torn.txt": ("half a letter".encode("utf-16")[:-1], "as the byte order mark says"),
        "noise.txt": (bytes(range(256)) * 4, "it is binary, not text"),
        "packed.md": (gzip.compress(b"text " * 99), "compressed with gzip"),
        "paper.rst": (b"%PDF-1.7\n1 0 obj", "it is binary (a PDF)"),
        "blank.md": (b" \n\t\n", "nothing but white space"),
        "row.jsonl": (
            b'{"text": "A whole row."}\n{"text": "broken\n',
            "1 of 2 rows are left out: line 2: not valid",
        ),
        "array.jsonl": (json.dumps([{"text": "x"}], indent=1).encode(), "each object on a line of its own"),
        "no_text.jsonl": (b'{"question": "q", "answer": "a"}\n', "it has 'question', 'answer': say which is read"),
        "surrogate.jsonl": (b'{"text": "\\ud800"}\n', "holds a lone surrogate"),
        "metadata.jsonl": (b'{"text": "fine", "by": "\\ud800"}\n', "holds a lone surrogate"),
        "same.jsonl": (b'{"text": "one", "id": 1}\n{"text": "two", "id": 1}\n', "give each its own id"),
        "no_text.csv": (b"question,answer\nq,a\n", "--text-column"),
        "ragged.csv": (b"text,year\nA whole row.,1999\ncut, in two,1999\n", "put quotes around a field"),
        "quotes.csv": (b'text\nA row before it.\n"never closed\nlost\n', "line 3: not valid CSV"),
        "twice.csv": (b"text,text\nx,y\n", "names a column twice"),
        "broken.pdf": (b"%PDF-1.7 and no more", "save it anew"),
        "cut.docx": (make_docx(folder / "cut.docx").read_bytes()[:900], "no .docx file"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    make_pdf(folder / "locked.pdf", password="open sesame")
    return {name: said for name, (_, said) in files.items()} | {"locked.pdf": "save it without one"}


def make_good_files(folder: Path) -> None:
    (folder / "marked.txt").write_bytes("With a mark: süß.".encode("utf-16"))
    (folder / "wider.txt").write_bytes("With another: süß.".encode("utf-32"))
    (folder / "marked8.md").write_bytes("\ufeffUTF-8 with a mark.".encode())
    (folder / "semicolons.csv").write_text('id;Body;year\ns1;"Ein Satz; mit Semikolon, und Komma.";1999\n')
    (folder / "tabs.tsv").write_text("content\tyear\nBetween tabs, a comma.\t2001\n")
    (folder / "body.jsonl").write_text('{"body": "A row of a newspaper.", "id": "b1"}\n')
    make_html(folder / "page.html")
    make_pdf(folder / "paper.pdf")
    make_xlsx(folder / "table.xlsx")
    made = len(list(folder.iterdir()))
    for number in range(GOOD - made):
        (folder / f"note{number}.md").write_text(f"Note {number} tells of the year {1900 + number}.")


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    folder = tmp_path / "mixed"
    folder.mkdir()
    make_good_files(folder)
    assert len(list(folder.iterdir())) == GOOD
    return folder, make_bad_files(folder)


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def named(result: Result) -> dict[str, str]:
    """For each file that a line names, that line."""
    lines = [line.strip() for line in result.stderr.splitlines()]
    found = [line.split(": ", 2) for line in lines if line.startswith(("not read: ", "read in part: "))]
    return {Path(path).name: reason for _, path, reason in found}


def test_a_hundred_files_of_which_twenty_are_bad(
    mixed: tuple[Path, dict[str, str]], tmp_path: Path, model_folder: str
) -> None:
    folder, bad = mixed
    assert (len(list(folder.iterdir())), len(bad)) == (100, 20)
    where = ("--index", tmp_path / "index", "--model", model_folder, "--states", "none", "--json")
    result = run("index", folder, *where)
    lines = named(result)
    assert lines.keys() == bad.keys()
    for name, said in bad.items():
        assert said in lines[name], name
    assert len(result.stderr.splitlines()[-20:]) == len([*filter(None, lines.values())]) == 20
    with Index.open(tmp_path / "index", model=None) as index:
        documents = [index[id] for id in index]
    files = {document.metadata["source_file"] for document in documents}
    in_part = {"row.jsonl", "ragged.csv", "quotes.csv", "same.jsonl"}
    assert files == {path.name for path in folder.iterdir()} - (bad.keys() - in_part)
    texts = {document.text for document in documents}
    assert {"With a mark: süß.", "With another: süß.", "UTF-8 with a mark.", "Between tabs, a comma."} <= texts
    (semicolons,) = [document for document in documents if document.id == "s1"]
    assert (semicolons.text, semicolons.metadata["year"]) == ("Ein Satz; mit Semikolon, und Komma.", 1999)
    report = json.loads(result.stdout)
    assert len(report["not_read"]) == 20
    again = json.loads(run("index", folder, *where).stdout)
    assert (again["added"], again["removed"], again["skipped"]) == (0, 0, report["documents"])


def test_strict_stores_nothing_and_names_all_twenty(
    mixed: tuple[Path, dict[str, str]], tmp_path: Path, model_folder: str
) -> None:
    folder, bad = mixed
    result = run("index", folder, "--index", tmp_path / "index", "--model", model_folder, "--strict", code=2)
    assert named(result).keys() == bad.keys()
    assert not (tmp_path / "index").exists()
    for name in bad:
        (folder / name).unlink()
    (folder / "picture.png").write_bytes(b"x")  # of a kind that nobody expects to be read
    run("index", folder, "--index", tmp_path / "index", "--model", model_folder, "--strict", "--states", "none")


def test_what_text_files_do_not_say_can_be_said(tmp_path: Path, model_folder: str) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes("süß".encode("latin-1"))
    (folder / "b.csv").write_bytes("frage^antwort\nWann?^Um fünf.\n".encode("latin-1"))
    options = ("--encoding", "latin-1", "--text-column", "antwort", "--delimiter", "^")
    run("index", folder, "--index", tmp_path / "index", "--model", model_folder, "--states", "none", *options)
    with Index.open(tmp_path / "index", model=None) as index:
        assert [index[id].text for id in index] == ["süß", "Um fünf."]
        assert index["b.csv#2"].metadata["frage"] == "Wann?"
    where = ("--index", tmp_path / "other", "--model", model_folder)
    assert "no encoding" in run("index", folder, *where, "--encoding", "latin-9000", code=2).stderr
    assert "one character" in run("index", folder, *where, "--delimiter", "::", code=2).stderr


def test_what_is_no_file_and_what_has_no_name_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    os.mkfifo(tmp_path / "pipe.txt")
    os.symlink(tmp_path / "gone", tmp_path / "link.txt")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xe9.txt")).write_text("text")
    found = gather([tmp_path], len, Cutting())
    assert [chunk.text for chunk in found.chunks] == ["text"]
    lines = skipped_lines(found.skipped)
    assert all(line.isprintable() and line.encode() for line in lines)
    assert [(each.path.name, each.reason.split(";")[0]) for each in found.skipped] == [
        ("n\\udce9.txt", "its name is no Unicode text"),
        ("pipe.txt", "no file but a pipe, socket or device"),
        ("link.txt", "cannot be read (No such file or directory)"),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "closed").mkdir(mode=0)
    assert "cannot be listed" in gather([tmp_path], len, Cutting()).skipped[0].reason


def test_one_document_that_cannot_be_cut_takes_no_other_with_it() -> None:
    documents = [Document("\ud800", id="a"), Document("fine", id="b"), Document("other", id="b"), Document("x", id="c")]
    problems: list[str] = []
    chunks = list(cut(documents, len, Cutting(), problems.append))
    assert [(chunk.id, chunk.text) for chunk in chunks] == [("b", "fine"), ("c", "x")]
    assert len(problems) == 2
    assert "lone surrogate" in problems[0]
    assert "'b' is that of an earlier document" in problems[1]


def test_a_line_for_each_file_and_for_each_reason_not_to_ask_it() -> None:
    pictures = [Skipped(Path(name), "unknown kind .png", "nothing") for name in ("a.png", "b.png")]
    faults = [Skipped(Path("c.txt"), "broken\nbadly"), Skipped(Path("d.pdf"), "page 2: blank", "part")]
    assert skipped_lines([*faults, *pictures]) == [
        "left out 2 (unknown kind .png): a.png and others",
        "1 file and parts of 1 file could not be read, and the others were:",
        "not read: c.txt: broken badly",
        "read in part: d.pdf: page 2: blank",
    ]


def test_settings_that_no_document_can_be_cut_with_are_refused_at_once(tiny_model: GritModel) -> None:
    longest = tiny_model.max_document_tokens
    with pytest.raises(ValueError, match="longer than what the model reads at once"):
        check_cutting(Cutting(longest + 1), longest)
    with pytest.raises(ValueError, match="overlap must be from 0"):
        check_cutting(Cutting(8, 8), longest)
    assert check_cutting(Cutting(8, 4, TextOptions("latin-1")), longest).chunk_size == 8
