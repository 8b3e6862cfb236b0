"""Seconds to the first token, from states and from text, on documents of an exact length.

The ways take turns on the same documents in the same order, so a ratio compares runs that are close in time; every
round draws another combination and another order of documents. These answer nothing, so whether the question lifts one
of them is chance: states are measured without lifting, and with a document lifted in every answer.
"""

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gritrag.answer import RAG
from gritrag.evaluate.bounds import KIND, bounds
from gritrag.evaluate.bounds import told as told_bounds
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.report import Section, Table, losing, ms
from gritrag.evaluate.statistics import Spread
from gritrag.evaluate.suite import Result, Results, Row, in_turn, run
from gritrag.evaluate.workload import Subject, documents_of
from gritrag.index.index import Index
from gritrag.index.rerank import check_rerank
from gritrag.model.grit import GritModel
from gritrag.plan import check_recompute
from gritrag.progress import ProgressBar
from gritrag.records import Hit

COMMAND = "bench first-token"
QUESTION = "Which of these places can be reached by ferry in winter?"
READ, CACHED = "doc-query", "doc-cache"
LIFTED = f"{CACHED}, lifted"
PARTS = ("retrieve", "load", "place", "forward", "first_token")
MEMORY = Path("/dev/shm")

Storage = Literal["disk", "memory"]


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        documents: per context.
        tokens: per document.
        codec: of the states.
        repetitions: rounds, after one to warm up.
        storage: where state files lie: on the ``disk`` (warm: the system keeps what was read) or in host ``memory``.
        seed: of documents and their order.
        recompute: shares of the documents' tokens that are read again: each a way of its own.
        rerank: so many candidates of the search are ranked from their states, as a way of its own; None for none.

    Raises:
        ValueError: this system has no file system in memory, another storage, a share outside of 0 to 1, or `rerank`
            below `documents`.
    """

    documents: int = 10
    tokens: int = 200
    codec: str = "bf16"
    repetitions: int = 9
    storage: Storage = "disk"
    seed: int = 0
    recompute: tuple[float, ...] = ()
    rerank: int | None = None

    def __post_init__(self) -> None:
        if self.storage not in ("disk", "memory"):
            raise ValueError(f"states lie on disk or in memory, not on {self.storage!r}")
        if self.storage == "memory" and not MEMORY.is_dir():
            raise ValueError(f"this system has no file system in memory ({MEMORY}); measure --storage disk")
        for share in self.recompute:
            check_recompute(share)
        check_rerank(self.rerank, self.documents)

    @property
    def place(self) -> str | None:
        """Where a temporary index is made; the system's choice where None."""
        return str(MEMORY) if self.storage == "memory" else None


def measure(model: GritModel, setting: Setting, folder: Path, results: Results) -> None:
    """Measure in a new index in `folder`."""
    needed = setting.documents * setting.tokens + len(model.prompts.question_ids(QUESTION, has_documents=True)) + 1
    if needed > model.context_length:
        raise ValueError(
            f"{setting.documents} documents of {setting.tokens} tokens and a question make {needed} tokens, this model "
            f"takes {model.context_length}; measure fewer or shorter documents"
        )
    pool = documents_of(model, setting.tokens, max(2 * setting.documents, setting.rerank or 0), setting.seed)
    draw = random.Random(setting.seed)
    chosen = {number: draw.sample(pool, setting.documents) for number in range(-1, setting.repetitions)}
    with Index.create(folder, model=model, states=setting.codec) as index:
        index.add(pool, show_progress_bar=True)
        stored = index.stats()["state_bytes_per_token"]
        rags = ways(index, setting)
        cells = [(way, with_search) for way, rag in rags.items() for with_search in (False, True)[bool(rag.rerank) :]]
        found: dict[tuple[str, bool], dict[str, list[float]]] = {cell: {part: [] for part in PARTS} for cell in cells}
        turns = list(in_turn(cells, 1, setting.repetitions))
        for number, (mode, with_search) in ProgressBar(turns, desc="measuring", unit="answer"):
            hits = [Hit(document, 1 / rank, rank) for rank, document in enumerate(chosen[number], start=1)]
            with lifting(model, mode == LIFTED):
                timings = rags[mode].ask(QUESTION, hits=None if with_search else hits, max_new_tokens=1).timings
            if number < 0:  # the first round warms up
                continue
            before = timings.retrieve + timings.load + timings.place
            spent = (timings.retrieve, timings.load, timings.place, timings.first_token - before, timings.first_token)
            for part, value in zip(PARTS, spent, strict=True):
                found[mode, with_search][part].append(value)
    rows = [
        ({"mode": mode, "search": with_search}, {"seconds": seconds, "state_bytes_per_token": stored})
        for (mode, with_search), seconds in found.items()
    ]
    results.write("first-token", rows)
    asked = len(model.prompts.question_ids(QUESTION, has_documents=True))
    least = bounds(model, setting.documents * setting.tokens, asked)
    results.write(KIND, [({}, {**least, "question_tokens": asked})])


