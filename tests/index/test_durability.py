"""What is on disk survives its writer, and what has rotted on disk is never taken for an answer."""

import json
import os
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from hash_reader import HashReader

from gritrag.index import build
from gritrag.index.errors import DamagedIndex, ReplacedIndex
from gritrag.index.index import Index
from gritrag.index.storage.checksums import first_checksums
from gritrag.index.storage.manifest import Manifest
from gritrag.index.storage.states import StateFileWarning
from gritrag.records import Document, FingerprintMismatch

FORK = get_context("fork")  # a writer that is ready at once: importing torch anew takes seconds
Make = Callable[..., Index]


def documents(count: int) -> list[Document]:
    return [Document(f"stone{i} birch{i % 7} text", id=f"d{i}", metadata={"n": i}) for i in range(count)]


def write(path: Path, progress: Connection) -> None:
    """In a process of its own: add documents eight at a time, and tell after every commit how many there are."""
    commit = build._commit

    def commit_and_tell(*arguments: Any) -> None:
        commit(*arguments)
        progress.send(len(index))

    build.CHUNK_DOCUMENTS = 8
    build._commit = commit_and_tell
    with Index.open(path, model=HashReader(), mode="rw") as index:
        index.add(documents(4000))


@contextmanager
def doomed_writer(path: Path, commits: int) -> Iterator[tuple[int, int]]:
    """Process id of a writer that is busy writing, and how many documents it has acknowledged; killed at the end."""
    here, there = FORK.Pipe(duplex=False)
    writer = FORK.Process(target=write, args=(path, there))
    writer.start()
    there.close()
    acknowledged = [here.recv() for _ in range(commits)][-1]
    assert writer.pid is not None
    try:
        yield writer.pid, acknowledged
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()


def test_a_killed_writer_loses_nothing_that_it_acknowledged(make: Make, reader: HashReader) -> None:
    index = make()
    index.close()
    for commits in (1, 2, 3, 5):
        with doomed_writer(index.path, commits) as (_, acknowledged):
            pass
        with Index.open(index.path, model=reader, mode="rw") as index:
            stored = list(index)
            assert acknowledged <= len(stored) < 4000
            expected = documents(len(stored))
            assert index.get(stored) == expected, "a killed writer leaves a prefix of the documents"
            for document, state in zip(expected, index.load_states(index.get(stored)), strict=True):
                assert state is not None
                assert torch.equal(state.keys, reader.state(reader.document_token_ids(document)).keys.bfloat16())
                assert index.search(document.content, 1, where={"n": document.metadata["n"]})[0].document == document
            index.verify(repair=True)
            assert index.verify() == ([], [])


def flip(path: Path, position: int = -10) -> None:
    """Change one bit in place."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def state_files(index: Index) -> list[Path]:
    return sorted(index.path.glob("states/*/*"))


@pytest.mark.parametrize("opened_before", [True, False])
@pytest.mark.parametrize("damage", ["flipped", "flipped header", "truncated", "emptied", "deleted", "swapped"])
def test_a_damaged_state_is_missing_and_never_wrong(
    make: Make, reader, corpus, damage: str, opened_before: bool
) -> None:
    index = make()
    index.add(corpus[:6])
    good = [state.keys.clone() for state in index.load_states(index.get(list(index)))]
    if not opened_before:
        index.close()
        index = Index.open(index.path, model=reader, mode="rw")
    bad, other = state_files(index)[:2]
    if damage.startswith("flipped"):
        flip(bad, 20 if damage.endswith("header") else -10)
    elif damage == "truncated":
        bad.write_bytes(bad.read_bytes()[:-7])
    elif damage == "emptied":
        bad.write_bytes(b"")
    elif damage == "deleted":
        bad.unlink()
    else:
        shutil.copyfile(other, bad)
    with pytest.warns(StateFileWarning, match=bad.name):
        states = index.load_states(index.get(list(index)))
    (lost,) = [place for place, state in enumerate(states) if state is None]
    assert all(torch.equal(state.keys, keys) for state, keys in zip(states, good, strict=True) if state is not None)
    assert any(bad.name in problem for problem in index.verify().problems)
    document = corpus[lost]
    index.store_state(document, reader.state(reader.document_token_ids(document)))
    assert torch.equal(index.load_states(index.get([document.id]))[0].keys, good[lost])
    assert index.verify() == ([], [])
    index.close()


def tamper(index: Index, sql: str, *parameters: object) -> None:
    """Change the catalog behind everybody's back, and write its checksums as if that had been right."""
    database = sqlite3.connect(index.path / "catalog.sqlite")
    with database:
        database.execute(sql, parameters)
    database.close()
    first_checksums(index.path / "catalog.sqlite")


