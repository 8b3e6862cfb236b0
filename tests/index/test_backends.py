"""One suite for every place where vectors and states can be: a RAG does not notice where they are."""

import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from ferry import DOCUMENTS, QUESTION
from object_store import empty_bucket, object_server

from gritrag import RAG, Document, GritModel, Hit, Index, open_many
from gritrag.index.storage import qdrant, remote_states
from gritrag.index.storage.states import StateFileWarning

BACKENDS = ("faiss", "qdrant", "s3", "shards")
MODES = ("dense", "sparse", "hybrid")
OTHERS = [Document(f"Boat {n} carries {n + 2} owls to the rope island.", id=f"o{n}") for n in range(6)]


@dataclass
class Backend:
    """The directories of an index, or of its shards, and the folders that hold their states on `files`."""

    model: GritModel
    folders: Sequence[Path]
    files: Any
    states: Sequence[str]
    cache: Path
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in self.folders:
            Index.create(folder, model=self.model, states="float32", **self.options).close()

    def writers(self) -> Iterator[Index]:
        """Each shard, open for writing, one after the other."""
        for folder in self.folders:
            with Index.open(folder, model=self.model, mode="rw") as index:
                yield index

    def add(self, documents: Sequence[Document]) -> np.ndarray:
        """Each goes to the shard that its id chooses. How many were added, replaced and skipped."""
        reports = []
        for shard, index in enumerate(self.writers()):
            mine = [each for each in documents if zlib.crc32(each.id.encode()) % len(self.folders) == shard]
            reports.append(index.add(mine))
        return np.sum(reports, axis=0)

    def delete(self, **which: Any) -> int:
        return sum(index.delete(**which) for index in self.writers())

    def open(self) -> Index:
        """All of it, to be read."""
        if len(self.folders) > 1:
            return open_many(self.folders, model=self.model)
        return Index.open(self.folders[0], model=self.model)

    def state_files(self) -> list[str]:
        self.files.invalidate_cache()
        return sorted(path for folder in self.states if self.files.exists(folder) for path in self.files.find(folder))

    def lose(self, paths: Sequence[str], how: str) -> None:
        """Damage state files or remove them, and what is kept of them on this machine."""
        for path in paths:
            data = bytearray(self.files.cat_file(path))
            data[-3] ^= 1
            if how == "damaged":
                self.files.pipe_file(path, bytes(data))
            else:
                self.files.rm_file(path)
        shutil.rmtree(self.cache, ignore_errors=True)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with object_server() as url:
        yield url


@pytest.fixture(params=BACKENDS)
def backend(
    request: pytest.FixtureRequest, tiny_model: GritModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    folders = [tmp_path / "one", tmp_path / "two"] if request.param == "shards" else [tmp_path / "one"]
    cache, options = tmp_path / "cache", {}
    files, states = fsspec.filesystem("file"), [str(folder / "states") for folder in folders]
    if request.param == "s3":
        monkeypatch.setattr(remote_states, "FIRST_DELAY", 0.001)
        files = empty_bucket(request.getfixturevalue("server"), cache, monkeypatch)
        states, options = ["bucket/states"], {"states_at": "s3://bucket/states"}
    if request.param == "qdrant":
        options = {"vectors_at": str(tmp_path / "qdrant")}
    backend = Backend(tiny_model, folders, files, states, cache, options)
    backend.add([*DOCUMENTS, *OTHERS])
    yield backend
    if request.param == "qdrant":
        qdrant.connect(options["vectors_at"]).close()
        qdrant.connect.cache_clear()


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.document.id for hit in hits]


def test_vectors_and_states_are_where_they_were_asked_to_be(backend: Backend, request: pytest.FixtureRequest) -> None:
    """Else all that follows would say nothing of the place."""
    name = request.node.callspec.params["backend"]
    with backend.open() as index:
        index.search(QUESTION, 3, mode="dense")
    with_vectors = [bool(list(folder.glob("vectors/*"))) for folder in backend.folders]
    with_states = [bool(list(folder.glob("states/*/*"))) for folder in backend.folders]
    assert with_vectors == [name != "qdrant"] * len(backend.folders)
    assert with_states == [name != "s3"] * len(backend.folders)
    assert len(backend.folders) == (2 if name == "shards" else 1)
    if name == "qdrant":
        remote = qdrant.connect(backend.options["vectors_at"])
        [collection] = remote.get_collections().collections
        assert remote.count(collection.name).count == 9


def test_everything_that_was_added_is_found(backend: Backend, tiny_model: GritModel, tmp_path: Path) -> None:
    with backend.open() as index, Index.create(tmp_path / "plain", model=tiny_model, states="none") as plain:
        plain.add([*DOCUMENTS, *OTHERS])
        assert sorted(index) == sorted(plain)
        assert index.get(["o3", "a"]) == [OTHERS[3], DOCUMENTS[0]]
        for k in (3, 20):
            found, expected = index.search(QUESTION, k, mode="dense"), plain.search(QUESTION, k, mode="dense")
            assert ids(found) == ids(expected)
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert ids(index.search("red moss", 1, mode="sparse")) == ["c"]
        assert set(ids(index.search("rope", 20, mode="hybrid"))) == set(index)
        assert index.stats()["states"] == len(backend.state_files()) == 9


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_leaves_out_what_it_should(backend: Backend, mode: str) -> None:
    with backend.open() as index:
        words = "ferry bridge goats owls"
        assert set(ids(index.search(words, 20, where={"year": {"$gte": 2}}, mode=mode))) == {"b", "c"}
        assert ids(index.search(words, 20, where={"year": 1}, mode=mode)) == ["a"]
        assert index.search(words, 20, where={"year": 9}, mode=mode) == []


