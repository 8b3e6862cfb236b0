"""A large catalog is compared with its checksums in the background, and what does not fit ends all reading."""

import shutil
from pathlib import Path

import pytest
from tiny import READER, answers, make_tiny

from gritrag.index.errors import DamagedIndex
from gritrag.index.index import Index
from gritrag.index.storage import checksums


@pytest.fixture(autouse=True)
def _every_catalog_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gritrag.index.storage.connection.AT_ONCE_BYTES", 0)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    with make_tiny(tmp_path / "tiny") as index:
        pass
    return index.path


def open_and_wait(root: Path) -> None:
    with Index.open(root, model=READER) as index:
        audit = index._parts.catalog._audit
        assert audit is not None
        audit.wait()
        len(index)


def test_a_whole_catalog_is_read_at_once_and_stays_whole(tiny: Path) -> None:
    with Index.open(tiny, model=READER) as index:
        before = answers(index)
        audit = index._parts.catalog._audit
        assert audit is not None
        audit.wait()
        assert answers(index) == before
        assert index.verify() == ([], [])


def test_damage_anywhere_ends_all_reading(tiny: Path) -> None:
    """One byte of each page in turn."""
    file = tiny / "catalog.sqlite"
    whole = file.read_bytes()
    for place in range(300, len(whole), 512):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedIndex, match=r"pages are not what was written|another first page"):
            open_and_wait(tiny)
        for options in ({"checks": "always"}, {"mode": "rw"}):
            with pytest.raises(DamagedIndex):
                Index.open(tiny, model=READER, **options)
    file.write_bytes(whole)


def test_what_is_cheap_to_see_is_seen_at_once(tiny: Path) -> None:
    file = tiny / "catalog.sqlite"
    whole = file.read_bytes()
    for damaged in (whole[:-512], whole + bytes(512), b"x" + whole[1:]):
        file.write_bytes(damaged)
        with pytest.raises(DamagedIndex):
            Index.open(tiny, model=READER)
    file.write_bytes(whole)
    with Index.open(tiny, model=READER, mode="rw") as writer:
        writer.add(["new words"])
        dead = shutil.copytree(tiny, tiny.with_name("dead"))
    log = dead / "catalog.sqlite-wal"
    log.write_bytes(log.read_bytes()[:-1])
    with pytest.raises(DamagedIndex, match="ends before the last acknowledged commit"):
        Index.open(dead, model=READER)


def test_a_writer_at_work_is_not_taken_for_damage(tiny: Path) -> None:
    with Index.open(tiny, model=READER, mode="rw") as writer:
        for number in range(30):
            with Index.open(tiny, model=READER) as index:
                writer.add([f"word{number}"])
                writer.delete(where={} if number % 7 == 0 else {"year": 1990})
                audit = index._parts.catalog._audit
                assert audit is not None
                audit.wait()
                assert len(index) == len(writer)


def test_closing_does_not_wait_for_the_end(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "BATCH_BYTES", 512)
    monkeypatch.setattr(checksums, "PAUSE_SECONDS", 60.0)
    Index.open(tiny, model=READER).close()