def test_a_state_of_other_tokens_is_not_trusted(make: Make, corpus) -> None:
    """Even a whole file under the right name, with its checksum in the catalog, must hold the document's tokens."""
    index = make()
    index.add(corpus[:2])
    index.close()
    key, other = (file.stem for file in state_files(index))
    tamper(
        index,
        "UPDATE states SET (bytes, xxh3) = (SELECT bytes, xxh3 FROM states WHERE key = ?) WHERE key = ?",
        other,
        key,
    )
    shutil.copyfile(*(file for file in reversed(state_files(index))))
    with Index.open(index.path, model=index.model, mode="rw") as again:
        with pytest.warns(StateFileWarning, match=f"{key}.*token ids"):
            states = again.load_states(again.get(["d0", "d1"]))
        assert sorted(state is None for state in states) == [False, True]


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "deleted", "stale"])
def test_a_damaged_vectors_file_changes_no_answer(make: Make, reader, corpus, damage: str, mode: str) -> None:
    with make() as index:
        index.add(corpus)
        expected = index.search("amber river1", 30)
    (file,) = (index.path / "vectors").iterdir()
    older = file.read_bytes()
    if damage == "flipped":
        flip(file)
    elif damage == "truncated":
        file.write_bytes(older[:-100])
    elif damage == "deleted":
        file.unlink()
    else:
        with Index.open(index.path, model=reader, mode="rw") as again:
            again.delete(ids=["d0"])
            again.add([corpus[0]])
            expected = again.search("amber river1", 30)
        (newer,) = (index.path / "vectors").iterdir()
        newer.write_bytes(older)
    with Index.open(index.path, model=reader, mode=mode) as again:
        assert len(again.verify().problems) == 1
        assert again.search("amber river1", 30) == expected
        if mode == "r":
            return
    with Index.open(index.path, model=reader, mode="rw") as again:
        assert again.verify() == ([], [])
        assert again.search("amber river1", 30) == expected


@pytest.mark.parametrize("column", ["title", "text", "token_ids", "vector"])
def test_a_row_that_is_not_as_written_is_never_an_answer(make: Make, reader, corpus, column: str) -> None:
    """As when a bit flips after the catalog was opened: pages are not compared again, every row that is read is."""
    with make() as index:
        index.add(corpus)
    kind = "BLOB" if column in ("token_ids", "vector") else "TEXT"
    tamper(index, f"UPDATE contents SET {column} = CAST(x'7b' || substr({column}, 2) AS {kind}) WHERE row = 5")
    with Index.open(index.path, model=reader, mode="rw") as again:
        (problem, *_) = again.verify().problems
        assert "'d4'" in problem
        for call in (lambda: again.get(["d4"]), lambda: again["d4"], lambda: again.load_states([corpus[4]])):
            with pytest.raises(DamagedIndex, match=r"'d4'.*delete it and add it again"):
                call()
        with pytest.raises(DamagedIndex, match="'d4'"):
            again.search("amber", 30)
        again.delete(ids=["d4"])
        again.add([corpus[4]])
        again.verify(repair=True)  # the words of a text that was damaged are not found to be taken away
        assert again.verify() == ([], [])
        assert again.get(["d4"]) == [corpus[4]]


def test_verify_repairs_states_orphans_and_vectors(make: Make, reader, corpus) -> None:
    with make() as index:
        index.add(corpus)
    first, second = state_files(index)[:2]
    flip(first)
    second.unlink()
    for name in ("0" * 32 + ".safetensors", ".half-written.77.tmp"):
        (index.path / "states" / "00").mkdir(exist_ok=True)
        (index.path / "states" / "00" / name).write_bytes(b"orphan")
    flip(next((index.path / "vectors").iterdir()))
    with Index.open(index.path, model=reader, mode="rw") as again:
        report = again.verify()
        assert len(report.problems) == 5
        assert report.repaired == []
        assert again.verify(repair=True) == (report.problems, report.problems)
        assert again.verify() == ([], [])
        assert sum(state is None for state in again.load_states(again.get(list(again)))) == 2


