"""Laws of searching: filters come first, both vector searches agree, fusion and MMR are what the papers say."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gritrag.index.index import Index
from gritrag.index.search import convex_combination, maximal_marginal_relevance
from gritrag.index.storage.vectors import FaissFlat, TorchFlat
from gritrag.index.words import match_expression
from gritrag.records import Document

Make = Callable[..., Index]


def unit(random: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors = random.standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_a_filter_is_applied_before_the_search(make: Make, mode: str) -> None:
    """The three that match are the worst of 200: a search that filtered its best hits would find none of them."""
    index = make(states="none")
    near = [Document(f"query query query {i}", id=f"near{i}", metadata={"good": False}) for i in range(197)]
    far = [Document(f"{'other ' * 40} query far{i}", id=f"far{i}", metadata={"good": True}) for i in range(3)]
    index.add(near + far)
    assert {hit.document.id for hit in index.search("query", 197, mode=mode)}.isdisjoint({"far0", "far1", "far2"})
    hits = index.search("query", 3, where={"good": True}, mode=mode)
    assert {hit.document.id for hit in hits} == {"far0", "far1", "far2"}
    assert index.search("query", 3, where={"good": "no such"}, mode=mode) == []
    assert len(index.search("query", 3, where={"good": True}, mode=mode, mmr=0.5)) == 3


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 12), some=st.booleans())
def test_faiss_and_torch_find_the_same(seed: int, k: int, some: bool) -> None:
    random = np.random.default_rng(seed)
    rows = random.permutation(100)[:40].astype(np.int64)
    vectors, queries = unit(random, 40, 8), unit(random, 3, 8)
    flats = FaissFlat(8), TorchFlat(8)
    allowed = np.sort(random.permutation(rows)[:15]) if some else None
    found = []
    for flat in flats:
        flat.add(rows[:30], vectors[:30])
        flat.remove(rows[10:20])
        flat.add(rows[30:], vectors[30:])
        found.append(flat.search(queries, k, allowed))
    (faiss_scores, faiss_rows), (torch_scores, torch_rows) = found
    torch_width = torch_rows.shape[1]
    assert np.array_equal(faiss_rows[:, :torch_width], torch_rows)
    assert np.allclose(faiss_scores[:, :torch_width], torch_scores, atol=1e-6)
    assert (faiss_rows[:, torch_width:] == -1).all()


def test_an_index_answers_alike_without_faiss(make: Make, corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for name in ("with", "without"):
        with make(name, states="none") as index:
            index.add(corpus)
            index.delete(ids=["d3"])
        assert (index.path / "vectors").exists() == (name == "with")
        with Index.open(index.path, model=index.model, mode="rw") as again:
            filters = (None, {"colour": "red"}, {"year": {"$gt": 3000}})
            answers.append([hit for where in filters for hit in again.search("amber river1", 50, where=where)])
        monkeypatch.setattr("gritrag.index.storage.vectors.faiss", None)
    ours, theirs = answers
    assert [hit.document.id for hit in ours] == [hit.document.id for hit in theirs]
    assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-6)
    assert len(ours) == 29 + 14


def test_convex_combination_by_hand() -> None:
    dense = [(7, 0.9), (5, 0.7), (9, 0.1)]  # scaled: 1, 0.75, 0
    sparse = [(5, 12.0), (2, 11.0), (7, 3.0), (4, 2.0)]  # scaled: 1, 0.9, 0.1, 0
    fused = convex_combination(dense, sparse, 0.25)
    assert [row for row, _ in fused] == [5, 2, 7, 9, 4]
    assert [score for _, score in fused] == pytest.approx([0.9375, 0.675, 0.325, 0.0, 0.0], abs=1e-15)
    assert convex_combination([], [], 0.4) == []
    assert convex_combination([(3, -0.2)], [], 0.4) == [(3, 0.4)]
    assert convex_combination([], [(8, 2.0), (3, 2.0)], 0.4) == [(8, 0.6), (3, 0.6)]


def test_hybrid_is_the_combination_of_dense_and_sparse(make: Make, corpus) -> None:
    index = make(states="none")
    index.add(corpus)
    question = "amber river1 stone4"
    rankings = []
    for mode in ("dense", "sparse"):
        hits = index.search(question, 50, mode=mode)
        rankings.append([(int(hit.document.id[1:]) + 1, hit.score) for hit in hits])  # rows count from 1
    dense, sparse = rankings
    assert 0 < len(sparse) < len(dense) == len(corpus)
    sparse += [(row, 0.0) for row, _ in dense if row not in dict(sparse)]  # none of the words: a score of 0
    for weight in (0.0, 0.4, 1.0):
        expected = [(f"d{row - 1}", score) for row, score in convex_combination(dense, sparse, weight)[:6]]
        found = index.search(question, 6, mode="hybrid", dense_weight=weight)
        assert [(hit.document.id, hit.score) for hit in found] == expected
    hits = index.search_many([question], 6, mode="hybrid", dense_weight=1)[0]
    assert [(hit.document.id, hit.rank) for hit in hits] == [
        (f"d{row - 1}", n) for n, (row, _) in enumerate(dense[:6], 1)
    ]


def test_the_lesser_of_two_matches_counts_more_than_no_match(make: Make) -> None:
    index = make(states="none")
    longer = "rare words in a passage that is longer and says so"
    index.add([Document("rare words", id="short"), Document(longer, id="long")])
    index.add([Document(f"nothing of the kind {i}", id=f"else{i}") for i in range(30)])
    found = index.search("rare words", 32, mode="hybrid", dense_weight=0)
    scores = {hit.document.id: hit.score for hit in found}
    assert scores.pop("short") == 1 > scores.pop("long") > 0.5
    assert set(scores.values()) == {0}


def test_words_that_no_document_holds_give_no_score(make: Make, corpus) -> None:
    index = make(states="none")
    index.add(corpus)
    dense = index.search("zyzzyva", 50, mode="dense")
    found = index.search("zyzzyva", 50, mode="hybrid", dense_weight=0.4)
    assert [hit.document.id for hit in found] == [hit.document.id for hit in dense]
    assert (found[0].score, found[-1].score) == (pytest.approx(0.4), 0)


def test_with_all_weight_on_vectors_the_words_add_nothing(make: Make, corpus) -> None:
    """Not even where so few are fetched that the last of the vectors' hits has a score of 0, as what it lacks has."""
    index = make(states="none")
    index.add(corpus)
    for k in (2, 5):
        dense = [hit.document.id for hit in index.search("amber river1", k, mode="dense")]
        hybrid = index.search("amber river1", k, mode="hybrid", dense_weight=1, fetch_k=k)
        assert [hit.document.id for hit in hybrid] == dense


