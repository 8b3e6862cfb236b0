"""A disk that is full or fails at any one write leaves the index as it was before the call, or as it is after it."""

import errno
import itertools
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_layer import Disk, installed
from tiny import DOCUMENTS, READER, agree, answers, make_tiny

from gritrag.index.index import Index
from gritrag.records import Document

NEW = [Document("delta ember", id="d"), Document("fjord", id="a", metadata={"year": 7}), Document("cedar", id="e")]


def add(index: Index) -> None:
    index.add(NEW)


def delete(index: Index) -> None:
    index.delete(ids=["a", "c"])


def store(index: Index) -> None:
    for document in DOCUMENTS:
        index.store_state(document, READER.state(READER.document_token_ids(document)))


def compact(index: Index) -> None:
    index.compact()


def repair(index: Index) -> None:
    index.verify(repair=True)


CALLS: list[Callable[[Index], None]] = [add, delete, store, compact, repair]
FAILURES = [(errno.ENOSPC, True), (errno.EIO, False)]


@pytest.fixture(scope="module")
def base(in_memory: Path) -> Path:
    with make_tiny(in_memory / "base") as index:
        pass
    return index.path


@pytest.fixture
def tmp_path(in_memory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=in_memory) as name:
        yield Path(name)


def ask(root: Path, mode: Any) -> list[Any]:
    with Index.open(root, model=READER, mode=mode) as index:
        return answers(index)


def run(root: Path, call: Callable[[Index], None], disk: Disk) -> bool:
    """Open, call and close on a disk that may fail; whether all went well."""
    with installed(disk):
        try:
            with Index.open(root, model=READER, mode="rw") as index:
                call(index)
        except OSError as error:
            return error.errno not in (errno.ENOSPC, errno.EIO)
        except ValueError as error:  # it cannot even be opened for writing
            return re.search("cannot be written|cannot open", str(error)) is None
    return True


@pytest.mark.parametrize(("error", "stays"), FAILURES)
@pytest.mark.parametrize("call", CALLS)
def test_whichever_write_fails_the_index_is_as_before_or_as_after(
    base: Path, tmp_path: Path, call: Callable[[Index], None], error: int, stays: bool
) -> None:
    before = ask(base, "r")
    root = shutil.copytree(base, tmp_path / "index")
    assert run(root, call, Disk())
    after = ask(root, "r")
    for number in itertools.count(1):
        shutil.rmtree(root)
        shutil.copytree(base, root)
        disk = Disk(number, error, stays)
        went_well = run(root, call, disk)
        if disk.calls < number:
            assert went_well
            break
        for mode in ("r", "rw"):
            found = ask(root, mode)
            assert agree(found, after) or (not went_well and agree(found, before)), f"write {number}, read as {mode}"
        with Index.open(root, model=READER, mode="rw") as index:
            index.verify(repair=True)
            assert index.verify() == ([], []), f"write {number}"
            call(index)
            assert agree(answers(index), after), f"write {number}: the same call on a disk that is well again"
    assert number > 10, "nothing was written"


def test_an_index_goes_on_when_its_disk_is_well_again(base: Path, tmp_path: Path) -> None:
    """The same object, after a call that failed in the middle."""
    root = shutil.copytree(base, tmp_path / "index")
    for number in itertools.count(1):
        disk = Disk()
        with installed(disk), Index.open(root, model=READER, mode="rw") as index:
            disk._fail_at = disk.calls + number
            failed = 0
            for call in (add, delete):
                try:
                    call(index)
                except OSError:
                    failed += 1
                    call(index)
            last = disk.calls < disk._fail_at
            disk._fail_at = 0
            assert failed <= 1
            expected = answers(index)
        assert {document.id: document for document in expected[0]} == {
            document.id: document for document in [DOCUMENTS[1], NEW[0], NEW[2]]
        }
        assert agree(ask(root, "r"), expected)
        if last:
            break
        shutil.rmtree(root)
        shutil.copytree(base, root)


@pytest.mark.parametrize("make", ["create", "export"])
def test_an_index_that_could_not_be_made_is_none(base: Path, tmp_path: Path, make: str) -> None:
    before = ask(base, "r")
    for number in itertools.count(1):
        target = tmp_path / f"{make}{number}"
        disk = Disk(number, errno.ENOSPC, stays=False)
        with Index.open(base, model=READER, mode="r") as source:
            try:
                with installed(disk):
                    if make == "export":
                        source.export(target)
                    else:
                        Index.create(target, model=READER).close()
            except (OSError, ValueError):
                assert disk.calls >= number
        if (target / "manifest.json").exists():
            assert ask(target, "r") == before if make == "export" else len(ask(target, "r")[0]) == 0
        elif target.exists():
            with pytest.raises(ValueError, match="no finished index"):
                Index.open(target, model=READER, mode="rw")
            Index.create(target, model=READER, overwrite=True).close()
        if disk.calls < number:
            break
    assert ask(base, "r") == before
