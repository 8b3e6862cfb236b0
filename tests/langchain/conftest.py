"""What the tests of the LangChain adapters share: the default checkpoint, and small indexes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gritrag import GritModel, Index
from gritrag.corpus import documents

COUNT = 12


@pytest.fixture(scope="session")
def grit() -> GritModel:
    """The default checkpoint: SmolLM2 of 135M parameters, as it comes with the package."""
    return GritModel.from_pretrained("gritrag-smollm2-135m", dtype="float32")


@pytest.fixture(scope="session")
def corpus_index(grit: GritModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """The first passages of the corpus, with their states; not to be written to."""
    with Index.create(tmp_path_factory.mktemp("corpus") / "index", model=grit) as index:
        index.add(documents()[:COUNT])
        yield index


@pytest.fixture
def make_index(tmp_path: Path, tiny_model: GritModel) -> Iterator[Callable[..., Index]]:
    """`make_index("name", states="float32")`: an empty index of a tiny random model."""
    opened: list[Index] = []

    def make(name: str = "index", **options: object) -> Index:
        opened.append(Index.create(tmp_path / name, model=options.pop("model", tiny_model), **options))
        return opened[-1]

    yield make
    for index in opened:
        index.close()
