"""An interrupt (Ctrl-C) comes at any moment, also while SQLite works; it is raised as soon as that is done."""

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hash_reader import HashReader

from gritrag.index.index import Index
from gritrag.index.storage import schema
from gritrag.index.storage.engines import FaissFlat
from gritrag.model import arena
from gritrag.records import Document

READER = HashReader()
DOCUMENTS = [Document("amber birch", id="a"), Document("birch cedar", id="b"), Document("elm fir", id="c")]

CALLS: dict[str, Callable[[Index], object]] = {
    "add": lambda index: index.add([Document("grape hazel", id="d")]),
    "replace": lambda index: index.add([Document("grape hazel", id="c")]),
    "delete": lambda index: index.delete(ids=["c"]),
    "note": lambda index: index.set_note("name", "value"),
    "compact": lambda index: index.compact(),
    "repair": lambda index: index.verify(repair=True),
    "search": lambda index: index.search("birch"),
    "get": lambda index: index.load_states(DOCUMENTS),
}
STATEMENTS = ("BEGIN", "INSERT", "DELETE", "COMMIT", "ROLLBACK", "VACUUM", "PRAGMA wal_checkpoint")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    with Index.create(tmp_path / "index", model=READER) as made:
        made.add(DOCUMENTS)
    return Index.open(tmp_path / "index", model=READER, mode="rw")


def interrupt_after(index: Index, statement: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Once, behind the next statement that begins so; the answer says whether there was one."""
    connection = index._parts.catalog._connection
    execute, seen = connection.execute, []

    def interrupted(sql: str, *parameters: Any) -> Any:
        found = execute(sql, *parameters)
        if sql.startswith(statement) and not seen:
            seen.append(sql)
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(connection, "execute", interrupted)
    return lambda: bool(seen)


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_harms_no_index(
    index: Index, call: str, statement: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A commit whose checksums were not written, and was folded into the file all the same, made all of it unreadable;
    a transaction that stayed open kept writers out, and old contents in sight."""
    was_interrupted = interrupt_after(index, statement, monkeypatch)
    try:
        CALLS[call](index)
    except KeyboardInterrupt:
        pass
    else:
        assert not was_interrupted() or statement == "ROLLBACK"
    with Index.open(tmp_path / "index", model=READER) as reader:
        assert set("ab") <= set(reader)
    with suppress(KeyboardInterrupt):  # which may be the first to do so
        index.close()
    with Index.open(tmp_path / "index", model=READER, mode="rw") as again:
        assert set("ab") <= set(again) <= set("abcd")
        assert again.verify().problems == []
        assert again.add([Document("ivy juniper", id="e")]).added == 1


@pytest.mark.parametrize("statement", ["BEGIN", "COMMIT", "INSERT"])
def test_an_index_goes_on_after_an_interrupt(index: Index, statement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(index, statement, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        index.add([Document("grape hazel", id="d")])
    index.add([Document("grape hazel", id="d"), Document("ivy juniper", id="e")])
    assert set(index) == set("abcde")
    assert index.search("ivy juniper", k=1, mode="dense")[0].document.id == "e"
    assert index.delete(ids=["e"]) == 1
    index.close()


def test_a_snapshot_that_an_interrupt_kept_open_is_ended_by_the_next_call(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = index._parts.catalog._connection

    def interrupted(sql: str, *parameters: Any) -> Any:
        if sql == "ROLLBACK":
            monkeypatch.undo()
            raise KeyboardInterrupt
        return execute(sql, *parameters)

    execute = connection.execute
    monkeypatch.setattr(connection, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.search("birch")
    assert index.add([Document("grape hazel", id="d")]).added == 1
    index.close()


def test_what_was_interrupted_leaves_no_file_of_what_is_gone(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who says it once more deletes nothing, for the row is gone, but the state of the document was there."""
    states = lambda: len(list((index.path / "states").rglob("*.safetensors")))  # noqa: E731
    assert states() == 3
    interrupt_after(index, "COMMIT", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        index.delete(ids=["c"])
    assert index.delete(ids=["c"]) == 0
    assert states() == 2
    index.close()


def test_an_interrupt_in_a_function_that_sqlite_calls_is_no_damage(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index.close()

    def interrupted(text: str) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(schema, "searchable", interrupted)
        with Index.open(tmp_path / "index", model=READER, mode="rw") as again, pytest.raises(KeyboardInterrupt):
            again.add([Document("grape hazel", id="d")])
    with Index.open(tmp_path / "index", model=READER) as reader:
        assert set(reader) == set("abc")


def test_a_turn_to_write_that_is_interrupted_is_given_back(index: Index) -> None:
    class Interrupted:
        def __init__(self, lock: Any) -> None:
            self.lock = lock

        def acquire(self, **options: Any) -> bool:
            self.lock.acquire(**options)
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> Any:
            return getattr(self.lock, name)

    lock = index._parts._writing
    index._parts._writing = Interrupted(lock)
    with pytest.raises(KeyboardInterrupt):
        index.add(["grape hazel"])
    index._parts._writing = lock
    assert in_time(lambda: index.add(["grape hazel"])).added == 1
    index.close()


def test_documents_may_be_added_while_others_are_made(index: Index) -> None:
    """The documents of a call are taken in one by one, and who makes them may write too."""

    def documents() -> Any:
        index.add([Document("grape hazel", id="d")])
        yield Document("ivy juniper", id="e")

    index.add(documents())
    assert set(index) == set("abcde")
    index.close()


def test_vectors_that_were_half_taken_in_are_taken_in_anew(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.search("birch", mode="dense")
    index.add([Document("grape hazel", id="d")])
    with monkeypatch.context() as patch:
        add = FaissFlat.add

        def half(self: FaissFlat, rows: Any, vectors_ND: Any) -> None:
            add(self, rows, -vectors_ND)
            raise KeyboardInterrupt

        patch.setattr(FaissFlat, "add", half)
        with pytest.raises(KeyboardInterrupt):
            index.search("birch", mode="dense")
    (best,) = index.search("grape hazel", k=1, mode="dense")
    assert (best.document.id, round(best.score, 4)) == ("d", 1.0)
    index.close()


def test_an_interrupt_while_memory_comes_back_keeps_no_answer_waiting() -> None:
    """At every line of the arena, one after the other."""
    for line in range(40):
        pieces, left = arena.Arena(), [line]

        def tracing(frame: FrameType, event: str, argument: object, left: list[int] = left) -> Any:
            if frame.f_code.co_filename != arena.__file__:
                return None
            if event == "line":
                left[0] -= 1
                if left[0] == -1:
                    raise KeyboardInterrupt
            return tracing

        before = sys.gettrace()
        sys.settrace(tracing)
        try:
            for _ in range(3):
                taken = pieces.take(10)
                del taken
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert in_time(lambda pieces=pieces: len(pieces.take(10))) == 10


def in_time(call: Callable[[], Any], seconds: float = 20) -> Any:
    """What a call in another thread gives; an error where it waits for ever."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it waits for what nobody gives back"
    return found[0]
