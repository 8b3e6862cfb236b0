"""One index among many: readers and their snapshots, forked children, copies, and an index that is closed."""

import gc
import os
import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
from hash_reader import HashReader
from tiny import DOCUMENTS, READER, answers, make_tiny

from gritrag.index.errors import ClosedIndex, DamagedIndex
from gritrag.index.index import Index
from gritrag.records import Document

Make = Callable[..., Index]
FORK = get_context("fork")


def in_child(call: Callable[[], object]) -> str:
    """What a forked child makes of `call`: its result or its error, as text."""
    here, there = FORK.Pipe(duplex=False)

    def child() -> None:
        try:
            there.send(str(call()))
        except ValueError as error:
            there.send(f"{type(error).__name__}: {error}")

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    return str(here.recv())


def test_a_snapshot_sees_one_commit_and_the_next_call_the_newest(
    make: Make, reader: HashReader, corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gritrag.index.storage.schema.BUSY_MS", 10)
    index = make()
    index.add(corpus[:10])
    with Index.open(index.path, model=reader, mode="r") as other:
        with other.snapshot():
            before = other.search("amber", 99)
            index.add(corpus[10:])
            with pytest.warns(UserWarning, match="a reader keeps the log"):
                index.delete(ids=["d0"])
            assert other.search("amber", 99) == before
            assert other.get(["d0"]) == corpus[:1]
            assert len(other) == 10
            with other.snapshot():
                assert "d20" not in other
        assert len(other) == len(other.search("amber", 99)) == 29
        assert "d0" not in other


def test_nothing_is_written_in_ones_own_snapshot(make: Make) -> None:
    index = make()
    with index.snapshot(), pytest.raises(ValueError, match="snapshot of this index is open"):
        index.add(["text"])
    index.add(["text"])
    assert len(index) == 1


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_child_is_told_to_open_its_own(make: Make, reader: HashReader, corpus, mode: str) -> None:
    with make() as index:
        index.add(corpus)
    with Index.open(index.path, model=reader, mode=mode) as parent:
        for call in (
            lambda: parent.search("amber"),
            lambda: parent.get(["d1"]),
            lambda: parent.load_states(parent.get(["d1"])),
            lambda: len(parent),
            lambda: parent.verify(),
        ):
            told = in_child(call)
            assert f"opened by process {os.getpid()}" in told
            assert "Index.open in each process" in told
        assert in_child(lambda: len(Index.open(index.path, model=reader, mode="r"))) == "30"


def test_a_child_that_ends_takes_nothing_from_its_parent(make: Make, reader: HashReader, corpus) -> None:
    """Neither the lock nor the log, whether the child closes the index, forgets it or just ends."""
    index = make()
    index.add(corpus)

    def forget() -> str:
        nonlocal index
        del index
        gc.collect()
        return "forgotten"

    for call in (index.close, forget, os.getpid):
        in_child(call)
        with pytest.raises(ValueError, match=f"being written by process {os.getpid()}"):
            Index.open(index.path, model=reader, mode="rw")
        index.add([f"after {call}"])
    index.close()
    with Index.open(index.path, model=reader, mode="rw") as again:
        assert len(again) == 33
        assert again.verify() == ([], [])


def test_a_closed_index_says_so(make: Make, corpus) -> None:
    index = make()
    index.add(corpus)
    index.close()
    index.close()
    for call in (
        lambda: index.search("amber"),
        lambda: index.search("amber", mode="sparse"),
        lambda: index.get(["d1"]),
        lambda: index.load_states(index.get(["d1"])),
        lambda: len(index),
        lambda: list(index),
        lambda: index.stats(),
        lambda: index.verify(),
        lambda: index.add(["x"]),
        lambda: index.delete(where={}),
        lambda: index.compact(),
    ):
        with pytest.raises(ClosedIndex, match=r"is closed.*Index\.open"):
            call()


def test_an_index_that_is_forgotten_and_not_closed_is_whole(tmp_path: Path) -> None:
    """SQLite would fold its log into the file as the last connection goes, and no checksums would know of it."""
    index = make_tiny(tmp_path / "index")
    expected = answers(index)
    index._parts.lock.release()
    del index
    gc.collect()
    with Index.open(tmp_path / "index", model=READER, mode="r") as again:
        assert answers(again) == expected


def test_two_indexes_on_one_directory_in_one_process(make: Make, reader: HashReader, corpus) -> None:
    """POSIX would drop the locks of all of them when the first is closed."""
    index = make()
    index.add(corpus[:10])
    readers = [Index.open(index.path, model=reader, mode="r") for _ in range(3)]
    for other in readers[:2]:
        other.close()
    index.close()
    with Index.open(index.path, model=reader, mode="rw") as again:
        again.add(corpus)
        again.delete(ids=["d1"])
        assert len(readers[2].search("amber", 99)) == 29
    assert len(readers[2].search("amber", 99)) == 29
    readers[2].close()


def test_any_k_is_a_number_of_hits(make: Make, corpus) -> None:
    index = make()
    index.add(corpus)
    for mode in ("dense", "sparse", "hybrid"):
        for k in (2**31, 2**63, 10**19, 10**40):
            hits = index.search("river1", k, mode=mode, mmr=None)
            assert 10 <= len(hits) <= 30
            assert index.search("river1", k, mode=mode, fetch_k=k) == hits


# Copies


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_an_export_is_the_index_without_its_garbage(tmp_path: Path, mode: str) -> None:
    with make_tiny(tmp_path / "index") as index:
        index.add([Document(f"word{i} " * 30, id=f"more{i}") for i in range(50)])
        index.delete(ids=[f"more{i}" for i in range(50)])
    (tmp_path / "index" / "states" / "00").mkdir(exist_ok=True)
    (tmp_path / "index" / "states" / "00" / "stray").write_bytes(b"x")
    with Index.open(tmp_path / "index", model=None if mode == "r" else READER, mode=mode) as source:
        source.export(tmp_path / "copy")
        with pytest.raises(ValueError, match="already holds an index"):
            source.export(tmp_path / "copy")
        with pytest.raises(ValueError, match="lies in the index itself"):
            source.export(tmp_path / "index")
        with pytest.raises(ValueError, match="lies in the index itself"):
            source.export(tmp_path / "index" / "copy")
    size = {root: (tmp_path / root / "catalog.sqlite").stat().st_size for root in ("index", "copy")}
    assert size["copy"] < size["index"]
    with (
        Index.open(tmp_path / "copy", model=READER, mode="rw") as copy,
        Index.open(tmp_path / "index", model=READER, mode="rw") as source,
    ):
        assert answers(copy) == answers(source)
        assert copy.verify() == ([], [])
        assert len(source.verify().problems) == 1
        copy.add(["it can be written"])
        assert copy.get(["a"]) == DOCUMENTS[:1]


def test_an_export_leaves_out_what_is_damaged_and_reads_it_anew(tmp_path: Path) -> None:
    with make_tiny(tmp_path / "index") as index:
        first, second, _ = sorted(index.path.glob("states/*/*"))
        first.write_bytes(first.read_bytes()[:-1])
        second.unlink()
        index.export(tmp_path / "copy")
    with Index.open(tmp_path / "copy", model=READER, mode="rw") as copy:
        assert copy.verify() == ([], [])
        assert copy.load_states(copy.get(list(copy))).count(None) == 2


def test_an_export_beside_a_writer_is_of_one_commit(make: Make, reader: HashReader, corpus) -> None:
    index = make()
    index.add(corpus[:10])
    with Index.open(index.path, model=reader, mode="r") as source:
        index.add(corpus[10:])
        source.export(index.path.parent / "copy")
        index.delete(where={})
    with Index.open(index.path.parent / "copy", model=reader, mode="rw") as copy:
        assert copy.get(list(copy)) == corpus
        assert None not in copy.load_states(copy.get(list(copy)))


def test_a_file_by_file_copy_of_a_closed_index_is_an_index(tmp_path: Path) -> None:
    with make_tiny(tmp_path / "index") as index:
        expected = answers(index)
    moved = shutil.move(index.path, tmp_path / "elsewhere")
    with Index.open(moved, model=READER, mode="rw") as again:
        assert answers(again) == expected
    (tmp_path / "elsewhere" / "catalog.checksums").write_bytes(b"")
    with pytest.raises(DamagedIndex, match=r"catalog\.checksums"):
        Index.open(moved, model=READER, mode="rw")