def test_answers_name_their_sources_and_come_from_states(backend: Backend) -> None:
    with backend.open() as index:
        answer = RAG(index, k=3).ask(QUESTION, max_new_tokens=6)
        filtered = RAG(index, k=3).ask(QUESTION, where={"year": {"$lt": 3}}, max_new_tokens=6)
        several = RAG(index, k=3).ask_many([QUESTION, "Who eats moss?"], max_new_tokens=6)
    assert len(answer.hits) == 3
    assert sorted(citation.id for citation in answer.citations) == sorted(ids(answer.hits))
    assert answer.usage.cached_tokens == sum(citation.end - citation.start for citation in answer.citations) > 0
    assert set(ids(filtered.hits)) == {"a", "b"}
    assert filtered.usage.cached_tokens < answer.usage.cached_tokens
    assert several[0].text == answer.text
    assert several[1].text != answer.text


def test_from_states_comes_the_answer_that_comes_from_text(backend: Backend) -> None:
    with backend.open() as index:
        for question in (QUESTION, "Who eats moss?"):
            states, text = (
                RAG(index, k=1, mode=mode).ask(question, max_new_tokens=8) for mode in ("doc-cache", "doc-query")
            )
            assert states.text == text.text
            assert (states.exact, ids(states.hits)) == (True, ids(text.hits))
            assert states.usage.cached_tokens > text.usage.cached_tokens == 0
        several = RAG(index, k=3).ask(QUESTION, max_new_tokens=8)
    backend.lose(backend.state_files(), "missing")
    with backend.open() as index, pytest.warns(StateFileWarning, match="read anew"):
        again = RAG(index, k=3).ask(QUESTION, max_new_tokens=8)
    assert again.text == several.text
    assert (several.usage.cached_tokens > 0, again.usage.cached_tokens) == (True, 0)


def test_a_replaced_document_is_the_new_one_everywhere(backend: Backend) -> None:
    new = Document("A balloon of silk drifts over the marsh at dusk.", id="a", metadata={"year": 7})
    with backend.open() as index:
        before = RAG(index).ask(QUESTION, documents=index.get(["a"]), max_new_tokens=8)
    backend.add([new])
    with backend.open() as index:
        assert len(index) == 9
        assert index["a"] == new
        for mode in MODES:
            assert ids(index.search("silk balloon", 1, mode=mode, where={"year": 7})) == ["a"]
        assert index.search("noon", 9, mode="sparse") == []
        assert index.search("ferry", 9, mode="dense", where={"year": 1}) == []
        after = RAG(index).ask(QUESTION, documents=[index["a"]], max_new_tokens=8)
        assert after.usage.cached_tokens > 0
        assert after.text != before.text
        assert RAG(index, mode="doc-query").ask(QUESTION, documents=[new], max_new_tokens=8).text == after.text
        assert len(backend.state_files()) == 9, "the state of the old text is gone"


def test_a_deleted_document_is_nowhere(backend: Backend) -> None:
    assert backend.delete(ids=["a", "o1", "nobody"]) == 2
    assert backend.delete(where={"year": 3}) == 1
    with backend.open() as index:
        assert sorted(index) == ["b", "o0", "o2", "o3", "o4", "o5"]
        for mode in MODES:
            assert not {"a", "c", "o1"} & set(ids(index.search("ferry goats owls", 20, mode=mode)))
        assert len(index.search(QUESTION, 20, mode="dense")) == 6
        assert not {"a", "c", "o1"} & {citation.id for citation in RAG(index, k=9).ask(QUESTION).citations}
        assert index.verify() == ([], [])
    assert len(backend.state_files()) == 6


def test_what_is_opened_again_answers_alike(backend: Backend) -> None:
    answers = []
    for _ in range(2):
        with backend.open() as index:
            answers.append(RAG(index, k=3).ask(QUESTION, max_new_tokens=8))
            assert index.verify() == ([], [])
        shutil.rmtree(backend.cache, ignore_errors=True)  # as on another machine
        assert backend.add([*DOCUMENTS, *OTHERS]).tolist() == [0, 0, 9]
    first, second = answers
    assert (second.text, second.hits, second.usage) == (first.text, first.hits, first.usage)


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_state_that_is_lost_is_read_again(backend: Backend, how: str) -> None:
    with backend.open() as index:
        whole = RAG(index, k=9).ask(QUESTION, max_new_tokens=8)
    backend.lose(backend.state_files()[:4], how)
    with backend.open() as index:
        with pytest.warns(StateFileWarning, match="read anew"):
            answer = RAG(index, k=9).ask(QUESTION, max_new_tokens=8)
        assert answer.text == whole.text
        assert 0 < answer.usage.cached_tokens < whole.usage.cached_tokens
        assert len(index.verify().problems) == 4
    for writer in backend.writers():  # who may write stores what it had to read
        with pytest.warns(StateFileWarning, match="read anew"):
            RAG(writer, k=9).ask(QUESTION, max_new_tokens=1)
    with backend.open() as index:
        mended = RAG(index, k=9).ask(QUESTION, max_new_tokens=8)
        assert index.verify() == ([], [])
    assert (mended.text, mended.usage) == (whole.text, whole.usage)
