"""States on S3 (moto's server): what one machine stores another reads, and nothing that arrives damaged is used."""

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hash_reader import HashReader
from object_store import empty_bucket, object_server

from gritrag.index.index import Index
from gritrag.index.staging import Staging
from gritrag.index.storage import remote_states
from gritrag.index.storage.states import StateFileWarning
from gritrag.records import Document

Make = Callable[..., Index]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with object_server() as url:
        yield url


@pytest.fixture
def s3(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return empty_bucket(server, tmp_path / "cache", monkeypatch)


def another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("GRITRAG_STATE_CACHE", str(folder))


def objects(s3: Any) -> list[str]:
    s3.invalidate_cache()
    return sorted(s3.find("bucket"))


def test_another_machine_reads_what_one_has_stored(
    make: Make, reader: HashReader, corpus: list[Document], s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make(states_at="s3://bucket/notes", states="float32")
    index.add(corpus)
    assert len(objects(s3)) == 30
    assert not list((index.path / "states").iterdir())
    index.export(tmp_path / "copy")
    another_machine(monkeypatch, tmp_path / "cache2")
    with Index.open(tmp_path / "copy", model=reader) as copy:
        assert copy.stats()["states_at"] == "s3://bucket/notes"
        found = copy.load_states(corpus)
        for document, state in zip(corpus, found, strict=True):
            assert state is not None
            assert torch.equal(state.keys, reader.state(reader.document_token_ids(document)).keys)
        assert copy.verify() == ([], [])


def test_all_hits_are_fetched_at_once_and_only_once(
    make: Make, corpus: list[Document], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make(states_at="s3://bucket/notes")
    index.add(corpus)
    asked: list[str] = []
    remote = index._parts.files._remote
    whole = remote.cat_file

    def cat_file(path: str, **options: Any) -> bytes:
        asked.append(path)
        time.sleep(0.2)
        return bytes(whole(path, **options))

    monkeypatch.setattr(remote, "cat_file", cat_file)
    began = time.perf_counter()
    assert None not in index.load_states(corpus[:10])
    assert time.perf_counter() - began < 10 * 0.2
    assert len(asked) == len(set(asked)) == 10
    assert None not in index.load_states(corpus[:10])
    assert len(asked) == 10


def test_the_local_disk_keeps_what_was_used_last_within_bounds(
    make: Make, reader: HashReader, corpus: list[Document], s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(states_at="s3://bucket/notes") as written:
        written.add(corpus)
        most = written.stats()["bytes"]["states"] // 3
    monkeypatch.setenv("GRITRAG_STATE_CACHE_BYTES", f"{most} B")
    index = Index.open(written.path, model=reader)
    for document in corpus:
        assert index.load_states([document]) != [None]
        assert index.load_states([corpus[0]]) != [None]
        held = list((tmp_path / "cache").rglob("*.safetensors"))
        assert sum(path.stat().st_size for path in held) <= most
    assert any(index._parts.catalog.entry("d0").state_key in path.name for path in held)


def test_a_bound_that_is_no_size_is_told_by_the_name_of_its_variable(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRITRAG_STATE_CACHE_BYTES", "much")
    with pytest.raises(ValueError, match="GRITRAG_STATE_CACHE_BYTES: 'much' is no size: give bytes"):
        make(states_at=f"file://{tmp_path}/shared")


@pytest.mark.parametrize("where", ["remote", "cache"])
def test_damage_is_found_on_arrival(
    make: Make, corpus: list[Document], s3: Any, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_states, "FIRST_DELAY", 0.001)
    index = make(states_at="s3://bucket/notes")
    index.add(corpus[:1])
    (path,) = objects(s3)
    data = bytearray(s3.cat_file(path))
    data[-3] ^= 1
    if where == "remote":
        s3.pipe_file(path, bytes(data))
        with pytest.warns(StateFileWarning, match="another checksum"):
            assert index.load_states(corpus[:1]) == [None]
        assert len(index.verify().problems) == 1
    else:
        assert index.load_states(corpus[:1]) != [None]
        (held,) = (tmp_path / "cache").rglob("*.safetensors")
        held.write_bytes(data)
        assert index.load_states(corpus[:1]) != [None]
        assert held.read_bytes() != data


def test_a_failing_request_is_repeated(
    make: Make, corpus: list[Document], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_states, "FIRST_DELAY", 0.001)
    index = make(states_at="s3://bucket/notes")
    remote = index._parts.files._remote
    failures = {"cat_file": 2, "pipe_file": 2}

    def flaky(name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            failures[name] -= 1
            if failures[name] >= 0:
                raise OSError("slow down")
            return whole(*arguments)

        return ask

    for name in failures:
        monkeypatch.setattr(remote, name, flaky(name, getattr(remote, name)))
    index.add(corpus[:1])
    assert index.load_states(corpus[:1]) != [None]
    assert max(failures.values()) < 0


def test_a_server_that_is_away_costs_states_and_no_answer(
    make: Make, reader: HashReader, corpus: list[Document], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_states, "FIRST_DELAY", 0.001)
    index = make(states_at="s3://bucket/notes")
    index.add(corpus[:5])
    asked: list[str] = []

    def away(path: str, *data: bytes) -> None:
        asked.append(path)
        raise remote_states.BotoCoreError

    for name in ("cat_file", "pipe_file"):
        monkeypatch.setattr(index._parts.files._remote, name, away)
    with pytest.warns(StateFileWarning):
        assert index.load_states(corpus[:5]) == [None] * 5
    first = len(asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StateFileWarning)
        assert index.load_states(corpus[:5]) == [None] * 5
    assert len(asked) == first <= 5, "who is away is not asked for every state again"
    assert len(index.search("amber", 3)) == 3
    with pytest.raises(ConnectionError):
        index.add(corpus[5:8])
    assert len(index) == 5


def test_what_is_deleted_is_deleted_there_too(make: Make, corpus: list[Document], s3: Any, tmp_path: Path) -> None:
    index = make(states_at="s3://bucket/notes")
    index.add(corpus[:3])
    index.load_states(corpus[:3])
    index.delete(ids=["d1"])
    assert len(objects(s3)) == 2
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_a_listing_that_is_kept_hides_nothing_from_deletion(
    make: Make, corpus: list[Document], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As most file systems of fsspec keep it, while another process stages states."""
    monkeypatch.setitem(remote_states.OPTIONS["s3"], "use_listings_cache", True)
    index = make(states_at="s3://bucket/notes")
    index.add(corpus[:1])
    (path,) = objects(s3)
    folder, _, name = path.rpartition("/")
    data, neighbour = s3.cat_file(path), f"{folder}/{name.replace('.', '0.')}"
    s3.pipe_file(neighbour, data)
    s3.rm_file(path)
    keeping = index._parts.files._remote
    keeping.invalidate_cache()
    assert keeping.ls(folder) == [neighbour]
    s3.pipe_file(path, data)
    assert keeping.ls(folder) == [neighbour], "it is kept"
    index.delete(ids=["d0"])
    assert objects(s3) == [neighbour]


@pytest.mark.parametrize("remedy", ["open", "delete", "add", "compact"])
@pytest.mark.parametrize("fault", [OSError("slow down"), KeyboardInterrupt()])
def test_what_could_not_be_deleted_there_is_deleted_by_the_next_writer(
    make: Make, reader: HashReader, corpus: list[Document], s3: Any, remedy: str, fault: BaseException, tmp_path: Path
) -> None:
    """Where the server fails, or the writer dies between its commit and the end of the deletion."""
    index = make(states_at="s3://bucket/notes")
    index.add(corpus[:6])
    whole, failures = s3.rm_file, [None, fault, fault, fault, fault]

    def fails(path: str, **options: Any) -> None:
        if failures and (failure := failures.pop(0)) is not None:
            raise failure
        whole(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_states, "FIRST_DELAY", 0.001)
        patch.setattr(s3, "rm_file", fails)
        with pytest.raises(type(fault)):
            index.delete(ids=["d1", "d2", "d3"])
    assert len(index) == 3
    assert len(objects(s3)) == 5
    index.export(tmp_path / "copy")
    Index.open(tmp_path / "copy", model=reader, mode="rw").close()
    assert len(objects(s3)) == 5, "a copy has nothing to delete"
    if remedy == "open":
        index.close()
        Index.open(index.path, model=reader, mode="rw").close()
    elif remedy == "delete":
        index.add(corpus[6:7])
        index.delete(ids=["d6"])
    elif remedy == "add":
        index.add(corpus[3:4])  # wanted again before it was deleted
    else:
        index.compact()
    kept = [0, 3, 4, 5] if remedy == "add" else [0, 4, 5]
    assert len(objects(s3)) == len(kept)
    with Index.open(index.path, model=reader) as again:
        assert sorted(again) == [f"d{number}" for number in kept]
        assert None not in again.load_states([corpus[number] for number in kept])


def test_a_server_that_is_away_keeps_nobody_from_writing(
    make: Make, reader: HashReader, corpus: list[Document], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: Any, **options: Any) -> None:
        raise remote_states.BotoCoreError

    index = make(states_at="s3://bucket/notes")
    index.add(corpus[:3])
    with monkeypatch.context() as patch:
        patch.setattr(s3, "glob", away)
        with pytest.raises(ConnectionError):
            index.delete(ids=["d1"])
        index.close()
        with pytest.warns(UserWarning, match=r"are still at s3://bucket/notes.*whoever writes"):
            Index.open(index.path, model=reader, mode="rw").close()
    assert len(objects(s3)) == 3
    Index.open(index.path, model=reader, mode="rw").close()
    assert len(objects(s3)) == 2


def test_clearing_what_is_staged_takes_a_name_for_a_name(s3: Any, tmp_path: Path) -> None:
    """fsspec's `rm` takes `notes[12]` for a pattern: it would remove what is staged for notes1."""
    one, other = (Staging(tmp_path / name, f"s3://bucket/{name}", "float32") for name in ("notes[12]", "notes1"))
    for staging in (one, other):
        staging.write({"key": np.ones(4, np.float32)})
    s3.pipe_file("bucket/notes[12]/ab/state.safetensors", b"committed")
    one.clear()
    assert one.known() == {}
    assert list(other.known()) == ["key"]
    assert [path for path in objects(s3) if "[12]" in path] == ["bucket/notes[12]/ab/state.safetensors"]
    one.clear()  # once there is nothing, too


def test_any_file_system_of_fsspec_will_do(
    make: Make, corpus: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_machine(monkeypatch, tmp_path / "cache")
    index = make(states_at=f"file://{tmp_path}/shared [1]*")
    index.add(corpus)
    assert None not in index.load_states(corpus)
    shared = tmp_path / "shared [1]*"
    names = [path.name for path in shared.rglob("*") if path.is_file()]
    assert len(names) == 30
    assert not any(name.endswith(".tmp") for name in names)
    index.delete(ids=["d0"])
    assert len([path for path in shared.rglob("*") if path.is_file()]) == 29
    with pytest.raises(ValueError, match="cannot be reached"):
        make("other", states_at="nowhere://x")


def test_states_are_kept_in_the_cache_folder_unless_another_is_named(
    make: Make, reader: HashReader, corpus: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path / "everything"))
    monkeypatch.delenv("GRITRAG_STATE_CACHE", raising=False)
    index = make(states_at=f"file://{tmp_path}/shared", states="float32")
    index.add(corpus)
    places = {"": tmp_path / "everything" / "states", "~/own": tmp_path / "home" / "own"}
    for named, folder in places.items():
        monkeypatch.setenv("GRITRAG_STATE_CACHE", named)
        with Index.open(index.path, model=reader) as again:
            assert all(state is not None for state in again.load_states(corpus))
        assert list(folder.glob("*/states/*/*"))
    assert not (tmp_path / "home" / ".cache").exists()
    monkeypatch.setenv("GRITRAG_STATE_CACHE", "")
    monkeypatch.delenv("GRITRAG_CACHE")
    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(ValueError, match="no home folder; let GRITRAG_CACHE name one"):
        Index.open(index.path, model=reader)


def nobody(path: Path) -> Path:
    """The home folder of a user that the system does not know."""
    raise RuntimeError("Could not determine home directory.")