def test_a_second_writer_is_told_who_is_writing(make: Make, reader) -> None:
    index = make()
    with pytest.raises(ValueError, match=f"process {os.getpid()}.*mode='r'"):
        Index.open(index.path, model=reader, mode="rw")
    with pytest.raises(ValueError, match=f"process {os.getpid()}"):
        Index.create(index.path, model=reader, overwrite=True)
    with Index.open(index.path, model=reader, mode="r") as reading:
        assert len(reading) == 0
    index.close()
    index.close()
    Index.open(index.path, model=reader, mode="rw").close()


def test_a_second_process_is_told_who_is_writing(make: Make, reader) -> None:
    index = make()
    index.close()
    with doomed_writer(index.path, 1) as (pid, _), pytest.raises(ValueError, match=f"process {pid}"):
        Index.open(index.path, model=reader, mode="rw")
    Index.open(index.path, model=reader, mode="rw").close()


@pytest.mark.parametrize("field", ["weights", "adapter", "tokenizer", "template", "pooling", "reading"])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_another_reader_is_refused_by_the_name_of_what_differs(make: Make, field: str, mode: str) -> None:
    with make() as index:
        index.add(["text"])
    with pytest.raises(FingerprintMismatch, match=field) as caught:
        Index.open(index.path, model=HashReader(**{field: "other"}), mode=mode)
    assert caught.value.fields == (field,)
    Index.open(index.path, model=HashReader(), mode="rw").close()


def test_a_read_only_index_can_be_looked_at_without_a_model(make: Make, corpus) -> None:
    with make() as index:
        index.add(corpus)
    with Index.open(index.path, model=None, mode="r") as look:
        assert look.get(["d2"]) == [corpus[2]]
        assert look.stats()["documents"] == 30
        assert look.verify() == ([], [])
        assert look.search("stone2", mode="sparse")[0].document == corpus[2]
        with pytest.raises(ValueError, match="does not know the name of its model"):
            look.search("stone2")


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere, so permissions are tested as another user: in-process, by the effective user id."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that another user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def lock_down(root: Path) -> None:
    for path in root.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root.chmod(0o555)


def test_a_read_only_directory_can_be_read_and_says_so_to_writers(public_path: Path, reader, corpus) -> None:
    path = public_path / "index"
    with Index.create(path, model=reader) as index:
        index.add(corpus)
    lock_down(path)
    public_path.chmod(0o555)
    with unprivileged():
        for _ in range(2):
            with Index.open(path, model=reader, mode="r") as index:
                assert index.search("stone3", 1, mode="hybrid")[0].document == corpus[3]
                assert None not in index.load_states(index.get(list(index)))
                assert index.verify() == ([], [])
        with pytest.raises(ValueError, match=r"cannot be written.*mode='r'"):
            Index.open(path, model=reader, mode="rw")
        with pytest.raises(ValueError, match="cannot make the directory"):
            Index.create(public_path / "new", model=reader)
        with pytest.raises(ValueError, match="cannot be written"):
            Index.create(path, model=reader, overwrite=True)
    path.chmod(0o755)
    public_path.chmod(0o755)
    for folder in (path / "states", path / "vectors", *(path / "states").iterdir()):
        folder.chmod(0o755)


def test_commits_in_the_log_of_a_dead_writer_are_never_overlooked(public_path: Path, reader) -> None:
    """Where SQLite cannot use the log, the reader must refuse: the catalog alone lacks acknowledged documents."""
    path = public_path / "index"
    Index.create(path, model=reader).close()
    with doomed_writer(path, 1) as (_, acknowledged):
        pass
    (path / "catalog.sqlite-shm").unlink()
    lock_down(path)
    with unprivileged(), pytest.raises(ValueError, match="open the index once with mode='rw'"):
        Index.open(path, model=reader, mode="r")
    for entry in (path, *path.rglob("*")):
        entry.chmod(0o755)
    with Index.open(path, model=reader, mode="rw") as index:
        assert len(index) >= acknowledged


