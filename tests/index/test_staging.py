"""What was staged becomes the index that adding would have made; what was damaged meanwhile is read again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hash_reader import HashReader

from gritrag.index.commit import Commit, Row
from gritrag.index.documents import check_documents
from gritrag.index.index import Index
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
            rows.append({**content, "part": part, "reason": ""})
    return staging, rows


def test_a_commit_makes_the_index_that_adding_makes(make: Make, reader: HashReader, notes: list[Document]) -> None:
    plain, index = make("plain", states="float32"), make("in [brackets]*", states="float32")
    plain.add(notes)
    staging, rows = staged(index, reader, notes)
    assert len(index) == 0
    assert index.verify() == ([], [])
    commit = Commit(index._parts, staging, {})
    assert commit.run(rows) == (30, 0, 0)
    staging.clear()
    assert not (index.path / "staging").exists()
    assert list(index) == list(plain)
    assert index.get(list(index)) == notes
    assert index.digest == plain.digest
    for found, expected in zip(index.load_states(notes), plain.load_states(notes), strict=True):
        assert torch.equal(found.keys, expected.keys)
    assert index.verify() == ([], [])
    again = Commit(index._parts, staging, {})
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


def test_a_state_that_is_lost_is_read_when_it_is_needed(make: Make, reader: HashReader, notes: list[Document]) -> None:
    index = make(states="float32")
    staging, rows = staged(index, reader, notes)
    states = sorted((index.path / "staging" / "states").rglob("*.safetensors"))
    states[0].unlink()
    states[1].write_bytes(b"torn")
    Commit(index._parts, staging, {}).run(rows)
    assert index.load_states(notes).count(None) == 2
    assert index.verify() == ([], [])
    vectors = np.stack(index.load_vectors(notes))
    assert np.array_equal(vectors, reader.encode_document(notes))


def test_one_id_with_two_contents_and_other_roots_undo_all(
    make: Make, reader: HashReader, notes: list[Document]
) -> None:
    index = make(states="float32")
    staging, rows = staged(index, reader, notes)
    with pytest.raises(ValueError, match="'d1' is the id of two documents"):
        Commit(index._parts, staging, {}).run([*rows, {**rows[1], "text": "another"}])
    assert len(index) == 0
    index.add([Document("from nowhere", id="d5")])
    with pytest.raises(ValueError, match="'d5' is that of a document from no folder"):
        Commit(index._parts, staging, {}).run(rows)
    assert list(index) == ["d5"]


def test_what_files_give_no_more_is_outdated(make: Make, reader: HashReader, notes: list[Document]) -> None:
    index = make(states="float32")
    staging, rows = staged(index, reader, notes)
    Commit(index._parts, staging, {}).run(rows)
    index.add([Document("of no file", id="mine")])
    Path(notes[29].metadata["source_root"], "9.jsonl").unlink()
    later = Commit(index._parts, staging, {})
    later.run(
        [row for row in rows[:9] if row["id"] not in ("d4", "d8")]
        + [{**rows[8], "reason": "broken", "path": "", "extent": ""}]
    )
    assert sorted(later.outdated()) == ["d27", "d28", "d29", "d4"], "a file with a broken row keeps what it gave"
