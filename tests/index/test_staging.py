"""What was staged becomes the index that adding would have made; what was damaged meanwhile is read again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hash_reader import HashReader

from gritrag.documents.ids import claim_of
from gritrag.index.commit import Commit, Row
from gritrag.index.documents import check_documents
from gritrag.index.index import Index
from gritrag.index.origins import ids_of
from gritrag.index.staging import Staging
from gritrag.records import Document

Make = Callable[..., Index]


@pytest.fixture
def notes(corpus: list[Document], tmp_path: Path) -> list[Document]:
    """As they come from files, of which each has three."""
    documents = []
    for number, document in enumerate(corpus):
        name = f"{number // 3}.jsonl"
        (tmp_path / name).write_text("rows")
        origin = {"source_root": str(tmp_path), "source_file": name}
        documents.append(replace(document, metadata={**document.metadata, **origin}))
    return documents


def staged(index: Index, reader: HashReader, documents: Sequence[Document]) -> tuple[Staging, list[Row]]:
    """Read in parts of seven, as actors do, and the rows that they give back."""
    staging = Staging(index.path, None, "float32")
    rows: list[Row] = []
    for start in range(0, len(documents), 7):
        checked, _ = check_documents(reader, documents[start : start + 7])
        readings = reader.read_documents([each.document for each in checked])
        part = staging.write(dict(zip([each.key for each in checked], readings, strict=True)))
        for each in checked:
            content = {"id": each.id, "title": each.document.title, "text": each.document.text}
            content |= {"metadata": each.metadata, "token_ids": each.token_ids.tobytes(), "key": each.key}
            claim = claim_of(each.document)
            rows.append({**content, "part": part, "reason": "", "path": "f", "of": claim.id, "content": claim.content})
    return staging, rows


def test_a_commit_makes_the_index_that_adding_makes(make: Make, reader: HashReader, notes: list[Document]) -> None:
    plain, index = make("plain", states="float32"), make("in [brackets]*", states="float32")
    plain.add(notes)
    staging, rows = staged(index, reader, notes)
    assert len(index) == 0
    assert index.verify() == ([], [])
    commit = Commit(index._parts, staging, {}, ids_of(index))
    assert commit.run(rows) == (30, 0, 0)
    staging.clear()
    assert not (index.path / "staging").exists()
    assert list(index) == list(plain)
    assert index.get(list(index)) == notes
    assert index.digest == plain.digest
    for found, expected in zip(index.load_states(notes), plain.load_states(notes), strict=True):
        assert torch.equal(found.keys, expected.keys)
    assert index.verify() == ([], [])
    again = Commit(index._parts, staging, {}, ids_of(index))
    assert again.run(rows) == (0, 0, 30)


def test_what_is_staged_is_found_and_nothing_else_is(make: Make, reader: HashReader, notes: list[Document]) -> None:
    index = make(states="float32")
    rows = staged(index, reader, notes)[1]
    other = Staging(index.path, None, "float32")
    assert other.known() == {row["key"]: row["part"] for row in rows}
    assert other.find([row["key"] for row in rows[:7]]) == rows[0]["part"]
    assert other.find([row["key"] for row in rows[:6]]) is None
    path = index.path / "staging" / "parts" / rows[0]["part"]
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert Staging(index.path, None, "float32").known().keys() == {row["key"] for row in rows[7:]}


def test_what_is_staged_twice_is_there_once(make: Make, reader: HashReader, notes: list[Document]) -> None:
    """As by two processes, or again after one died. With three notes the chance that all of ten are in one order by
    chance is small."""
    index = make(states="float32")
    staging, _ = staged(index, reader, notes[:7])
    before = sorted(path.name for path in (index.path / "staging").rglob("*.safetensors"))
    for _ in range(10):
        staged(index, reader, notes[:7])
    assert sorted(path.name for path in (index.path / "staging").rglob("*.safetensors")) == before
    assert len(before) == 8
    found = staging.part(next((index.path / "staging" / "parts").iterdir()).name)
    assert len(found.vectors) == len(found.rows) == 7


def test_a_state_that_is_lost_is_read_when_it_is_needed(make: Make, reader: HashReader, notes: list[Document]) -> None:
    index = make(states="float32")
    staging, rows = staged(index, reader, notes)
    states = sorted((index.path / "staging" / "states").rglob("*.safetensors"))
    states[0].unlink()
    states[1].write_bytes(b"torn")
    Commit(index._parts, staging, {}, ids_of(index)).run(rows)
    assert index.load_states(notes).count(None) == 2
    assert index.verify() == ([], [])
    vectors = np.stack(index.load_vectors(notes))
    assert np.array_equal(vectors, reader.encode_document(notes))


def test_documents_whose_ids_are_taken_are_left_out(make: Make, reader: HashReader, notes: list[Document]) -> None:
    index = make(states="float32")
    index.add([Document("from nowhere", id="d5")])
    staging, rows = staged(index, reader, notes)
    last = {**rows[1], "path": "another file", "text": "another", "content": "another"}
    commit = Commit(index._parts, staging, {}, ids_of(index))
    assert commit.run([*rows, last]) == (29, 0, 0)
    assert index["d5"] == Document("from nowhere", id="d5")
    assert index.get(["d1", "d29"]) == [notes[1], notes[29]]
    assert [(str(each.path), each.extent) for each in commit.skipped] == [("f", "part"), ("another file", "part")]
    reasons = [each.reason for each in commit.skipped]
    assert "'d5' is that of a document in this index that came from no file" in reasons[0]
    assert "'d1' is that of an earlier document, in 0.jsonl" in reasons[1]


def test_of_a_document_that_clashes_no_chunk_is_taken(make: Make, reader: HashReader, notes: list[Document]) -> None:
    """Not even one whose own id is free: here "d1" is a chunk of the document "d0", which an earlier file has."""
    index = make(states="float32")
    staging, rows = staged(index, reader, notes[:3])
    earlier = {**rows[2], "id": "d0", "of": "d0", "content": "another"}
    rows[1] |= {"of": "d0", "content": rows[0]["content"]}
    commit = Commit(index._parts, staging, {}, ids_of(index))
    assert commit.run([earlier | {"path": "first"}, rows[0], rows[1], rows[2]]) == (2, 0, 0)
    assert sorted(index) == ["d0", "d2"]
    assert len(commit.skipped) == 1


def test_what_files_give_no_more_is_outdated(make: Make, reader: HashReader, notes: list[Document]) -> None:
    index = make(states="float32")
    staging, rows = staged(index, reader, notes)
    Commit(index._parts, staging, {}, ids_of(index)).run(rows)
    index.add([Document("of no file", id="mine")])
    Path(notes[29].metadata["source_root"], "9.jsonl").unlink()
    later = Commit(index._parts, staging, {}, ids_of(index))
    later.run(
        [row for row in rows[:9] if row["id"] not in ("d4", "d8")]
        + [{**rows[8], "reason": "broken", "path": "", "extent": ""}]
    )
    assert sorted(later.outdated()) == ["d27", "d28", "d29", "d4"], "a file with a broken row keeps what it gave"