def test_scores_below_those_that_were_fetched_count_as_the_lowest(make: Make) -> None:
    """All documents hold the word, so what the words' ranking does not reach is no better than its last."""
    index = make(states="none")
    index.add([Document("word " + "and more " * n, id=f"d{n}") for n in range(30)])
    sparse = index.search("word", 10, mode="sparse")
    found = index.search("word", 10, mode="hybrid", dense_weight=0, fetch_k=10)
    assert [hit.document.id for hit in found[:9]] == [hit.document.id for hit in sparse[:9]]
    lowest, highest = sparse[-1].score, sparse[0].score
    scaled = [(hit.score - lowest) / (highest - lowest) for hit in sparse]
    assert [hit.score for hit in found[:9]] == pytest.approx(scaled[:9], abs=1e-12)


def naive_mmr(query: np.ndarray, vectors: np.ndarray, k: int, weight: float) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(k, len(vectors)):
        scores = {
            i: weight * float(vectors[i] @ query)
            - (1 - weight) * max((float(vectors[i] @ vectors[j]) for j in chosen), default=0.0)
            for i in range(len(vectors))
            if i not in chosen
        }
        chosen.append(max(scores, key=scores.__getitem__))
    return chosen


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 15), weight=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
def test_mmr_is_the_greedy_rule(seed: int, k: int, weight: float) -> None:
    random = np.random.default_rng(seed)
    query, vectors = unit(random, 1, 6)[0], unit(random, 12, 6)
    chosen = [position for position, _ in maximal_marginal_relevance(query, vectors, k, weight)]
    assert chosen == naive_mmr(query, vectors, k, weight)


def test_mmr_of_one_is_relevance_and_less_is_diversity(make: Make) -> None:
    index = make(states="none")
    same = [Document("alpha beta gamma", id=f"same{i}") for i in range(5)]
    index.add([*same, Document("alpha delta", id="else")])
    plain = [hit.document.id for hit in index.search("alpha beta gamma", 3, mode="dense")]
    assert plain == ["same0", "same1", "same2"]
    assert [hit.document.id for hit in index.search("alpha beta gamma", 3, mode="dense", mmr=1.0)] == plain
    assert [hit.document.id for hit in index.search("alpha beta gamma", 2, mode="dense", mmr=0.4)] == ["same0", "else"]
    few = index.search("alpha beta gamma", 2, mode="dense", mmr=0.4, fetch_k=3)
    assert "else" not in {hit.document.id for hit in few}


def test_equal_scores_come_in_the_order_of_storing(make: Make) -> None:
    index = make(states="none")
    index.add([Document("alpha", id=f"{i}") for i in range(9)])
    for mode in ("dense", "sparse", "hybrid"):
        assert [hit.document.id for hit in index.search("alpha", 9, mode=mode)] == [f"{i}" for i in range(9)]


def test_sparse_search_knows_words_stems_and_accents(make: Make) -> None:
    index = make(states="none")
    index.add([Document("The bridges were repaired", id="a"), Document("Un café fermé", id="b", title="Paris")])
    for query, id in (("repairing a bridge", "a"), ("cafe", "b"), ("CAFÉ", "b"), ("cafe\u0301", "b"), ("paris", "b")):
        assert [hit.document.id for hit in index.search(query, mode="sparse")] == [id]


def test_each_word_of_a_question_is_quoted_once() -> None:
    assert match_expression('a "b" AND a:* b_c') == '"a" OR "b" OR "AND" OR "c"'
    assert match_expression("?!") == '""'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be .* not 0"),
        ({"k": 2.5}, "not 2.5"),
        ({"mode": "fuzzy"}, "fuzzy.*dense, sparse, hybrid"),
        ({"mmr": 1.5}, r"\[0, 1\].*1.5"),
        ({"mode": "hybrid", "dense_weight": -0.1}, r"dense_weight .*\[0, 1\].*-0.1"),
        ({"dense_weight": float("nan")}, r"dense_weight .*\[0, 1\].*nan"),
        ({"mmr": 0.5, "k": 9, "fetch_k": 3}, "3, below k = 9"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(make: Make, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(states="none").search("question", **options)


@pytest.mark.parametrize("query", ["", "  \n", "\ud800", None])
def test_a_question_without_text_is_refused(make: Make, query: str) -> None:
    with pytest.raises(ValueError, match="query"):
        make(states="none").search(query)
