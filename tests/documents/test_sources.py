"""Sources: every file becomes documents, a reported skip, or an error that says where and what to do."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gritrag.documents.sources import FILE, ROOT, Source, list_sources, read_source
from gritrag.documents.text import TextOptions
from gritrag.records import Document


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def documents(*paths: Path) -> list[Document]:
    return [document for source in list_sources(paths).sources for document in read_source(source)]


def problem(path: Path) -> str:
    """Why a file, or a part of it, cannot be read."""
    (source,) = list_sources([path]).sources
    losses: list[str] = []
    try:
        list(read_source(source, losses.append))
    except ValueError as error:
        return str(error)
    return f"{path}: {'; '.join(losses)}"


def test_a_folder_gives_its_files_in_sorted_order_with_relative_ids(tmp_path: Path) -> None:
    write(tmp_path / "b.md", "second")
    write(tmp_path / "a" / "z.TXT", "first")
    write(tmp_path / "c.jsonl", '{"text": "third"}\n\n{"passage": "fourth", "id": 7}\n')
    found = documents(tmp_path)
    assert [(d.id, d.text) for d in found] == [
        ("a/z.TXT", "first"),
        ("b.md", "second"),
        ("c.jsonl#1", "third"),
        ("7", "fourth"),
    ]


def test_the_same_tree_elsewhere_gives_the_same_ids(tmp_path: Path) -> None:
    for root in ("one", "two"):
        write(tmp_path / root / "x" / "y.txt", "text")
    one, two = documents(tmp_path / "one"), documents(tmp_path / "two")
    assert [(d.id, d.text, d.metadata[FILE]) for d in one] == [(d.id, d.text, d.metadata[FILE]) for d in two]


def test_the_root_is_the_folder_given_or_that_of_the_file_and_the_same_by_every_way_to_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a" / "b" / "x.txt", "text")
    os.symlink(tmp_path / "a", tmp_path / "link")
    paths = [tmp_path / "a", tmp_path / "link", tmp_path / "a" / "b" / "..", file, tmp_path / "link" / "b" / "x.txt"]
    roots = [document.metadata[ROOT] for path in paths for document in documents(path)]
    root = os.path.realpath(tmp_path / "a")
    assert roots == [root] * 3 + [os.path.join(root, "b")] * 2


def test_columns_that_are_not_ours_become_metadata(tmp_path: Path) -> None:
    row = {"id": "p1", "title": "T", "text": "body", "year": 1999, "tags": ["a"]}
    (document,) = documents(write(tmp_path / "rows.jsonl", json.dumps(row)))
    metadata = {"year": 1999, "tags": ["a"], FILE: "rows.jsonl", ROOT: os.path.realpath(tmp_path)}
    assert document == Document("body", id="p1", title="T", metadata=metadata)


def test_csv_numbers_become_numbers_only_if_nothing_is_lost(tmp_path: Path) -> None:
    data = "text,year,zip,version,price\nbody,1999,007,1.10,2.5\n"
    (document,) = documents(write(tmp_path / "rows.csv", data))
    columns = {name: value for name, value in document.metadata.items() if name not in (FILE, ROOT)}
    assert columns == {"year": 1999, "zip": "007", "version": "1.10", "price": 2.5}
    assert document.id == "rows.csv#2"


def test_empty_cells_are_null(tmp_path: Path) -> None:
    data = 'id,title,text,year,kind\n,,one,, \n,,two,2000,""\n'
    one, two = documents(write(tmp_path / "rows.csv", data))
    assert (one.id, one.title, one.metadata["year"], one.metadata["kind"]) == ("rows.csv#2", "", None, None)
    assert (two.metadata["year"], two.metadata["kind"]) == (2000, None)


@pytest.mark.parametrize(
    "data",
    [
        "text;year\nOne, and; two;1999\n".replace("One, and; two", '"One, and; two"'),
        "year|BODY\n1999|One, and; two\n",
        "year\tpassage\n1999\tOne, and; two\n",
        'content,year\n"One, and; two",1999\n',
        '\ufeffcontent,year\n"One, and; two",1999\n',
    ],
)
def test_delimiter_and_column_of_text_are_found(tmp_path: Path, data: str) -> None:
    (document,) = documents(write(tmp_path / "rows.csv", data))
    assert (document.text, document.metadata["year"]) == ("One, and; two", 1999)


def test_prose_of_one_column_keeps_its_commas(tmp_path: Path) -> None:
    found = documents(write(tmp_path / "rows.csv", 'text\n"One, two; three"\nfour; five\n'))
    assert [document.text for document in found] == ["One, two; three", "four; five"]


def test_a_column_that_was_asked_for_is_read_and_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"text": "no", "answer": "yes"}\n')
    (source,) = list_sources([path]).sources
    (document,) = read_source(source, options=TextOptions(text_column="answer"))
    assert (document.text, document.metadata["text"]) == ("yes", "no")


def test_csv_takes_quoted_line_breaks_and_fields_longer_than_the_module_default(tmp_path: Path) -> None:
    long = "word, " * 60_000
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], ["a", "one\ntwo"], ["b", long]])
    assert [d.text for d in documents(path)] == ["one\ntwo", long]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    body = {"a.jsonl": '{"text": "body"}', "a.csv": "text\nbody\n"}.get(name, "body")
    (document,) = documents(write(tmp_path / name, b"\xef\xbb\xbf" + body.encode()))
    assert document.text == "body"


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=5
    )
)
def test_jsonl_keeps_every_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), newline="")
    assert [d.text for d in read_source(Source(path, "rows.jsonl", str(path.parent)))] == texts


def test_what_is_skipped_in_a_folder_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "keep.txt", "text")
    write(tmp_path / "image.png", "x")
    write(tmp_path / "README", "x")
    write(tmp_path / "empty.md", "")
    write(tmp_path / ".hidden.txt", "x")
    write(tmp_path / ".git" / "config.txt", "x")
    listing = list_sources([tmp_path])
    assert [source.name for source in listing.sources] == ["keep.txt"]
    assert {(s.path.name, s.reason) for s in listing.skipped} == {
        ("image.png", "unknown kind .png"),
        ("README", "no suffix"),
        ("empty.md", "empty file"),
        (".hidden.txt", "hidden file"),
        (".git", "hidden folder"),
    }


def test_a_file_given_by_name_is_skipped_for_the_same_reasons(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.txt", ""), write(tmp_path / "b.xyz", "x"), write(tmp_path / ".c.txt", "x")]
    listing = list_sources(paths)
    assert [source.name for source in listing.sources] == [".c.txt"]
    assert [each.reason for each in listing.skipped] == ["empty file", "unknown kind .xyz"]


def test_a_loop_of_links_is_entered_once(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.txt", "text")
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    listing = list_sources([tmp_path])
    assert [source.name for source in listing.sources] == ["a/x.txt"]
    assert [s.reason for s in listing.skipped] == ["a link to a folder that was already entered"]


def test_a_file_given_twice_is_read_once_and_two_of_one_name_are_two(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1" / "x.txt", "one"), write(tmp_path / "2" / "x.txt", "two")
    assert len(documents(one, one, one.parent)) == 1
    assert [document.text for document in documents(one, two)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"fine\nna\xefve\n", r"a\.txt: line 2: not UTF-8 \(byte 0xef at 2\); save it"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \xff}\n', r"a\.jsonl: 1 of 2 rows are left out: line 2: not UTF-8"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": "y"\n',
            r"a\.jsonl: 1 of 2 rows .*: line 2: not valid JSON .* mend or delete",
        ),
        ("a.jsonl", '["text"]\n', r"line 1: a list, not an object"),
        ("a.jsonl", '{"answer": "x"}\n', r"line 1: no column 'text', .*; it has 'answer': say which .* --text-column"),
        ("a.jsonl", '{"text": " "}\n', r"line 1: 'text' must be a text that is not empty"),
        ("a.jsonl", '{"text": 5}\n', r"line 1: 'text' must be a text"),
        ("a.jsonl", '{"text": "x", "id": 1.5}\n', r"line 1: 'id' must be"),
        ("a.jsonl", '{"text": "x", "title": []}\n', r"line 1: 'title' must be"),
        ("a.jsonl", '{"text": "x", "source_file": "y"}\n', r"line 1: the column 'source_file' is taken"),
        ("a.jsonl", '{"text": "x", "source_root": "y"}\n', r"line 1: the column 'source_root' is taken"),
        ("a.jsonl", '{"text": "x", "score": NaN}\n', r"line 1: not valid JSON \(NaN"),
        ("a.jsonl", "[" * 100_000 + "\n", r"line 1: not valid JSON"),
        ("a.csv", "text,year\nx\n", r"a\.csv: line 2: not as many fields .* \(2\)"),
        ("a.csv", "text,year\nx,1\ny,2,3\n", r"a\.csv: 1 of 2 rows .*: line 3: not as many fields"),
        ("a.csv", 'text\n"x\n', r"a\.csv: line 2: not valid CSV"),
        ("a.csv", "text,text\nx,y\n", r"line 1: the header names a column twice"),
        ("a.csv", "answer\nx\n", r"no column 'text', .* --text-column, or the delimiter with --delimiter"),
        ("a.csv", "text\n", r"it holds no rows"),
        ("a.csv", 'text\nx\n"y\nz\n', r"1 of 2 rows .*: line 3: not valid CSV"),
        ("a.txt", " \n", r"a\.txt: it holds nothing but white space"),
        ("a.pdf", "x", r"a\.pdf: it is no PDF"),
    ],
)
def test_what_is_broken_is_told_by_name_and_line(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    assert re.search(message, problem(write(tmp_path / name, data)))


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.txt: no such file or folder"):
        documents(tmp_path / "gone.txt")


def test_a_dead_link_is_refused_by_name(tmp_path: Path) -> None:
    os.symlink(tmp_path / "gone", tmp_path / "link.txt")
    with pytest.raises(ValueError, match=r"link\.txt: cannot be read \(No such file"):
        documents(tmp_path)


def test_an_empty_path_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    assert len(list_sources(["."]).sources) == 1
    with pytest.raises(ValueError, match="an empty path names no file"):
        list_sources([""])
