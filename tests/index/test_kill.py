"""Kill -9 at any moment: what was acknowledged is there, what was begun is there or is not, and nothing else is.

Ten rounds by default; `make kill-loop` runs 200 (``GRITRAG_KILL_ROUNDS``).
"""

import os
import random
import signal
import time
from multiprocessing import get_context
from pathlib import Path

from hash_reader import HashReader
from workers import check, document, write_for_ever

from gritrag.index.index import Index

FORK = get_context("fork")
ROUNDS = int(os.environ.get("GRITRAG_KILL_ROUNDS", "10"))


def killed_writer(path: Path, seed: int, seconds: float) -> list[tuple[str, dict[str, int | None]]]:
    """All that a writer has told before it was killed, some time after its first commit."""
    here, there = FORK.Pipe(duplex=False)
    writer = FORK.Process(target=write_for_ever, args=(path, seed, there))
    writer.start()
    there.close()
    told = [here.recv()]
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if here.poll(left):
            told.append(here.recv())
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    while here.poll():
        try:
            told.append(here.recv())
        except EOFError:
            break
    return told


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    chance, reader = random.Random(ROUNDS), HashReader()
    Index.create(tmp_path / "index", model=reader, state_quota=6000).close()
    stored: dict[str, int] = {}
    for number in range(1, ROUNDS + 1):
        told = killed_writer(tmp_path / "index", number, chance.uniform(0.05, 0.8))
        changes = [what for stage, what in told if stage == "begin"]
        under_way = changes.pop() if told[-1][0] == "begin" else {}
        for each in changes:
            stored = after(stored, each)
        for mode in ("r", "rw"):  # a reader has to live with what is left, a writer cleans up
            with Index.open(tmp_path / "index", model=reader, mode=mode) as index:
                found = {entry.id: entry.metadata["version"] for entry in index.get(list(index))}
                assert found in (stored, after(stored, under_way)), f"round {number}"
                for each in index.get(list(index)):
                    check(index, reader, each)
                    assert each in [hit.document for hit in index.search(each.text, 40)]
        stored = found
        with Index.open(tmp_path / "index", model=reader, mode="rw") as index:
            assert index.verify() == ([], [])
            assert index.get(list(stored)) == [document(name, version) for name, version in stored.items()]


def after(stored: dict[str, int], changes: dict[str, int | None]) -> dict[str, int]:
    merged = {**stored, **changes}
    return {name: version for name, version in merged.items() if version is not None}
