"""What is deleted is gone from the disk: no file of the index holds a byte of it when `delete` returns."""

import random
import string
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hash_reader import HashReader, word_ids

from gritrag.index.index import Index
from gritrag.records import Document

Make = Callable[..., Index]


def raw(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def word(name: str) -> str:
    """Twelve capitals that begin like no other word, because the full-text index stores of a term what is new in it."""
    return "".join(random.Random(name).choices(string.ascii_uppercase, k=12))


def secret(number: int) -> Document:
    """A document of words that no other has, of very different lengths."""
    words = " ".join(word(f"{number} word {i}") for i in range(2 + number % 7 * 9))
    facts = {"secret": word(f"{number} fact")}
    return Document(words, id=word(f"{number} id"), title=word(f"{number} title"), metadata=facts)


def traces(reader: HashReader, document: Document) -> Iterator[tuple[str, bytes]]:
    """What could tell of a document: its texts as they are, its words as the full-text index has them, its numbers."""
    for part in (document.title, *document.text.split()):
        yield part, part.encode()
        yield f"term {part}", part.lower().encode()[3:9]
    yield "fact", document.metadata["secret"].encode()
    vector = reader.encode_document([document])[0]
    yield "vector", vector.astype("<f4").tobytes()[:12]
    ids = reader.document_token_ids(document)[1:]
    yield "token ids", struct.pack(f"<{len(ids)}i", *ids)[:8]
    state = reader.state(reader.document_token_ids(document))
    yield "keys", state.keys.bfloat16().view(torch.uint8).numpy().tobytes()[:16]


def found_in(root: Path, reader: HashReader, document: Document) -> set[str]:
    data = raw(root)
    return {name for name, trace in traces(reader, document) if trace in data}


@pytest.mark.parametrize("way", ["ids", "where", "replace"])
@pytest.mark.parametrize("reopened", [False, True])
def test_no_file_holds_a_byte_of_what_was_deleted(make: Make, reader: HashReader, way: str, reopened: bool) -> None:
    index = make()
    index.add([secret(number) for number in range(40)])
    index.search("anything", 5)
    if reopened:
        index.close()
        index = Index.open(index.path, model=reader, mode="rw")
    gone = [secret(number) for number in range(0, 40, 3)]
    for document in gone:
        everything = {name for name, _ in traces(reader, document)}
        assert found_in(index.path, reader, document) == everything, "the search finds what is there"
    if way == "ids":
        index.delete(ids=[document.id for document in gone])
    elif way == "where":
        index.delete(where={"secret": {"$in": [document.metadata["secret"] for document in gone]}})
    else:
        index.add([Document("other", id=document.id) for document in gone])
    for _ in range(2):
        for document in gone:
            assert found_in(index.path, reader, document) == set()
            assert way == "replace" or document.id.encode() not in raw(index.path)
        kept = secret(1)
        assert index.get([kept.id]) == [kept]
        index.close()
        index = Index.open(index.path, model=reader, mode="rw")
    index.close()


def test_many_small_deletes_leave_nothing_between_pages(make: Make, reader: HashReader) -> None:
    """Rows move from page to page as a tree is rebalanced; where they have been, nothing may stay."""
    chance = random.Random(0)
    index = make()
    alive: dict[int, Document] = {}
    for step in range(15):
        for number in range(step * 12, step * 12 + 12):
            alive[number] = secret(number)
        index.add(list(alive.values()), on_conflict="skip")
        gone = [alive.pop(number) for number in chance.sample(sorted(alive), 8)]
        index.delete(ids=[document.id for document in gone])
        data = raw(index.path)
        for document in gone:
            assert not [name for name, trace in traces(reader, document) if trace in data], f"step {step}"
    assert len(index) == len(alive)


def test_a_state_stays_for_the_other_document_that_reads_the_same(make: Make, reader: HashReader) -> None:
    index = make()
    index.add([Document("same words", id="first"), Document("same words", id="second")])
    index.delete(ids=["first"])
    assert index.load_states(index.get(["second"]))[0] is not None
    index.delete(ids=["second"])
    assert list(index.path.glob("states/*/*")) == []
    assert struct.pack("<2i", *word_ids("same words")) not in raw(index.path)


def test_a_writer_that_dies_while_deleting_leaves_its_garbage_to_the_next(
    make: Make, reader: HashReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the commit and the removal of files is a moment; the next who writes finishes the work."""
    index = make()
    index.add([secret(number) for number in range(6)])
    index.close()
    index = Index.open(index.path, model=reader, mode="rw")
    with monkeypatch.context() as patch:
        patch.setattr("gritrag.index.storage.states.remove_files", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.delete(ids=[secret(2).id])
    assert found_in(index.path, reader, secret(2)) >= {"keys"}
    index._parts.catalog.close()
    index._parts.lock._lock.release()  # dead: its lock is free and `lock.pid` is still there
    with Index.open(index.path, model=reader, mode="rw") as again:
        assert len(again) == 5
        assert found_in(index.path, reader, secret(2)) == set()


def test_a_reader_that_holds_the_log_is_spoken_of(
    make: Make, reader: HashReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gritrag.index.storage.schema.BUSY_MS", 10)
    index = make()
    index.add([secret(1), secret(2)])
    with Index.open(index.path, model=reader, mode="r") as other:
        with other.snapshot():
            assert len(other) == 2
            with pytest.warns(UserWarning, match=r"catalog\.sqlite-wal"):
                index.delete(ids=[secret(1).id])
            assert len(other) == 2
        assert len(other) == 1
    index.delete(where={"secret": "no such"})
    assert found_in(index.path, reader, secret(1)) == set()
