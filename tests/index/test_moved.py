"""An open index is that of the folder in which it was opened: whatever takes its path meanwhile is another one."""

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hash_reader import HashReader

from gritrag.index.errors import ReplacedIndex
from gritrag.index.index import Index
from gritrag.index.storage import durable
from gritrag.records import Document

Make = Callable[..., Index]


def test_another_working_directory_changes_nothing(
    tmp_path: Path, reader: HashReader, corpus: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Index.create("index", model=reader) as index:
        monkeypatch.chdir(tmp_path / "elsewhere")
        index.add(corpus)
        index.compact()
    monkeypatch.chdir(tmp_path)
    with Index.open("index", model=reader) as index:
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert None not in index.load_states(corpus)
        assert index.verify() == ([], [])
        with Index.open(index.path, model=reader) as again:
            assert len(again) == len(corpus)
    assert not os.listdir(tmp_path / "elsewhere")


@pytest.mark.parametrize("at", ["states", "./states", "file://states", "local://states"])
def test_a_folder_of_states_is_the_one_that_was_named(
    tmp_path: Path, reader: HashReader, corpus: list[Document], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRITRAG_STATE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Index.create("index", model=reader, states_at=at) as index:
        index.add(corpus[:3])
    monkeypatch.setenv("GRITRAG_STATE_CACHE", str(tmp_path / "cache2"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    with Index.open(tmp_path / "index", model=reader) as index:
        assert None not in index.load_states(corpus[:3])
    assert len(list((tmp_path / "states").rglob("*.safetensors"))) == 3
    for url in ("memory://x/y", "s3://bucket/notes", "https://example.org:6333"):
        assert durable.settled_place(url) == url
    monkeypatch.setenv("HOME", str(tmp_path))
    assert durable.settled_place("~/states") == str(tmp_path / "states")


def test_a_link_that_is_turned_to_the_next_version_leaves_readers_with_theirs(
    make: Make, reader: HashReader, corpus: list[Document], tmp_path: Path
) -> None:
    for name, documents in (("one", corpus), ("two", corpus[:3])):
        with make(name) as index:
            index.add(documents)
    current = tmp_path / "current"
    current.symlink_to("one")
    with Index.open(current, model=reader) as index:
        current.unlink()
        current.symlink_to("two")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert None not in index.load_states(corpus)
        with Index.open(current, model=reader) as other:
            assert len(other) == 3


@pytest.mark.parametrize("states", ["none", "bf16"])
def test_a_writer_whose_folder_was_exchanged_harms_neither(
    make: Make, reader: HashReader, corpus: list[Document], tmp_path: Path, states: str
) -> None:
    with make("new", states=states) as new:
        new.add(corpus[:3])
    writer = make("index", states=states)
    writer.add(corpus[:10])
    (tmp_path / "index").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "index")
    with Index.open(tmp_path / "index", model=reader, mode="rw") as new:
        for write in (lambda: writer.add(corpus), lambda: writer.delete(ids=["d1"]), writer.compact):
            with pytest.raises(ReplacedIndex, match=r"moved.*open it again"):
                write()
        writer.close()
        with pytest.raises(ValueError, match="is being written"):  # its `lock.pid` is still there, too
            Index.open(tmp_path / "index", model=reader, mode="rw")
        assert (tmp_path / "index" / "lock.pid").exists()
    for name, count in (("index", 3), ("old", 10)):
        with Index.open(tmp_path / name, model=reader, mode="rw") as index:
            assert len(index) == count
            assert index.verify() == ([], [])


def test_a_writer_whose_lock_is_removed_stops_before_its_next_commit(
    tmp_path: Path, corpus: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message that an index is being written leads some to remove the file."""
    others: list[Index] = []

    class Slow(HashReader):
        def read_documents(self, texts: Any, **options: Any) -> Any:
            if len(others) == 0 and self.documents_read:
                (tmp_path / "index" / "lock").unlink()
                others.append(Index.open(tmp_path / "index", model=HashReader(), mode="rw"))
                others[0].add(["of another writer"])
                others[0].delete(ids=["d0"])
            return super().read_documents(texts, **options)

    monkeypatch.setattr("gritrag.index.build.CHUNK_DOCUMENTS", 10)
    index = Index.create(tmp_path / "index", model=Slow())
    with pytest.raises(ReplacedIndex, match=r"lock was removed.*open it again"):
        index.add(corpus)
    index.close()
    others[0].add(["and once more"])
    others[0].close()
    with Index.open(tmp_path / "index", model=HashReader(), mode="rw") as again:
        assert len(again) == 11
        assert all("belongs to no document" in problem for problem in again.verify().problems)
        again.compact()
        assert again.verify() == ([], [])


def test_what_a_writer_had_begun_to_write_when_it_died_is_removed_and_in_nobodys_way(
    make: Make, reader: HashReader
) -> None:
    index = make()
    index.close()
    begun = [durable._beside(index.path / name) for name in ("manifest.json", "catalog.checksums")]
    begun.append(index.path / ".catalog.checksums.4242.tmp")  # of an older GritRAG

    def die() -> None:
        for path in begun:
            path.write_bytes(b"half of it")
        (index.path / "lock.pid").write_text("4242\n")

    die()
    Index.open(index.path, model=reader, mode="rw").close()
    assert not [path for path in begun if path.exists()]
    die()
    Index.create(index.path, model=reader, overwrite=True).close()
    assert not [path for path in begun if path.exists()]
    (index.path / ".notes.txt.tmp").write_text("somebody's")
    with pytest.raises(ValueError, match=r"other things than an index \(\.notes\.txt\.tmp\)"):
        Index.create(index.path, model=reader, overwrite=True)


def test_two_threads_that_write_one_file_both_write_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two answers do that fetch one state from object storage."""
    both = threading.Barrier(2, timeout=30)
    faults: list[BaseException] = []

    def sync(path: Path) -> None:
        both.wait()

    def write() -> None:
        try:
            durable.replace_files([(tmp_path / "file", b"content")])
        except BaseException as fault:
            faults.append(fault)

    monkeypatch.setattr(durable, "sync", sync)
    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert (tmp_path / "file").read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["file"]
