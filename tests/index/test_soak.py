"""Two readers and a writer at once: ten seconds by default, a minute by `make soak` (``GRITRAG_SOAK_SECONDS``)."""

import os
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
from hash_reader import HashReader
from workers import NAMES, document, read_until, write_for_ever

from gritrag.index.index import Index

FORK = get_context("fork")
SECONDS = float(os.environ.get("GRITRAG_SOAK_SECONDS", "10"))
GROWTH = 24 << 20  # bytes; a leaked connection, state or snapshot for each answer would be many times that


def test_two_readers_and_a_writer_never_see_anything_wrong(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with Index.create(path, model=HashReader(), state_quota=20_000) as index, pytest.warns(UserWarning, match="quota"):
        index.add([document(name, 0) for name in NAMES])
    here, there = FORK.Pipe(duplex=False)
    writer = FORK.Process(target=write_for_ever, args=(path, 1, there))
    writer.start()
    there.close()
    readers = []
    for seed in (1, 2):
        results, result = FORK.Pipe(duplex=False)
        process = FORK.Process(target=read_until, args=(path, seed, SECONDS, result))
        process.start()
        readers.append((process, results))
    commits = 0
    while any(process.is_alive() for process, _ in readers):
        if here.poll(0.1):
            commits += here.recv()[0] == "done"
    assert writer.is_alive(), "the writer has met an error"
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    for process, results in readers:
        assert process.exitcode == 0, "a reader has met an error"
        answers, growth = results.recv()
        assert answers > 2 * SECONDS
        assert growth < GROWTH
    assert commits > 2 * SECONDS
    with Index.open(path, model=HashReader(), mode="rw") as index:
        index.verify(repair=True)
        assert index.verify() == ([], [])