def ways(index: Index, setting: Setting) -> dict[str, RAG]:
    """Ways to answer, by name."""
    k = setting.documents
    found = {mode: RAG(index, mode=mode, k=k) for mode in (READ, CACHED)}
    if may_lift(found[CACHED]):
        found[LIFTED] = RAG(index, k=k)
    found |= {f"{CACHED}, recompute {share:g}": RAG(index, k=k, recompute=share) for share in setting.recompute}
    if setting.rerank is not None:
        found[f"{CACHED}, {setting.rerank} ranked"] = RAG(index, k=k, rerank=setting.rerank)
    return found


def may_lift(rag: RAG) -> bool:
    """Whether answers of its model may lift documents, of which more than one is needed."""
    return rag.model.decoder.lifter is not None and rag.k > 1


@contextmanager
def lifting(model: GritModel, always: bool) -> Iterator[None]:
    """Meanwhile every question lifts a document, or none does."""
    lifter = model.decoder.lifter
    if lifter is not None:
        model.decoder.lifter = lifter.demanding(1e-9) if always else None
    try:
        yield
    finally:
        model.decoder.lifter = lifter


def sections(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """The table, how many times sooner states are, and what bounds them."""
    least = [row for row in rows if row["kind"] == KIND]
    rows = [row for row in rows if row["kind"] != KIND]
    of = {(row["cell"]["mode"], row["cell"]["search"]): row["seconds"] for row in rows}
    lines = [
        [f"{mode}, with search" if with_search else mode, *(ms(seconds[part]) for part in PARTS)]
        for (mode, with_search), seconds in of.items()
    ]
    told, lost = [], []
    for with_search, where in ((False, "from hits"), (True, "with embedding and search")):
        slow, fast = (of[mode, with_search]["first_token"] for mode in (READ, CACHED))
        told.append(f"{where}, {Spread.of_ratios(slow, fast).show('.1f')} times sooner")
        told += [
            f"{way} {Spread.of_ratios(slow, seconds['first_token']).show('.1f')} times sooner than text and "
            f"{Spread.of_ratios(seconds['first_token'], fast).show('.2f')} times as long as plain"
            for (way, searches), seconds in of.items()
            if searches == with_search and way not in (READ, CACHED)
        ]
        slower = sum(a < b for a, b in zip(slow, fast, strict=True))
        if slower:
            lost.append(f"{where}: in {slower} of {len(fast)} rounds the first token came later from states")
    setting = facts["settings"]
    text = (
        f"First token of {setting['documents']} x {setting['tokens']} tokens, states in {setting['codec']} "
        f"({rows[0]['state_bytes_per_token']:,.0f} bytes per token), median [quartiles] of {setting['repetitions']} "
        f"rounds. doc-cache against doc-query: {'; '.join(told)}."
    )
    hits = of[CACHED, False]["first_token"]
    text = " ".join([text, *(told_bounds(row, hits, row["question_tokens"]) for row in least)])
    columns = ["way", *(f"{part.replace('_', ' ')}, ms" for part in PARTS)]
    return [
        Section("First token", text, (), [Table(columns, lines)]),
        losing(lost, "Rounds in which answering from states was the slower way."),
    ]


def main(subject: Subject, setting: Setting | None = None) -> Result:
    """Measure a model, or random weights of a geometry.

    Raises:
        ValueError: no such model or geometry, weights that do not fit into memory, or a context that is too long.
    """
    setting = setting or Setting()
    loaded = subject.load()
    asked = len(loaded.prompts.question_ids(QUESTION, has_documents=True))
    facts = {"model": subject.name, **machine_of(loaded), "question_tokens": asked}

    def work(results: Results) -> None:
        with tempfile.TemporaryDirectory(prefix="gritrag-bench-", dir=setting.place) as folder:
            measure(loaded, setting, Path(folder) / "index", results)

    return run(COMMAND, asdict(setting), facts, work)
