"""Approximate engines: near enough, exact in what they score, exact where it must be, and nothing of what is gone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hash_reader import HashReader

from gritrag.index.index import Index
from gritrag.index.storage import candidates, engines
from gritrag.index.storage.candidates import Candidates
from gritrag.index.storage.engines import FaissFlat, chosen
from gritrag.index.storage.stored_vectors import StoredVectors
from gritrag.records import Document

Make = Callable[..., Index]
KINDS = ("hnsw", "ivf-pq")
DIM = 16


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """Vectors around forty centres, as texts lie around topics."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((40, DIM))
    vectors = centres[random.integers(0, 40, count)] + 0.6 * random.standard_normal((count, DIM))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def trained(kind: str, vectors: np.ndarray) -> Candidates:
    stored = StoredVectors(DIM)
    stored.add(np.arange(1, len(vectors) + 1), vectors)
    return Candidates.train(kind, stored, DIM)


def exact(vectors: np.ndarray, queries: np.ndarray, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat = FaissFlat(DIM)
    flat.add(rows, vectors[rows - 1])
    return flat.search(queries, k, None)


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest) -> Candidates:
    return trained(request.param, clustered(6000))


def test_the_engine_is_chosen_by_size() -> None:
    few, some, many = 1000, engines.HNSW_DOCUMENTS, engines.IVF_DOCUMENTS
    assert [chosen("auto", count) for count in (few, some, many)] == ["flat", "hnsw", "ivf-pq"]
    assert chosen("ivf-pq", few) == "ivf-pq"


