"""Roots: files keep their names when their folder moves, and two folders may have files of one name."""

from pathlib import Path

import pytest

from gritrag.documents.roots import Root, Roots
from gritrag.documents.sources import list_sources

FILES = ("a.md", "guide/a.md", "guide/b.md", "notes.txt")


def fill(folder: Path, *names: str) -> Path:
    for name in names or FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    return folder.resolve()


def names(roots: Roots, *paths: Path, at: Path | None = None) -> list[str]:
    """The names of the files; and each leads to its file."""
    placed = roots.place(list_sources(paths).sources, at)
    for source in placed:
        assert roots.file(source.root, source.name).samefile(source.path)
    return [source.name for source in placed]


def seen(roots: Roots, **files: tuple[str, ...]) -> Roots:
    """The same roots as the next run knows them."""
    return Roots(roots.known, files)


def test_files_of_the_first_root_have_plain_names_and_others_begin_with_their_root(tmp_path: Path) -> None:
    roots = Roots()
    docs, manuals, again = (fill(tmp_path / name) for name in ("x/docs", "x/manuals", "y/docs"))
    assert names(roots, docs) == list(FILES)
    assert names(roots, manuals) == [f"manuals:{name}" for name in FILES]
    assert names(roots, again) == [f"docs-2:{name}" for name in FILES]
    assert names(roots, docs, manuals / "a.md") == [*FILES[:3], "manuals:a.md", FILES[3]]
    assert {name: root.path for name, root in roots.known.items()} == {
        "docs": str(docs), "manuals": str(manuals), "docs-2": str(again)
    }  # fmt: skip
    assert roots.moved == []


def test_both_roots_of_one_call(tmp_path: Path) -> None:
    one, two = fill(tmp_path / "one", "a.md"), fill(tmp_path / "two", "a.md")
    assert names(Roots(), one, two) == ["a.md", "two:a.md"]


def test_what_is_below_a_root_belongs_to_it_and_is_there_once(tmp_path: Path) -> None:
    docs = fill(tmp_path / "docs")
    roots = Roots()
    names(roots, docs)
    assert names(roots, docs / "guide") == ["guide/a.md", "guide/b.md"]
    assert names(roots, docs / "guide" / "b.md") == ["guide/b.md"]
    assert names(Roots(), docs / "guide", docs) == list(FILES)
    assert len(roots.known) == 1


@pytest.mark.parametrize("root", ["docs", "its path"])
def test_a_folder_that_was_renamed_goes_on(tmp_path: Path, root: str) -> None:
    """Also one of an index that calls its roots by their paths, as those of older commits do."""
    old = fill(tmp_path / "docs")
    root = str(old) if root == "its path" else root
    roots = Roots({root: Root(str(old))}, {root: FILES})
    new = old.rename(tmp_path / "renamed")
    (new / "a.md").unlink()
    fill(new, "new.md")
    assert names(roots, new) == [*FILES[1:3], "new.md", FILES[3]]
    assert roots.moved == [(str(old), str(new))]
    assert roots.known == {root: Root(str(new))}
    assert {source.root for source in roots.place(list_sources([new]).sources)} == {root}


def test_a_root_beside_one_that_was_renamed_keeps_its_prefix(tmp_path: Path) -> None:
    roots = Roots()
    names(roots, fill(tmp_path / "docs"))
    names(roots, fill(tmp_path / "manuals", "m.md", "n.md"))
    (tmp_path / "docs").rename(tmp_path / "d")
    (tmp_path / "manuals").rename(tmp_path / "m")
    roots = Roots(roots.known, {"docs": FILES, "manuals": ["manuals:m.md", "manuals:n.md"]})
    assert names(roots, tmp_path / "m") == ["manuals:m.md", "manuals:n.md"]
    assert names(roots, tmp_path / "d") == list(FILES)


def test_another_folder_is_not_taken_for_one_that_is_gone(tmp_path: Path) -> None:
    gone = Roots({"docs": Root(str(tmp_path / "gone"))}, {"docs": FILES})
    assert names(gone, fill(tmp_path / "else", "a.md", "z.md")) == ["else:a.md", "else:z.md"]
    there = Roots({"docs": Root(str(fill(tmp_path / "docs")))}, {"docs": FILES})
    assert names(there, fill(tmp_path / "copy", *FILES)) == [f"copy:{name}" for name in FILES]
    assert gone.moved == there.moved == []


def test_root_says_where_the_folder_is_now(tmp_path: Path) -> None:
    """Where the old folder is still there, or little of it is left, nobody else can know."""
    old, copy = fill(tmp_path / "docs"), fill(tmp_path / "copy", "guide/b.md", "z.md")
    roots = Roots({"docs": Root(str(old))}, {"docs": FILES})
    assert names(roots, copy / "guide", at=copy) == ["guide/b.md"]
    assert roots.moved == [(str(old), str(copy))]
    assert names(roots, copy) == ["guide/b.md", "z.md"]
    assert names(Roots(), old / "guide", at=old) == ["guide/a.md", "guide/b.md"]
    several = Roots({"docs": Root(str(old)), "m": Root("/m", "m:")}, {"docs": FILES, "m": ["m:z.md"]})
    assert names(several, copy, at=copy) == ["m:guide/b.md", "m:z.md"]


def test_a_root_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    docs, other = fill(tmp_path / "docs"), fill(tmp_path / "other", "q.md")
    with pytest.raises(ValueError, match=r"docs is not below .*guide, which --root names"):
        names(Roots(), docs, at=docs / "guide")
    several = Roots({"docs": Root(str(docs)), "m": Root("/m", "m:")}, {"docs": FILES, "m": ["m:z.md"]})
    with pytest.raises(ValueError, match=r"no file of any of the roots .*docs, /m"):
        names(several, other, at=other)
