"""An index is a dictionary that can be searched: whatever is done to both, both hold the same."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from hash_reader import HashReader
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gritrag.index.index import Index
from gritrag.records import Document

READER = HashReader()
IDS = st.sampled_from([f"id{i}" for i in range(8)])
WORDS = ["amber", "birch", "cedar", "delta"]
FACTS = st.fixed_dictionaries({}, optional={"year": st.integers(0, 4), "kind": st.sampled_from(["x", "y", None])})
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
DOCUMENTS = st.builds(Document, text=TEXTS, id=IDS, title=st.sampled_from(["", "Title"]), metadata=FACTS)
BATCHES = st.lists(DOCUMENTS, min_size=1, max_size=5, unique_by=lambda document: document.id)
FILTERS: dict[str, tuple[dict[str, Any], Any]] = {
    "all": ({}, lambda facts: True),
    "year": ({"year": {"$gte": 2}}, lambda facts: facts.get("year", -1) >= 2),
    "not x": ({"kind": {"$ne": "x"}}, lambda facts: facts.get("kind") != "x"),
    "no kind": ({"kind": None}, lambda facts: facts.get("kind") is None),
    "both": (
        {"kind": "y", "year": {"$in": [0, 1]}},
        lambda facts: facts.get("kind") == "y" and facts.get("year") in (0, 1),
    ),
}


class Both(RuleBasedStateMachine):
    """The index, and a dictionary from id to document beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "index"
        self.index = Index.create(self.path, model=READER, state_quota=4000)
        self.plain: dict[str, Document] = {}
        warnings.simplefilter("ignore", UserWarning)  # the quota is small on purpose

    def teardown(self) -> None:
        self.index.close()
        self.folder.cleanup()

    @rule(batch=BATCHES, on_conflict=st.sampled_from(["replace", "skip", "error"]))
    def add(self, batch: list[Document], on_conflict: Any) -> None:
        new = {document.id: document for document in batch}
        known = {id for id, document in new.items() if id in self.plain}
        differing = {id for id in known if self.plain[id] != new[id]}
        try:
            report = self.index.add(batch, on_conflict=on_conflict)
        except ValueError:
            assert (on_conflict, bool(differing)) == ("error", True)
            return
        assert on_conflict != "error" or not differing
        replaced = differing if on_conflict == "replace" else set()
        assert report == (len(new) - len(known), len(replaced), len(known) - len(replaced))
        self.plain |= {id: document for id, document in new.items() if id not in known or id in replaced}

    @rule(ids=st.lists(IDS, max_size=4))
    def delete(self, ids: list[str]) -> None:
        gone = set(ids) & set(self.plain)
        assert self.index.delete(ids=ids) == len(gone)
        self.plain = {id: document for id, document in self.plain.items() if id not in gone}

    @rule(name=st.sampled_from(sorted(FILTERS)))
    def delete_where(self, name: str) -> None:
        where, holds = FILTERS[name]
        kept = {id: document for id, document in self.plain.items() if not holds(document.metadata)}
        assert self.index.delete(where=where) == len(self.plain) - len(kept)
        self.plain = kept

    @rule(name=st.sampled_from(sorted(FILTERS)), mode=st.sampled_from(["dense", "sparse", "hybrid"]))
    def search(self, name: str, mode: str) -> None:
        where, holds = FILTERS[name]
        hits = self.index.search("amber delta", 50, where=where, mode=mode)
        words = {"amber", "delta"} if mode == "sparse" else set(WORDS)
        wanted = {id for id, each in self.plain.items() if holds(each.metadata) and words & set(each.text.split())}
        assert {hit.document.id for hit in hits} == wanted
        assert all(self.plain[hit.document.id] == hit.document for hit in hits)

    @rule(ids=st.lists(IDS, min_size=1, max_size=4))
    def ask(self, ids: list[str]) -> None:
        known = [id for id in ids if id in self.plain]
        for id, state in zip(known, self.index.load_states(self.index.get(known)), strict=True):
            expected = READER.state(READER.document_token_ids(self.plain[id]))
            if state is None:
                self.index.store_state(self.plain[id], expected)
            else:
                assert state.keys.float().equal(expected.keys.bfloat16().float())

    @rule(mode=st.sampled_from(["rw", "r"]))
    def reopen(self, mode: Any) -> None:
        self.index.close()
        if mode == "r":
            with Index.open(self.path, model=READER, mode="r") as index:
                assert index.get(list(index)) == [self.plain[id] for id in index]
        self.index = Index.open(self.path, model=READER, mode="rw")

    @precondition(lambda self: self.plain)
    @rule()
    def compact(self) -> None:
        self.index.compact()

    @invariant()
    def hold_the_same(self) -> None:
        assert {document.id: document for document in self.index.get(list(self.index))} == self.plain
        assert len(self.index) == len(self.plain)
        stored = self.index.stats()["bytes"]["states"]
        assert stored == sum(path.stat().st_size for path in self.path.glob("states/*/*")) <= 4000


Both.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestBoth = Both.TestCase
