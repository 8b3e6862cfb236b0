"""Folders that move: the documents go on without being read again, also in indexes from before roots had names."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gritrag import GritModel, Index
from gritrag.cli import app
from gritrag.documents.sources import FILE, ROOT

TEXTS = {"a.md": "The ferry leaves at noon.", "guide/b.md": "The owl sleeps.", "guide/c.md": "Bread is baked at four."}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / name).write_text(text)
    return tmp_path / "docs"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that the model reads."""
    texts: list[str] = []
    for name in ("read_documents", "encode_document"):
        plain = getattr(GritModel, name)

        def noted(self: GritModel, documents: Any, _plain: Any = plain, **options: Any) -> Any:
            texts.extend(document.text for document in documents)
            return _plain(self, documents, **options)

        monkeypatch.setattr(GritModel, name, noted)
    return texts


@pytest.fixture
def where(tmp_path: Path, model_folder: str) -> tuple[str, ...]:
    return ("--index", str(tmp_path / "index"), "--model", model_folder, "--dtype", "float32", "--json")


def run(*args: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["index", *map(str, args)])
    assert result.exit_code == code, result.output
    return result


def held(where: tuple[str, ...]) -> dict[str, str]:
    with Index.open(where[1]) as index:
        return {id: index[id].text for id in index}


def test_a_renamed_folder_is_not_read_again(docs: Path, where: tuple[str, ...], reads: list[str]) -> None:
    run(docs, *where)
    assert held(where) == TEXTS
    new = docs.rename(docs.with_name("papers"))
    reads.clear()
    result = run(new, *where)
    assert f"{docs} is now {new}: its documents go on" in result.stderr
    report = json.loads(result.stdout)
    assert (report["added"], report["replaced"], report["skipped"], report["removed"]) == (0, 0, 3, 0)
    assert reads == []
    (new / "a.md").unlink()
    (new / "guide" / "b.md").write_text("The owl wakes.")
    report = json.loads(run(new, *where).stdout)
    assert (report["added"], report["replaced"], report["skipped"], report["removed"]) == (0, 1, 1, 1)
    assert held(where) == {"guide/b.md": "The owl wakes.", "guide/c.md": TEXTS["guide/c.md"]}


def test_an_index_from_before_roots_had_names_goes_on(docs: Path, where: tuple[str, ...], reads: list[str]) -> None:
    run(docs, *where)
    old = str(docs.resolve())
    with Index.open(where[1], mode="rw", model=where[3], dtype="float32") as index:
        from_before = [index[id] for id in index]
        for document in from_before:
            assert document.metadata == {FILE: document.id, ROOT: "docs"}
        index.add([type(each)(each.text, each.id, metadata={FILE: each.id, ROOT: old}) for each in from_before])
        index.set_note("roots", "{}")
    reads.clear()
    papers = docs.with_name("papers")
    for folder in (docs, papers, papers / "guide"):
        if folder == papers:
            docs.rename(papers)
        report = json.loads(run(folder, *where).stdout)
        assert (report["added"], report["replaced"], report["removed"], report["documents"]) == (0, 0, 0, 3)
    assert reads == []


def test_two_folders_with_files_of_one_name(docs: Path, where: tuple[str, ...], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.md").write_text("Another ferry.")
    run(docs, other, *where)
    assert held(where) == {**TEXTS, "other:a.md": "Another ferry."}
    (other / "a.md").unlink()
    (other / "z.md").write_text("A lamp.")
    run(other, *where)
    run(docs, *where)
    assert held(where) == {**TEXTS, "other:z.md": "A lamp."}


def test_root_names_the_folder_where_it_is_now(
    docs: Path, where: tuple[str, ...], tmp_path: Path, reads: list[str]
) -> None:
    """The old folder is still there, and only a part of the new one is asked for."""
    run(docs, *where)
    copy = tmp_path / "copy"
    (copy / "guide").mkdir(parents=True)
    (copy / "guide" / "b.md").write_text(TEXTS["guide/b.md"])
    reads.clear()
    report = json.loads(run(copy / "guide", *where, "--root", copy).stdout)
    assert (report["added"], report["replaced"], report["skipped"]) == (0, 0, 1)
    assert reads == []
    assert held(where) == {"guide/b.md": TEXTS["guide/b.md"]}, "what is not in the folder now is gone"
    assert "is not below" in run(docs, *where, "--root", copy, code=2).stderr
