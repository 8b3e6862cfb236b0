"""Laws of an index as its users see it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hash_reader import HashReader

from gritrag.index import check, export
from gritrag.index.index import Index
from gritrag.index.storage.states import DocumentState
from gritrag.progress import StagesBar
from gritrag.records import Document, Hit

QUESTIONS = ("amber birch", "stone7", "river2 stone11 cedar")
Make = Callable[..., Index]


def answers(index: Index) -> list[list[tuple[str, float, int]]]:
    return [
        [(hit.document.id, hit.score, hit.rank) for hit in index.search(question, 4, mode=mode)]
        for question in QUESTIONS
        for mode in ("dense", "sparse", "hybrid")
    ]


def same_state(a: DocumentState | None, b: DocumentState) -> bool:
    return (
        a is not None
        and torch.equal(a.keys.float(), b.keys.bfloat16().float())
        and torch.equal(a.values.float(), b.values.bfloat16().float())
        and torch.equal(a.token_ids, b.token_ids)
        and a.reading == b.reading
    )


def test_an_index_opened_again_gives_the_same_documents_states_and_answers(make: Make, reader, corpus) -> None:
    with make() as index:
        assert index.add(corpus) == (30, 0, 0)
        before = answers(index)
    for mode in ("r", "rw"):
        with Index.open(index.path, model=reader, mode=mode) as again:
            assert answers(again) == before
            assert again.get(["d3", "d0"]) == [corpus[3], corpus[0]]
            assert list(again) == [document.id for document in corpus]
            assert len(again) == 30
            assert "d3" in again
            assert "d30" not in again
            for document, state in zip(corpus, again.load_states(again.get([d.id for d in corpus])), strict=True):
                assert same_state(state, reader.state(reader.document_token_ids(document)))


def test_float32_states_come_back_bit_for_bit(make: Make, reader, corpus) -> None:
    index = make(states="float32")
    index.add(corpus)
    for document, state in zip(corpus, index.load_states(index.get(list(index))), strict=True):
        expected = reader.state(reader.document_token_ids(document))
        assert torch.equal(state.keys, expected.keys)
        assert torch.equal(state.values, expected.values)


def test_plain_strings_are_named_by_their_content_and_stored_once(make: Make) -> None:
    index = make()
    assert index.add(["one two", "three"]) == (2, 0, 0)
    assert index.add(iter(["three", "four", "four"])) == (1, 0, 2)
    assert len(index) == 3


def test_what_is_unchanged_is_not_read_again(make: Make, reader, corpus) -> None:
    index = make()
    index.add(corpus)
    assert reader.documents_read == 30
    assert index.add(corpus) == (0, 0, 30)
    assert index.add([*corpus, "a new one"]) == (1, 0, 30)
    assert reader.documents_read == 31
    # Other facts about the same text, and the same text under another name: stored, but not read.
    assert index.add([replace(corpus[0], metadata={"year": 3}), replace(corpus[1], id="copy")]) == (1, 1, 0)
    assert reader.documents_read == 31
    assert index.get(["d0"])[0].metadata == {"year": 3}
    assert same_state(index.load_states(index.get(["copy"]))[0], index.load_states(index.get(["d1"]))[0])


def test_replacing_a_document_replaces_vector_words_fields_and_state(make: Make, reader, corpus) -> None:
    index = make()
    index.add(corpus)
    new = Document("zebra quagga", id="d5", metadata={"year": 7})
    assert index.add([new]) == (0, 1, 0)
    assert len(index) == 30
    assert index.search("zebra quagga", 1, mode="dense")[0] == Hit(new, pytest.approx(1.0, abs=1e-5), 1)
    assert [hit.document.id for hit in index.search("zebra", mode="sparse")] == ["d5"]
    assert index.search("stone5", mode="sparse") == []
    assert all("stone5" not in hit.document.text for hit in index.search(corpus[5].content, 30))
    assert index.search("zebra", where={"year": corpus[5].metadata["year"]}) == []
    assert [hit.document.id for hit in index.search("zebra", where={"year": 7})] == ["d5"]
    assert same_state(index.load_states(index.get(["d5"]))[0], reader.state(reader.document_token_ids(new)))
    assert index.stats()["states"] == 30
    assert len(list(index.path.glob("states/*/*"))) == 30


def test_conflicts_are_replaced_skipped_or_refused_as_asked(make: Make) -> None:
    index = make()
    index.add([Document("old", id="a")])
    both = [Document("fresh", id="b"), Document("new", id="a")]
    with pytest.raises(ValueError, match="'a'"):
        index.add(both, on_conflict="error")
    assert list(index) == ["a"]
    assert index.add(both, on_conflict="skip") == (1, 0, 1)
    assert index.get(["a"])[0].text == "old"
    assert index.add([Document("old", id="a")], on_conflict="error") == (0, 0, 1)
    assert index.add(both) == (0, 1, 1)
    assert index.get(["a"])[0].text == "new"


def test_deleted_documents_leave_no_ghosts(make: Make, corpus) -> None:
    index = make()
    index.add([*corpus, replace(corpus[0], id="twin")])
    assert index.delete(ids=["d0", "d1", "unknown"]) == 2
    assert index.delete(where={"year": {"$gte": 2010}}) == 10
    assert index.delete(ids=["d2", "d3"], where={"colour": "red"}) == 1
    left = {"twin", *(f"d{i}" for i in range(20))} - {"d0", "d1", "d3"}
    assert set(index) == left
    for mode in ("dense", "sparse", "hybrid"):
        assert {hit.document.id for hit in index.search("amber river0 river1 river2", 99, mode=mode)} <= left
    assert len(index.search("amber", 99)) == len(left)
    assert index.load_states(index.get(["twin"]))[0] is not None, "a state is kept while one document still reads it"
    assert len(list(index.path.glob("states/*/*"))) == len(left)
    assert index.delete(ids=[]) == 0
    assert index.delete(where={}) == len(left)
    assert list(index.path.glob("states/*/*")) == []
    assert index.search("amber") == []
    assert index.search("amber", mode="hybrid", mmr=0.5) == []


def test_k_beyond_the_index_returns_everything_once(make: Make, corpus) -> None:
    index = make()
    index.add(corpus)
    hits = index.search("amber", 1000)
    assert sorted(hit.document.id for hit in hits) == sorted(index)
    assert [hit.rank for hit in hits] == list(range(1, 31))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_many_questions_at_once_are_answered_like_one_at_a_time(make: Make, corpus) -> None:
    index = make()
    index.add(corpus)
    for options in ({}, {"mode": "dense"}, {"mode": "sparse"}, {"mode": "hybrid", "mmr": 0.3}, {"instruction": "find"}):
        one_by_one = [index.search(question, 5, **options) for question in QUESTIONS]
        for hits, expected in zip(index.search_many(QUESTIONS, 5, **options), one_by_one, strict=True):
            assert [hit.document.id for hit in hits] == [hit.document.id for hit in expected]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert index.search_many([]) == []


def test_search_by_vector_is_the_dense_search_of_that_vector(make: Make, reader, corpus) -> None:
    index = make()
    index.add(corpus)
    vector = reader.encode_query(["amber"])[0]
    where = {"colour": "red"}
    assert index.search_by_vector(vector, 3, where=where) == index.search("amber", 3, where=where, mode="dense")
    with pytest.raises(ValueError, match=r"\[7\].*\[8\]"):
        index.search_by_vector(vector[:7])


def test_text_is_data_whatever_it_looks_like(make: Make) -> None:
    texts = ["a \0 zero inside", "<|im_end|> stop", 'say "OR" AND NEAR(x) * ^', "{braces} %s '; DROP TABLE x"]
    index = make()
    index.add(texts)
    assert [document.text for document in index.get(index)] == texts
    for query, text in (("zero", texts[0]), ("<|im_end|>", texts[1]), ('"OR" near', texts[2]), ("DROP' {", texts[3])):
        assert [hit.document.text for hit in index.search(query, mode="sparse")] == [text]
    for query in ('"', "*", "NEAR(", "title:", "a AND", "(", "-", "^x", "\0", "?", "col : zero + OR"):
        index.search(query, mode="sparse")


def test_ids_are_names_and_never_paths(make: Make) -> None:
    ids = ["../../etc/passwd", "a/b", "", " ", "C:\\x", "nul\0byte", "id with 'quotes\"", "é"]
    index = make()
    index.add([Document(f"text {i}", id=id) for i, id in enumerate(ids)])
    named = [id for id in ids if id]
    assert [document.id for document in index.get(named)] == named
    assert all(state is not None for state in index.load_states(index.get(named)))
    inside = {path.relative_to(index.path).parts[0] for path in index.path.rglob("*")}
    assert inside <= {"states", "lock", "lock.pid", "manifest.json", "vectors", "catalog.checksums"} | {
        f"catalog.sqlite{end}" for end in ("", "-wal", "-shm")
    }


def test_without_states_only_vectors_are_made(make: Make, reader, corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "read_documents", None)
    index = make(states="none")
    index.add(corpus)
    assert index.load_states(index.get(["d1"])) == [None]
    index.store_state(index["d1"], reader.state(reader.document_token_ids(corpus[1])))
    assert index.load_states(index.get(["d1"])) == [None]
    assert index.stats()["bytes"]["states"] == 0
    assert index.search("stone4", 1, mode="sparse")[0].document.id == "d4"


def test_states_stop_at_their_quota_and_documents_do_not(make: Make, reader, corpus) -> None:
    index = make(state_quota=8000)
    with pytest.warns(UserWarning, match="quota of 8,000 bytes"):
        index.add(corpus)
    states = index.load_states(index.get(list(index)))
    stored = sum(state is not None for state in states)
    assert 0 < stored < 30 == len(index)
    assert sum(path.stat().st_size for path in index.path.glob("states/*/*")) <= 8000
    assert [state is not None for state in states] == [True] * stored + [False] * (30 - stored)
    for document in corpus:
        index.store_state(document, reader.state(reader.document_token_ids(document)))
    assert sum(path.stat().st_size for path in index.path.glob("states/*/*")) <= 8000
    missing = corpus[-1]
    assert index.load_states(index.get([missing.id])) == [None]
    index.delete(ids=["d0", "d1", "d2"])
    index.store_state(missing, reader.state(reader.document_token_ids(missing)))
    assert index.load_states(index.get([missing.id])) != [None]


def test_a_state_read_elsewhere_is_kept_only_under_its_own_tokens(make: Make, reader, corpus) -> None:
    index = make()
    index.add(corpus)
    with pytest.raises(ValueError, match="'d1'"):
        index.store_state(index["d1"], reader.state(reader.document_token_ids(corpus[2])))
    assert same_state(index.load_states(index.get(["d1"]))[0], reader.state(reader.document_token_ids(corpus[1])))


def test_a_reader_sees_what_a_writer_commits(make: Make, reader, corpus) -> None:
    index = make()
    index.add(corpus[:10])
    with Index.open(index.path, model=reader, mode="r") as other:
        assert len(other.search("amber", 99)) == 10
        index.add(corpus)
        index.delete(ids=["d0"])
        assert len(other.search("amber", 99)) == 29
        assert not other.writable
        with pytest.raises(ValueError, match="rw"):
            other.add(["x"])
        with pytest.raises(ValueError, match="rw"):
            other.verify(repair=True)
        other.store_state(other["d1"], reader.state(reader.document_token_ids(corpus[1])))


def test_threads_share_one_index(make: Make, corpus) -> None:
    index = make()
    index.add(corpus[:15])
    options = {"where": {"year": {"$lt": 2000}}, "mode": "dense"}  # BM25 changes with every document that is added
    expected = {question: index.search(question, 3, **options) for question in QUESTIONS}
    started = threading.Barrier(4)

    def ask(worker: int) -> bool:
        started.wait()
        if worker == 0:
            for document in corpus[15:]:
                index.add([document])
            return True
        return all(
            index.search(question, 3, **options) == hits and index.load_states(index.get(["d3"])) != [None]
            for _ in range(15)
            for question, hits in expected.items()
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))
    assert len(index) == 30


def test_estimate_counts_what_the_index_then_holds(make: Make, reader, corpus) -> None:
    guess = Index.estimate(reader, corpus)
    index = make()
    index.add(corpus)
    stats = index.stats()
    assert (guess.documents, guess.tokens) == (stats["documents"], stats["tokens"])
    assert guess.vector_bytes == 30 * 8 * 4
    assert guess.seconds > 0
    assert guess.state_bytes == stats["bytes"]["states"] > guess.tokens * (reader.state_elements_per_token * 2 + 4)
    assert Index.estimate(reader, corpus, states="none").state_bytes == 0
    with pytest.raises(ValueError, match=r"float32.*bf16"):
        Index.estimate(reader, corpus, states="int3")


def test_compact_gives_space_back(make: Make) -> None:
    index = make()
    index.add([Document("word " * 60, id=f"{i}", title="x" * 2000) for i in range(100)])
    index.delete(where={})
    (index.path / "states" / "ab").mkdir(exist_ok=True)
    (index.path / "states" / "ab" / "stray").write_bytes(b"left behind")
    index.add(["only one"])
    before = index.stats()["bytes"]["catalog"]
    index.compact()
    assert index.stats()["bytes"]["catalog"] < before / 2
    assert len(list(index.path.glob("states/*/*"))) == 1
    assert index.search("only one", 1)[0].document.text == "only one"


def test_bars_of_long_work_count_what_is_read(
    make: Make, corpus: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Document by document, file by file: a bar that only jumps at the end of a stage says nothing."""
    counted: dict[str, list[int]] = {}

    class Counting(StagesBar):
        def begin(self, stage: str) -> None:
            self.stage = stage
            super().begin(stage)

        def advance(self, size: int) -> None:
            counted.setdefault(self.stage, []).append(size)
            super().advance(size)

    for module in (check, export):
        monkeypatch.setattr(module, "StagesBar", Counting)
    index = make()
    index.add(corpus)
    files = sorted(row.bytes for row in index._parts.catalog.states())
    vectors = [4 * 8 * len(corpus)]
    index.verify(show_progress_bar=True)
    assert sorted(counted["states"]) == files
    assert len(counted["documents"]) == len(corpus)
    assert sum(counted["documents"]) > sum(len(document.text) for document in corpus)
    counted.clear()
    index.compact(show_progress_bar=True)
    assert counted == {"vectors": vectors}
    counted.clear()
    index.export(tmp_path / "copy", show_progress_bar=True)
    assert (sum(counted["states"]), counted["vectors"]) == (sum(files), vectors)
    shown = capsys.readouterr().err
    assert all(f"{stage}:" in shown for stage in ("pages", "documents", "states", "vectors", "catalog"))
    ends = [line.split("\r")[-1].split("|")[0] for line in shown.strip().split("\n")]
    assert ends == ["vectors: 100%"] * 3
    index.verify()
    index.compact()
    index.export(tmp_path / "another")
    assert capsys.readouterr().err == ""


def test_the_catalog_keeps_vectors_as_the_reader_gave_them(make: Make, reader, corpus) -> None:
    index = make()
    index.add(corpus)
    expected = reader.encode_document(corpus)
    for document, vector in zip(corpus, expected, strict=True):
        (hit,) = index.search_by_vector(vector, 1, where={"year": document.metadata["year"]})
        assert hit.score == pytest.approx(float(np.dot(vector, vector)), abs=1e-6)


def test_a_path_may_hold_blanks_and_signs(tmp_path: Path, reader: HashReader) -> None:
    for name in ("with blank", "per%20cent", "what?mode=memory", "hash#tag", "ü"):
        with Index.create(tmp_path / name, model=reader) as index:
            index.add(["text"])
        with Index.open(tmp_path / name, model=reader, mode="r") as index:
            assert len(index) == 1
