"""Whatever byte of an index rots, wherever a file ends too early, whatever else lies there: no answer is ever wrong."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import DOCUMENTS, READER, agree, answers, make_tiny, small_pages

from gritrag.index.errors import DamagedIndex
from gritrag.index.index import Index
from gritrag.index.storage.checksums import Checksums, first_checksums
from gritrag.index.storage.states import StateFileWarning, relative_path, state_key
from gritrag.records import Document

FILES = ["manifest.json", "catalog.checksums", "catalog.sqlite", "vectors", "states"]


@pytest.fixture(scope="module")
def tiny(in_memory: Path) -> Path:
    """An index that was closed."""
    with make_tiny(in_memory / "tiny") as index:
        pass
    return index.path


@pytest.fixture(scope="module")
def crashed(in_memory: Path) -> Path:
    """An index as a writer leaves it that dies: the catalog has nothing of it yet, the log has all."""
    with make_tiny(in_memory / "living") as living:
        return shutil.copytree(living.path, in_memory / "dead")


def files_of(root: Path, name: str) -> list[Path]:
    path = root / name
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def outcome(root: Path, expected: list[Any]) -> str:
    """Opens and asks: ``"refused"`` by name, ``"equal"``, or ``"wrong"``. Anything else that is raised is an error."""
    try:
        with Index.open(root, model=READER, mode="r") as index:
            return "equal" if agree(answers(index), expected) else "wrong"
    except DamagedIndex:
        return "refused"


def flips(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        yield data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]


def truncations(data: bytes) -> Iterator[bytes]:
    for length in range(len(data)):
        yield data[:length]


def damage_everywhere(root: Path, name: str, damages: Any) -> dict[str, int]:
    """How often each outcome was met over every damage to every file of that name; the files are whole again after."""
    with Index.open(root, model=READER, mode="r") as index:
        expected = answers(index)
    assert None not in expected[-1]
    seen: dict[str, int] = {}
    for file in files_of(root, name):
        whole = file.read_bytes()
        for damaged in damages(whole):
            file.write_bytes(damaged)
            try:
                found = outcome(root, expected)
            finally:
                file.write_bytes(whole)
            seen[found] = seen.get(found, 0) + 1
            assert found != "wrong", f"{file.name}, {len(damaged)} bytes: {damaged!r}"
    return seen


@pytest.mark.parametrize("damages", [flips, truncations])
@pytest.mark.parametrize("name", FILES)
def test_no_byte_and_no_length_of_any_file_gives_a_wrong_answer(tiny: Path, name: str, damages: Any) -> None:
    seen = damage_everywhere(tiny, name, damages)
    cases = sum(file.stat().st_size for file in files_of(tiny, name))
    # what is derived or can be read anew is; everything else is the truth, and refused when it is not
    assert seen == {"equal" if name in ("vectors", "states") else "refused": cases}


@pytest.mark.parametrize("damages", [flips, truncations])
def test_no_acknowledged_commit_in_a_log_is_lost_in_silence(crashed: Path, damages: Any) -> None:
    """SQLite by itself drops every commit from the first damaged frame on, and says nothing."""
    seen = damage_everywhere(crashed, "catalog.sqlite-wal", damages)
    assert seen == {"refused": (crashed / "catalog.sqlite-wal").stat().st_size}


def test_shared_memory_of_a_dead_writer_is_not_believed(crashed: Path) -> None:
    with Index.open(crashed, model=READER, mode="r") as index:
        expected = answers(index)
    for byte in (0x00, 0x01, 0xFF):
        (crashed / "catalog.sqlite-shm").write_bytes(bytes([byte]) * 32768)
        assert outcome(crashed, expected) == "equal"


def test_a_writer_brings_home_the_log_of_a_dead_one(crashed: Path, tmp_path: Path) -> None:
    root = shutil.copytree(crashed, tmp_path / "index")
    with Index.open(root, model=READER, mode="rw") as index:
        assert index.get(list(index)) == DOCUMENTS
        assert (root / "catalog.sqlite-wal").stat().st_size == 0
        assert index.verify() == ([], [])
    assert not (root / "catalog.sqlite-wal").exists()


@pytest.mark.parametrize("missing", ["catalog.checksums", "catalog.sqlite", "manifest.json"])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_file_that_is_gone_is_named(tiny: Path, tmp_path: Path, missing: str, mode: str) -> None:
    root = shutil.copytree(tiny, tmp_path / "index")
    (root / missing).unlink()
    with pytest.raises(ValueError, match=missing.replace(".", r"\.")):
        Index.open(root, model=READER, mode=mode)


def test_files_of_two_moments_are_no_index(tmp_path: Path) -> None:
    """Each file whole, but a copy that was made while a writer was at work, file after file."""
    with make_tiny(tmp_path / "index") as index:
        pass
    older = shutil.copytree(index.path, tmp_path / "older")
    with Index.open(index.path, model=READER, mode="rw") as index:
        index.delete(ids=["a"])
    for name in ("catalog.sqlite", "catalog.checksums"):
        mixed = shutil.copytree(index.path, tmp_path / f"mixed-{name}")
        shutil.copyfile(older / name, mixed / name)
        with pytest.raises(DamagedIndex, match="pages are not what was written"):
            Index.open(mixed, model=READER, mode="r")


def test_a_large_catalog_is_checked_like_a_small_one(tmp_path: Path) -> None:
    """More pages than fit one batch of the hashing, and a log of more than one batch of frames."""
    with pytest.MonkeyPatch.context() as patch, small_pages():
        for module in ("checksums", "log"):
            patch.setattr(f"gritrag.index.storage.{module}.BATCH_BYTES", 4096)
        with make_tiny(tmp_path / "index") as index:
            index.add([f"word{i} more{i}" for i in range(200)])
            living = shutil.copytree(index.path, tmp_path / "living")
            expected = answers(index)
        assert outcome(index.path, expected) == outcome(living, expected) == "equal"
        for root, name in ((index.path, "catalog.sqlite"), (living, "catalog.sqlite-wal")):
            data = bytearray((root / name).read_bytes())
            data[-100] ^= 4
            (root / name).write_bytes(data)
            assert outcome(root, expected) == "refused"


def test_a_catalog_of_more_than_a_gigabyte_is_whole(tmp_path: Path) -> None:
    """SQLite leaves out the page that holds the byte at 1 GiB: it is in no log, and nobody knows what it holds."""
    padding = 270 << 20
    with make_tiny(tmp_path / "index") as index:
        catalog = index._parts.catalog
        catalog.execute("CREATE TABLE padding (bytes)")
        for _ in range(4):
            with catalog.transaction():
                catalog.execute("INSERT INTO padding VALUES (zeroblob(?))", (padding,))
        expected = answers(index)
    file = index.path / "catalog.sqlite"
    assert file.stat().st_size > 4 * padding > 1 << 30
    with Index.open(index.path, model=READER, mode="rw") as again:  # which compares all pages first
        assert agree(answers(again), expected)
    with file.open("r+b") as bytes_:
        bytes_.seek(2 * padding)
        bytes_.write(b"\1")
    with pytest.raises(DamagedIndex, match="pages are not what was written"):
        Index.open(index.path, model=READER, mode="rw")


# What others may have put there


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's folder with somebody's file."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    return folder


def test_links_and_strange_names_lead_nowhere(tiny: Path, tmp_path: Path, outside: Path) -> None:
    root = shutil.copytree(tiny, tmp_path / "index")
    with Index.open(root, model=READER, mode="r") as index:
        expected = answers(index)
    (root / "states" / "zz").symlink_to(outside)
    (root / "states" / "link").symlink_to(outside / "precious")
    (root / "states" / "ab").mkdir(exist_ok=True)
    (root / "states" / "ab" / "folder").mkdir()
    (root / "states" / "ab" / "folder" / "precious").write_text("mine")
    (root / "states" / "ab" / "..safetensors").write_text("x")
    (root / "states" / "ab" / "new\nline").symlink_to("/")
    os.mkfifo(root / "states" / "ab" / "pipe")
    (root / "vectors" / "link").symlink_to(outside / "precious")
    assert outcome(root, expected) == "equal"
    with Index.open(root, model=READER, mode="rw") as index:
        report = index.verify()
        assert len(report.problems) == 7
        assert index.verify(repair=True).problems == report.problems
        (left,) = index.verify().problems
        assert "states/ab/folder" in left
        index.compact()
    assert (root / "states" / "ab" / "folder" / "precious").read_text() == "mine"
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "mine"
    assert outcome(root, expected) == "equal"


def test_a_state_file_that_is_a_link_or_a_pipe_is_read_anew(tiny: Path, tmp_path: Path, outside: Path) -> None:
    root = shutil.copytree(tiny, tmp_path / "index")
    with Index.open(root, model=READER, mode="r") as index:
        expected = answers(index)
    first, second, _ = files_of(root, "states")
    moved = shutil.move(first, outside / "state")
    first.symlink_to(moved)
    second.unlink()
    os.mkfifo(second)
    whole = Path(moved).read_bytes()
    with Index.open(root, model=READER, mode="rw") as index:
        found = answers(index)
        assert agree(found, expected)
        assert found[-1].count(None) == 2
        for document in DOCUMENTS:
            index.store_state(document, READER.state(READER.document_token_ids(document)))
        assert answers(index) == expected
    assert not first.is_symlink()
    assert Path(moved).read_bytes() == whole, "what a link points at is not written to"


def test_a_folder_of_states_that_is_a_link_is_not_written_through(tmp_path: Path, outside: Path) -> None:
    with make_tiny(tmp_path / "index") as index:
        key = files_of(index.path, "states")[0].parent
        shutil.rmtree(key)
        key.symlink_to(outside)
        for document in DOCUMENTS:
            index.store_state(document, READER.state(READER.document_token_ids(document)))
        assert None not in answers(index)[-1]
    assert [path.name for path in outside.iterdir()] == ["precious"]


@pytest.mark.parametrize("name", ["manifest.json", "catalog.checksums", "catalog.sqlite", "vectors", "states", "lock"])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_part_that_is_a_link_is_refused(tiny: Path, tmp_path: Path, name: str, mode: str) -> None:
    root = shutil.copytree(tiny, tmp_path / "index")
    shutil.move(root / name, tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedIndex, match=f"{name} is a symbolic link"):
        Index.open(root, model=READER, mode=mode)


def test_a_journal_for_sqlite_to_play_is_refused(tiny: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny, tmp_path / "index")
    (root / "catalog.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    for mode in ("r", "rw"):
        with pytest.raises(DamagedIndex, match=r"catalog\.sqlite-journal is no part of an index"):
            Index.open(root, model=READER, mode=mode)


def test_no_file_is_read_beyond_what_it_can_be(tiny: Path, tmp_path: Path) -> None:
    """A sparse terabyte costs nothing to make, and must cost nothing to refuse."""
    with Index.open(tiny, model=READER, mode="r") as index:
        expected = answers(index)
    derived = {"vectors", "states"}
    for name in ("manifest.json", "catalog.checksums", *derived):
        root = shutil.copytree(tiny, tmp_path / name)
        for file in files_of(root, name):
            os.truncate(file, 2**40)
        assert outcome(root, expected) == ("equal" if name in derived else "refused")


def test_checks_always_means_at_every_load(tiny: Path, tmp_path: Path) -> None:
    """A bit that flips beneath the file system changes neither size nor time of a file: only another look finds it."""
    root = shutil.copytree(tiny, tmp_path / "index")
    file = files_of(root, "states")[0]
    for checks, trusted in (("once", True), ("always", False)):
        with Index.open(root, model=READER, mode="r", checks=checks) as index:
            assert None not in answers(index)[-1]
            status = file.stat()
            whole = file.read_bytes()
            with open(file, "r+b") as opened:
                opened.seek(-3, os.SEEK_END)
                opened.write(bytes([whole[-3] ^ 1]))
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert (None not in answers(index)[-1]) == trusted
            file.write_bytes(whole)
    with pytest.raises(ValueError, match="checks must be 'once' or 'always'"):
        Index.open(root, model=READER, checks="never", mode="rw")


def test_checksums_are_of_every_page(tiny: Path) -> None:
    size = (tiny / "catalog.sqlite").stat().st_size
    checksums = Checksums.load(tiny, size)
    assert len(checksums.pages) * checksums.page_size == size
    before = (tiny / "catalog.checksums").read_bytes()
    first_checksums(tiny / "catalog.sqlite")
    assert (tiny / "catalog.checksums").read_bytes() == before


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_folder_of_states_that_somebody_removed_is_made_again(make, reader, corpus, mode: str) -> None:
    index = make()
    index.add(corpus)
    index.close()
    shutil.rmtree(index.path / "states")
    with Index.open(index.path, model=reader, mode=mode) as opened:
        with pytest.warns(StateFileWarning):
            assert opened.load_states(opened.get(["d0", "d1"])) == [None, None]
        assert len(opened.verify().problems) == len(corpus)
    with Index.open(index.path, model=reader, mode="rw") as opened:
        opened.verify(repair=True)
        opened.add([Document("quite new", id="new")])
        assert opened.load_states(opened.get(["new"])) != [None]
        assert opened.verify() == ([], [])


def test_a_folder_in_the_place_of_a_state_does_no_harm(make, reader, corpus) -> None:
    index = make()
    index.add(corpus)
    path = index.path / relative_path(state_key(reader.fingerprint, reader.document_token_ids(corpus[0])))
    path.unlink()
    path.mkdir()
    with pytest.warns(StateFileWarning):
        assert index.load_states(index.get(["d0"])) == [None]
    index.store_state(index["d0"], reader.state(reader.document_token_ids(corpus[0])))
    index.verify(repair=True)
    assert len(index.verify().problems) == 1
    assert index.delete(ids=["d0"]) == 1
    assert path.is_dir()