def test_recall_is_measured_and_scores_are_exact(made: Candidates) -> None:
    vectors, queries = clustered(6000), clustered(50, seed=1)
    assert made.figures["recall@10"] >= candidates.RECALL
    scores, rows = made.search(queries, 10, None)
    _, expected = exact(vectors, queries, 10, np.arange(1, 6001))
    shared = [len(set(found) & set(best)) for found, best in zip(rows.tolist(), expected.tolist(), strict=True)]
    assert np.mean(shared) >= 9.5
    products = np.einsum("qd,qkd->qk", queries, vectors[rows - 1])
    assert np.allclose(scores, products, atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("kept", [10, 600, 2400])
def test_a_filter_is_applied_before_the_search(made: Candidates, kept: int) -> None:
    """Allowed are the farthest from the question: a search that filtered its nearest would find none of them."""
    vectors, query = clustered(6000), clustered(1, seed=2)
    allowed = np.sort(np.argsort(vectors @ query[0])[:kept]) + 1
    scores, rows = made.search(query, 5, allowed)
    best, _ = exact(vectors, query, 5, allowed)
    assert np.isin(rows, allowed).all()
    assert (scores >= best - 0.05).all()


def test_all_are_found_that_are_asked_for(made: Candidates) -> None:
    query = clustered(1, seed=3)
    for k, allowed in ((6000, None), (9999, None), (300, None), (1500, np.arange(1, 1501))):
        _, rows = made.search(query, k, allowed)
        count = min(k, 6000 if allowed is None else 1500)
        assert rows.shape == (1, count)
        assert len(set(rows[0].tolist()) - {-1}) == count
    assert made.search(query, 3, np.zeros(0, np.int64))[1].shape == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_removed_is_never_found_and_what_is_added_is(kind: str) -> None:
    vectors = clustered(3000)
    engine = trained(kind, vectors[:2000])
    engine.add(np.arange(2001, 3001), vectors[2000:])
    query = vectors[2500:2501]
    assert engine.search(query, 3, None)[1][0, 0] == 2501
    engine.remove(np.array([2501, 7]))
    assert 2501 not in engine.search(query, 50, None)[1]
    assert 2501 not in engine.search(query, 2998, None)[1]
    assert 2501 not in engine.search(query, 5, np.arange(2400, 2600))[1]
    assert len(engine.rows) == 2998


# In an index


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes at which engines are chosen, made small."""
    monkeypatch.setattr(engines, "HNSW_DOCUMENTS", 100)
    monkeypatch.setattr(engines, "IVF_DOCUMENTS", 300)
    monkeypatch.setattr(candidates, "EXACT_ROWS", {"ivf-pq": 5, "hnsw": 5})


def notes(count: int, first: int = 0) -> list[Document]:
    words = ("amber", "birch", "cedar", "delta", "ember", "fjord")
    return [
        Document(
            f"{words[n % 6]} {words[n // 6 % 6]} {words[n // 36 % 6]} note{n}", id=f"d{n}", metadata={"n": n % 100}
        )
        for n in range(first, first + count)
    ]


@pytest.mark.usefixtures("small")
def test_an_index_grows_through_all_engines(make: Make, reader: HashReader) -> None:
    index = make(states="none")
    index.close()
    for count, engine in ((50, "flat"), (150, "hnsw"), (400, "ivf-pq"), (60, "flat")):
        with Index.open(index.path, model=reader, mode="rw") as writer:
            writer.delete(where={})
            writer.add(notes(count))
        with Index.open(index.path, model=reader) as opened:
            assert opened.stats()["vectors"]["engine"] == engine
            assert engine == "flat" or opened.stats()["vectors"]["recall@10"] >= 0.9
            for number in (3, count - 1):
                best = opened.search(f"note{number}", 1, mode="dense")
                assert best[0].score > 0
                found = opened.search(opened[f"d{number}"].text, 1, mode="dense", where={"n": number % 100})
                assert found[0].document.id == f"d{number}"
            assert opened.verify() == ([], [])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [150, 400])
def test_a_reader_follows_a_writer_and_no_file_holds_what_was_deleted(
    make: Make, reader: HashReader, count: int
) -> None:
    index = make(states="none")
    index.add(notes(count))
    index.close()
    with Index.open(index.path, model=reader) as opened:
        assert opened.search(notes(1)[0].text, 1, mode="dense")[0].document.id == "d0"
        gone = opened.load_vectors([opened["d0"]])[0]
        assert gone is not None
        assert any(gone.tobytes() in path.read_bytes() for path in (index.path / "vectors").iterdir())
        with Index.open(index.path, model=reader, mode="rw") as writer:
            writer.delete(ids=["d0"])
            assert list((index.path / "vectors").iterdir()) == []
            writer.add(notes(5, first=count))
            found = opened.search(notes(1)[0].text, 20, mode="dense")
            assert "d0" not in {hit.document.id for hit in found}
            assert opened.search(notes(1, count)[0].text, 1, mode="dense")[0].document.id == f"d{count}"
    assert not any(gone.tobytes() in path.read_bytes() for path in index.path.rglob("*") if path.is_file())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [150, 400])
@pytest.mark.parametrize("suffix", [".faiss", ".vectors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_noticed_and_costs_a_rebuild(
    make: Make, reader: HashReader, count: int, suffix: str, damage: str
) -> None:
    index = make(states="none")
    index.add(notes(count))
    index.close()
    questions = [notes(1, first=n)[0].text for n in range(0, count, 20)]

    def answers() -> list[list[str]]:
        with Index.open(index.path, model=reader) as opened:
            return [[hit.document.id for hit in opened.search(q, 1, mode="dense")] for q in questions]

    expected = answers()
    (path,) = (index.path / "vectors").glob(f"*{suffix}")
    data = bytearray(path.read_bytes())
    for place in (0, len(data) // 3, len(data) - 9):
        broken = bytearray(data)
        broken[place] ^= 2
        path.write_bytes(broken if damage == "flip" else broken[:place])
        if damage == "gone":
            path.unlink()
        assert answers() == expected
        with Index.open(index.path, model=reader) as opened:
            assert len(opened.verify().problems) == 1
    with Index.open(index.path, model=reader, mode="rw") as writer:
        assert len(writer.verify(repair=True).repaired) == 1
        assert writer.verify() == ([], [])
    assert answers() == expected


def test_a_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: what `faiss-gpu` offers is counted. It knows no selectors, so filters stay on the processor."""
    used: list[str] = []

    def to_gpu(index: object) -> object:
        used.append(type(index).__name__)
        return index

    monkeypatch.setattr(engines.faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(engines.faiss, "index_cpu_to_all_gpus", to_gpu, raising=False)
    vectors = clustered(500)
    for engine in (FaissFlat(DIM), trained("ivf-pq", vectors)):
        if isinstance(engine, FaissFlat):
            engine.add(np.arange(1, 501), vectors)
        engine.remove(np.array([500]))  # which a copy on the GPU does not know
        used.clear()
        for _ in range(2):
            assert engine.search(vectors[:1], 1, None)[1][0, 0] == 1
        assert len(used) == 1
        engine.search(vectors[:1], 1, np.arange(1, 401))
        engine.remove(np.array([1]))
        assert engine.search(vectors[:1], 1, None)[1][0, 0] != 1
        assert len(used) == 2


def test_files_of_vectors_are_written_without_what_is_gone(tmp_path: Path) -> None:
    vectors = clustered(20)
    stored = StoredVectors(DIM)
    stored.add(np.arange(1, 11), vectors[:10])
    stored.add(np.arange(11, 21), vectors[10:])
    note = stored.write(tmp_path / "v", np.array([2, 5, 20]))
    again = StoredVectors.load(tmp_path / "v", 3, DIM, str(note["xxh3"]))
    assert again.rows.tolist() == [2, 5, 20]
    again.add(np.array([30]), vectors[:1])
    assert np.array_equal(again.take(np.array([20, 30, 2])), vectors[[19, 0, 1]])
    assert again.problem() is None
