"""Search that ranks from states: which candidates are asked, and what becomes of a state that is missing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hash_reader import HashReader

from gritrag.index.index import Index
from gritrag.index.rerank import LOG_WEIGHT, combined, ranked
from gritrag.index.shards import open_many
from gritrag.index.storage.states import DocumentState
from gritrag.records import Document, Hit

WORDS = ["river", "bridge", "ferry", "winter", "lamp", "tower", "rope", "salt"]
DOCUMENTS = [Document(f"the {word} and the boat number {n}", id=word) for n, word in enumerate(WORDS)]

QUERY = "boat"
"""A word that all documents hold alike, so that words leave the order to the states."""


class RankingReader(HashReader):
    """Finds the question most probable behind one document; counts what it was asked."""

    def __init__(self, favourite: str = "", **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.favourite = self.document_token_ids(next(d for d in DOCUMENTS if d.id == favourite)) if favourite else []
        self.asked: list[int] = []

    def question_token_log_likelihoods(self, question: str, states: Sequence[DocumentState]) -> np.ndarray:
        self.asked.append(len(states))
        logs = [[-1.0 if s.token_ids.tolist() == self.favourite else -9.0] for s in states]
        return np.array(logs, np.float32)


def index_of(folder: Path, reader: HashReader, states: str = "float32") -> Index:
    index = Index.create(folder / "index", model=reader, states=states)
    index.add(DOCUMENTS)
    return index


def test_a_candidate_behind_which_the_question_is_probable_comes_first(tmp_path: Path) -> None:
    reader = RankingReader("salt")
    with index_of(tmp_path, reader) as index:
        plain = [hit.document.id for hit in index.search(QUERY, 8, mode="sparse")]
        assert plain[0] != "salt"
        read = reader.documents_read
        hits = index.search(QUERY, 2, mode="sparse", rerank=8)
    assert hits[0].document.id == "salt"
    assert [hit.rank for hit in hits] == [1, 2]
    assert hits[0].score > hits[1].score
    assert reader.asked == [8]
    assert reader.documents_read == read, "nothing is read whose state is there"


def test_candidates_are_the_best_of_the_search_and_no_others(tmp_path: Path) -> None:
    reader = RankingReader("salt")
    with index_of(tmp_path, reader) as index:
        plain = [hit.document.id for hit in index.search(QUERY, 8, mode="sparse")]
        few = plain.index("salt")
        assert few > 0
        found = [hit.document.id for hit in index.search(QUERY, 1, mode="sparse", rerank=few)]
        everyone = [
            [hit.document.id for hit in hits] for hits in index.search_many([QUERY] * 2, 1, mode="sparse", rerank=8)
        ]
    assert found == plain[:1]
    assert everyone == [["salt"], ["salt"]]


@pytest.mark.filterwarnings("ignore::gritrag.index.storage.states.StateFileWarning")
@pytest.mark.parametrize("states", ["none", "float32"])
def test_a_missing_state_is_read_again_and_stored_where_there_is_room(states: str, tmp_path: Path) -> None:
    reader = RankingReader("salt")
    index_of(tmp_path, reader, states).close()
    for file in (tmp_path / "index" / "states").rglob("*.safetensors"):
        file.unlink()
    with Index.open(tmp_path / "index", model=reader, mode="rw") as index:
        before = reader.documents_read
        assert index.search(QUERY, 1, mode="sparse", rerank=8)[0].document.id == "salt"
        assert reader.documents_read == before + 8
        index.search(QUERY, 1, mode="sparse", rerank=8)
    assert reader.documents_read == before + (16 if states == "none" else 8)


def test_shards_rank_as_one_index(tmp_path: Path) -> None:
    reader = RankingReader("salt")
    for name, part in (("a", DOCUMENTS[:4]), ("b", DOCUMENTS[4:])):
        with Index.create(tmp_path / name, model=reader, states="float32") as index:
            index.add(part)
    with open_many([tmp_path / "a", tmp_path / "b"], model=reader) as shards:
        assert shards.search(QUERY, 1, mode="sparse", rerank=8)[0].document.id == "salt"


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with index_of(tmp_path, RankingReader()) as index:
        for wrong in (2, 0, True, 3.5):
            with pytest.raises(ValueError, match="at least k = 3"):
                index.search("river", 3, rerank=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="one of them"):
            index.search("river", 1, rerank=4, mmr=0.5)
        with pytest.raises(ValueError, match="text in it"):
            index.rerank(" ", [])
        assert index.rerank("river", []) == []
        assert index.search("river", 2, where={"year": 1}, rerank=4) == []
    with index_of(tmp_path / "plain", HashReader()) as index, pytest.raises(ValueError, match="leave rerank out"):
        index.search("river", 1, rerank=4)


def test_scores_of_any_search_are_scaled_before_probabilities_count() -> None:
    logs = np.array([-3.0, -2.0, -9.0])  # more than a nat below the best counts as one
    expected = [1 - LOG_WEIGHT, 0.5, -LOG_WEIGHT]
    np.testing.assert_allclose(combined(np.array([30.0, 20.0, 10.0]), logs), expected)
    np.testing.assert_allclose(combined(np.array([0.3, 0.2, 0.1]), logs), expected)
    np.testing.assert_allclose(combined(np.zeros(3), logs), [1 - LOG_WEIGHT, 1.0, 1 - LOG_WEIGHT])


def test_ties_keep_the_order_of_the_search() -> None:
    hits = [Hit(document, 1.0, rank) for rank, document in enumerate(DOCUMENTS, start=1)]
    assert [hit.document for hit in ranked(hits, np.full((len(hits), 2), -2.0), 3)] == DOCUMENTS[:3]