@pytest.mark.parametrize("is_made_anew", [True, False])
def test_an_index_that_is_deleted_while_it_is_open_says_so(
    make: Make, reader: HashReader, tmp_path: Path, is_made_anew: bool
) -> None:
    """Readers would find what is gone for ever, and what a writer acknowledges would be lost."""
    with make(states="none") as index:
        index.add(["old"])
    opened = Index.open(index.path, model=reader)
    held = opened.search("old", 1)
    writer = Index.open(index.path, model=reader, mode="rw")
    shutil.rmtree(index.path)
    if is_made_anew:
        with Index.create(index.path, model=reader) as new:
            new.add(["new"])
    calls: list[Callable[[], object]] = [
        lambda: opened.search("old"),
        lambda: opened.get([held[0].document.id]),
        lambda: len(opened),
        lambda: opened.load_states([held[0].document]),
        lambda: writer.add(["lost"]),
        lambda: writer.delete(where={}),
    ]
    for call in calls:
        with pytest.raises(
            ReplacedIndex, match=r"has been deleted, moved or made anew since it was opened.*: open it again"
        ):
            call()
    writer.close()
    opened.close()
    assert index.path.exists() == is_made_anew, "what is closed writes nothing into what has taken its place"
    if is_made_anew:
        with Index.open(index.path, model=reader) as now:
            assert [hit.document.text for hit in now.search("old")] == ["new"]
            assert now.verify() == ([], [])


def test_create_replaces_an_index_only_when_told_and_nothing_else_ever(tmp_path: Path, make: Make, reader) -> None:
    with make() as index:
        index.add(["old"])
    with pytest.raises(ValueError, match="overwrite=True"):
        Index.create(index.path, model=reader)
    with Index.create(index.path, model=reader, overwrite=True) as new:
        assert len(new) == 0
        assert new.search("old") == []
        new.add(["new"])
        assert new.search("old", 1)[0].document.text == "new"
    for name in ("notes.txt", "manifest.json", "states"):
        other = tmp_path / f"other-{name}"
        other.mkdir()
        (other / name).write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=name):
                Index.create(other, model=reader, overwrite=overwrite)
        assert (other / name).read_text() == "mine"
    (index.path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        Index.create(index.path, model=reader, overwrite=True)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        Index.create(file, model=reader)
    with pytest.raises(ValueError, match="cannot make the directory"):
        Index.create(file / "below", model=reader)
    (tmp_path / "empty").mkdir()
    Index.create(tmp_path / "empty", model=reader).close()


def of_version(manifest: str, version: int) -> str:
    """The same, whole, as another version would have written it."""
    content = {name: value for name, value in json.loads(manifest).items() if name != "xxh3"}
    plain = json.dumps(content | {"version": version}, indent=2, sort_keys=True)
    xxh3 = xxhash.xxh3_128_hexdigest(plain.encode())
    return json.dumps(json.loads(plain) | {"xxh3": xxh3}, indent=2, sort_keys=True) + "\n"


def test_an_index_that_could_not_be_made_is_not_in_the_way_of_the_next(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", fail)
        with pytest.raises(OSError, match="No space left"):
            make()
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["lock"]
    with pytest.raises(ValueError, match="states at nowhere://x cannot be reached"):
        make(states_at="nowhere://x")
    index = make()
    index.add([Document("text")])
    index.close()
    (index.path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"without its manifest\.json.*delete the folder"):
        make()


def test_a_directory_that_is_no_finished_index_says_what_to_do(tmp_path: Path, make: Make, reader) -> None:
    with pytest.raises(ValueError, match=r"no index at .*Index\.create"):
        Index.open(tmp_path / "nothing", model=reader, mode="rw")
    index = make()
    index.close()
    manifest = index.path / "manifest.json"
    text = manifest.read_text()
    for content, message in (
        (of_version(text, 2), r"format 2.*formats 3 and 4"),
        (text.replace('"version": 4', '"version": 2'), "damaged"),
        (text.replace("w0", "w1"), "damaged"),
        (text[:40], "damaged"),
        (text.replace("dim", "mid"), "damaged"),
        ("{}", "not the manifest"),
        ("[]", "not the manifest"),
    ):
        manifest.write_text(content)
        with pytest.raises(ValueError, match=message):
            Index.open(index.path, model=reader, mode="rw")
    manifest.unlink()
    for mode in ("r", "rw"):
        with pytest.raises(ValueError, match=r"manifest\.json.*overwrite=True"):
            Index.open(index.path, model=reader, mode=mode)
    with Index.create(index.path, model=reader, overwrite=True) as again:
        again.add([Document("text")])
    (index.path / "catalog.sqlite").unlink()
    for mode in ("r", "rw"):
        with pytest.raises(ValueError, match=r"catalog\.sqlite"):
            Index.open(index.path, model=reader, mode=mode)
    with pytest.raises(ValueError, match="mode must be"):
        Index.open(index.path, model=reader, mode="w")
