"""Processes that work on one index at the same time: a writer that tells what it has been promised, and readers."""

import random
import resource
import time
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from hash_reader import HashReader

from gritrag.index.index import Index
from gritrag.index.storage.states import StateFileWarning
from gritrag.records import Document

NAMES = [f"n{i}" for i in range(40)]
Promise = tuple[str, Mapping[str, int | None]]


def document(name: str, version: int) -> Document:
    """Name and version alone say what an answer has to be. Versions share words, and some share all of them."""
    words = f"common {name} v{version // 2} " + "filler " * (version % 5)
    return Document(words.strip(), id=name, metadata={"version": version, "even": version % 2 == 0})


def check(index: Index, reader: HashReader, found: Document) -> None:
    """A document that was found is whole, and fits its own state."""
    expected = document(found.id, found.metadata["version"])
    assert found == expected, f"{found} is none that was ever written"
    with warnings.catch_warnings():
        warnings.simplefilter("error", StateFileWarning)
        (state,) = index.load_states([found])
    if state is not None:
        wanted = reader.state(reader.document_token_ids(found))
        assert state.token_ids.tolist() == wanted.token_ids.tolist()
        assert (state.keys.float() - wanted.keys.bfloat16().float()).abs().max() == 0


def write_for_ever(path: Path, seed: int, progress: Connection) -> None:
    """Adds, replaces, deletes, compacts: tells what it is about to do to which names, and then that it is done."""
    chance, reader = random.Random(seed), HashReader()
    version = seed * 1_000_000
    with Index.open(path, model=reader, mode="rw") as index:
        while True:
            version += 1
            names = chance.sample(NAMES, chance.randint(1, 6))
            act = chance.choice(["add", "add", "add", "delete", "where", "compact", "reopen"])
            changes: dict[str, int | None] = {}
            if act == "add":
                changes = dict.fromkeys(names, version)
            elif act == "delete":
                changes = dict.fromkeys(names)
            elif act == "where":
                changes = {name: None for name in index if not index.get([name])[0].metadata["even"]}
            progress.send(("begin", changes))
            if act == "add":
                index.add([document(name, version) for name in names])
            elif act == "delete":
                index.delete(ids=names)
            elif act == "where":
                index.delete(where={"even": False})
            elif act == "compact":
                index.compact()
            else:
                index.close()
                index = Index.open(path, model=reader, mode="rw")
            progress.send(("done", changes))


def read_until(path: Path, seed: int, seconds: float, progress: Connection) -> None:
    """Searches and loads for some time; tells how many answers were checked, and how memory grew after the start."""
    chance, reader = random.Random(seed), HashReader()
    answers, started, memory = 0, time.monotonic(), 0
    with Index.open(path, model=None if seed % 2 else reader, mode="r") as index:
        while (now := time.monotonic() - started) < seconds:
            where = chance.choice([None, {"even": True}, {"version": {"$gt": 0}}])
            vector = reader.encode_query([f"common {chance.choice(NAMES)}"])[0]
            words = f"common {chance.choice(NAMES)}"
            hits = index.search_by_vector(vector, 5, where=where) + index.search(words, 5, mode="sparse", where=where)
            for hit in hits:
                assert where != {"even": True} or hit.document.metadata["even"]
                check(index, reader, hit.document)
            with index.snapshot():
                assert index.get(list(index)) == [index.get([name])[0] for name in index], "one snapshot, one truth"
            answers += 1
            if not memory and now > seconds / 3:
                memory = resident()
    progress.send((answers, resident() - memory))


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
