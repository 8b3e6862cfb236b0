"""What the tests of an index share: a reader of random arrays, a filled index, and a corpus."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from hash_reader import HashReader

from gritrag.index.index import Index
from gritrag.records import Document

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll", "larch"]


@pytest.fixture(scope="session")
def in_memory() -> Iterator[Path]:
    """A folder where fsync costs nothing, if there is one, for tests that write thousands of times: no power fails."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def reader() -> HashReader:
    return HashReader()


@pytest.fixture
def corpus() -> list[Document]:
    """30 documents of four words, every one different, with a year and a colour."""
    return [
        Document(
            f"{WORDS[i % 12]} {WORDS[(i * 5 + 1) % 12]} stone{i} river{i % 3}",
            id=f"d{i}",
            title=f"Note {i}",
            metadata={"year": 1990 + i, "colour": "red" if i % 2 else "blue"},
        )
        for i in range(30)
    ]


@pytest.fixture
def make(tmp_path: Path, reader: HashReader) -> Iterator[Callable[..., Index]]:
    """Create indexes in this test's directory; whatever is still open is closed afterwards."""
    opened: list[Index] = []

    def create(name: str = "index", **options: object) -> Index:
        opened.append(Index.create(tmp_path / name, model=options.pop("model", reader), **options))
        return opened[-1]

    yield create
    for index in opened:
        index.close()
