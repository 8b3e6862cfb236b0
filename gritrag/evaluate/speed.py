"""The grid: how long an answer takes, in every mode, from contexts of an exact length.

A group is what has the same context: its cells take turns, round by round, on the same new question, so each ratio
compares runs that are close in time.
"""

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from gritrag.answer import RAG
from gritrag.config import Recipe
from gritrag.corpus import questions
from gritrag.evaluate.machine import drop_from_page_cache, files_below, peak_memory
from gritrag.evaluate.statistics import Spread
from gritrag.evaluate.suite import Results, Row, in_turn
from gritrag.evaluate.workload import documents_of
from gritrag.index.index import Index
from gritrag.model.grit import GritModel
from gritrag.modes import MODES
from gritrag.progress import ProgressBar
from gritrag.records import Answer, Document, Timings

BARE = "bare forward"
"""Not a mode: one forward over the question's tokens alone, which no first token can be sooner than."""

NO_CODEC = "-"
INDEXING_RUNS = 4

PARTS = ("retrieve", "load", "place", "question", "decode")
"""Of an answer, in their order: embedding and search, states from their files, rotation to their places, forward over
all tokens that no state stands for, and the tokens after the first."""


class SpeedConfig(Recipe):
    """A grid of contexts of an exact length. Every combination of these is measured, in every mode.

    Args:
        documents: per context.
        tokens: per document, its scaffold included.
        codecs: of the states. Modes that load no states are measured once, whatever the codec.
        batches: questions that are answered together.
        caches: ``warm``: files are in the page cache, as in a service that runs; ``cold``: they are dropped from it and
            the index is opened anew before each question, as after a restart. Only modes that load states are measured
            cold.
        repetitions: rounds that count; in each, every mode answers the same new question.
        warmup: rounds before them that do not count; memory is measured in the last of them.
        new_tokens: longest answer.
        pool: documents that are indexed for each length; twice the most of a context where None.
    """

    documents: tuple[int, ...] = Field((1, 4, 10), min_length=1)
    tokens: tuple[int, ...] = Field((250,), min_length=1)
    codecs: tuple[str, ...] = Field(("bf16",), min_length=1)
    batches: tuple[int, ...] = Field((1,), min_length=1)
    caches: tuple[Literal["warm", "cold"], ...] = Field(("warm",), min_length=1)
    repetitions: int = Field(5, ge=1)
    warmup: int = Field(1, ge=1)
    new_tokens: int = Field(8, ge=1)
    pool: int | None = Field(None, ge=1)

    @property
    def pool_documents(self) -> int:
        return self.pool or 2 * max(self.documents)

    @model_validator(mode="after")
    def _is_sound(self) -> "SpeedConfig":
        for name in ("documents", "tokens", "batches"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must each be at least 1, got {list(getattr(self, name))}")
        if self.pool_documents < max(self.documents):
            raise ValueError(f"a pool of {self.pool} documents holds no context of {max(self.documents)}")
        return self


class Cell(NamedTuple):
    """One combination; its fields are those of `SpeedConfig`."""

    mode: str
    documents: int
    tokens: int
    codec: str
    cache: str
    batch: int


def groups(setting: SpeedConfig, modes: Sequence[str]) -> dict[int, list[list[Cell]]]:
    """By tokens per document, the groups of cells that take turns."""
    found: dict[int, list[list[Cell]]] = {}
    for tokens in dict.fromkeys(setting.tokens):
        found[tokens] = [
            _group(setting, modes, documents, tokens, batch)
            for documents in dict.fromkeys(setting.documents)
            for batch in dict.fromkeys(setting.batches)
        ]
    return found


def _group(setting: SpeedConfig, modes: Sequence[str], documents: int, tokens: int, batch: int) -> list[Cell]:
    cells = [Cell(BARE, documents, tokens, NO_CODEC, "warm", batch)] if batch == 1 else []
    for mode in modes:
        from_states = MODES[mode].reuses_documents
        for codec in dict.fromkeys(setting.codecs) if from_states else [NO_CODEC]:
            for cache in dict.fromkeys(setting.caches) if from_states else ["warm"]:
                cells.append(Cell(mode, documents, tokens, codec, cache, batch))
    return cells


@dataclass
class Pool:
    """The documents of one length in one codec: `warm` is open all the time, `cold` lies on disk."""

    warm: Index
    cold: Path | None
    figures: dict[str, Any]

    @contextmanager
    def index(self, model: GritModel, cache: str) -> Iterator[Index]:
        """The index to answer from; a cold one is opened anew, its files read by nobody since they were written."""
        if cache == "warm":
            yield self.warm
            return
        assert self.cold is not None, "a cold cell in a grid without cold ones"
        drop_from_page_cache(files_below(self.cold))
        with Index.open(self.cold, model=model, mode="r") as index:
            yield index


def measure(
    model: GritModel, setting: SpeedConfig, modes: Sequence[str], seed: int, results: Results, scratch: Path
) -> None:
    """Measure what `results` do not have yet; indexes are made in `scratch`.

    Raises:
        ValueError: a context that the model cannot take.
    """
    _check_room(model, setting)
    for tokens, every in groups(setting, modes).items():
        pending = [group for group in every if not all(results.has("speed", cell._asdict()) for cell in group)]
        if not pending:
            continue
        with ExitStack() as stack:
            pools = _pools(model, setting, tokens, seed, scratch, stack)
            for codec, pool in pools.items():
                if not results.has("index", cell := {"tokens": tokens, "codec": codec}):
                    results.write("index", [(cell, pool.figures)])
            for group in pending:
                found = _rounds(model, setting, group, pools, seed)
                results.write("speed", [(cell._asdict(), found[cell]) for cell in group])
        shutil.rmtree(scratch / str(tokens))


def _check_room(model: GritModel, setting: SpeedConfig) -> None:
    asked = max(len(model.prompts.question_ids(each.question, has_documents=True)) for each in questions())
    needed = max(setting.documents) * max(setting.tokens) + asked + setting.new_tokens
    if needed > model.context_length:
        raise ValueError(
            f"{max(setting.documents)} documents of {max(setting.tokens)} tokens, a question of up to {asked} and an "
            f"answer of {setting.new_tokens} make {needed} tokens, this model takes {model.context_length}; measure "
            "fewer or shorter documents"
        )


def _pools(
    model: GritModel, setting: SpeedConfig, tokens: int, seed: int, scratch: Path, stack: ExitStack
) -> dict[str, Pool]:
    """By codec; modes that load no states use the first."""
    documents = documents_of(model, tokens, setting.pool_documents, seed)
    pools = {}
    for codec in dict.fromkeys(setting.codecs):
        folder = scratch / str(tokens) / codec
        figures = _build(model, documents, codec, folder)
        cold = folder.with_name(f"{codec}-cold") if "cold" in setting.caches else None
        if cold is not None:
            shutil.copytree(folder, cold)
        warm = stack.enter_context(Index.open(folder, model=model, mode="r"))
        pools[codec] = Pool(warm, cold, figures)
    return pools


def _build(model: GritModel, documents: Sequence[Document], codec: str, folder: Path) -> dict[str, Any]:
    """Index documents in a few calls, so that there is a spread."""
    seconds, tokens = [], []
    with Index.create(folder, model=model, states=codec) as index:
        for number in range(min(INDEXING_RUNS, len(documents))):
            part = documents[number::INDEXING_RUNS]
            start = perf_counter()
            index.add(part)
            seconds.append(perf_counter() - start)
            tokens.append(sum(len(model.document_token_ids(document)) for document in part))
        stats = index.stats()
    return {"seconds": seconds, "tokens_read": tokens, "documents": stats["documents"], "bytes": stats["bytes"]}


def _rounds(
    model: GritModel, setting: SpeedConfig, group: Sequence[Cell], pools: dict[str, Pool], seed: int
) -> dict[Cell, dict[str, Any]]:
    """For each cell its timed rounds, and the memory of the last round that warmed up."""
    asked = random.Random(seed).sample(every := [each.question for each in questions()], len(every))
    found: dict[Cell, dict[str, Any]] = {cell: {"memory": None, "rounds": []} for cell in group}
    one = group[0]
    about = f"{one.documents} x {one.tokens} tokens, batch {one.batch}"
    turns = in_turn(group, setting.warmup, setting.repetitions)
    runs = len(group) * (setting.warmup + setting.repetitions)
    for number, cell in ProgressBar(turns, total=runs, desc=about, unit="run"):
        texts = [asked[(number * cell.batch + row) % len(asked)] for row in range(cell.batch)]
        pool = pools.get(cell.codec, next(iter(pools.values())))
        if number >= 0:
            found[cell]["rounds"].append({"round": number, **_sample(model, setting, cell, pool, texts)})
        else:
            with peak_memory(model.lm.device) as memory:
                _sample(model, setting, cell, pool, texts)
            found[cell]["memory"] = vars(memory)
    return found


def _sample(model: GritModel, setting: SpeedConfig, cell: Cell, pool: Pool, texts: Sequence[str]) -> dict[str, Any]:
    if cell.mode == BARE:
        return _bare(model, texts[0])
    with pool.index(model, cell.cache) as index:
        rag = RAG(index, mode=cell.mode, k=cell.documents)
        if cell.batch == 1:
            return cost_of([rag.ask(texts[0], max_new_tokens=setting.new_tokens)])
        return cost_of(rag.ask_many(texts, batch_size=cell.batch, max_new_tokens=setting.new_tokens))


def parts_of(timings: Timings) -> dict[str, float]:
    """Seconds of each part; together they are the total. What no part claims of the first token is the forward."""
    given = {field.name: getattr(timings, field.name) for field in fields(timings)}
    first, total = given.pop("first_token"), given.pop("total")
    before = {part: given[part] for part in PARTS[:3]}
    return {**before, "question": first - sum(before.values()), "decode": total - first}


def cost_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Of one answer, or of a batch: times are then those of its last row, tokens those of all its rows."""
    timings, usages = answers[-1].timings, [answer.usage for answer in answers]
    return {
        "first_token": timings.first_token,
        "total": timings.total,
        "parts": parts_of(timings),
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "generated_tokens": sum(usage.generated_tokens for usage in usages),
    }


def _bare(model: GritModel, question: str) -> dict[str, Any]:
    ids = torch.tensor([model.prompts.question_ids(question, has_documents=True)], device=model.lm.device)
    start = perf_counter()
    with torch.inference_mode():
        model.lm(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].argmax().item()
    seconds = perf_counter() - start
    return {
        "first_token": seconds,
        "total": seconds,
        "parts": {**dict.fromkeys(PARTS, 0.0), "question": seconds},
        "prompt_tokens": ids.shape[1],
        "cached_tokens": 0,
        "generated_tokens": 1,
    }


# --- rows beside the ones that they are compared with ----------------------------------------------------------------

BASELINE = "doc-query"


def context(cell: Mapping[str, Any]) -> str:
    return f"{cell['documents']} x {cell['tokens']}"


def name(cell: Mapping[str, Any], every: Sequence[Row]) -> str:
    """The mode; its codec and cache too, where several were measured."""
    several = {field: len({row["cell"].get(field) for row in every} - {"-"}) > 1 for field in ("codec", "cache")}
    marks = [cell[field] for field in ("codec", "cache") if several[field] and cell.get(field) not in ("-", None)]
    return ", ".join([cell["mode"], *marks]) if cell.get("codec") != "-" else cell["mode"]


def from_hits(sample: Mapping[str, Any]) -> float:
    return float(sample["first_token"] - sample["parts"]["retrieve"])


class Grid:
    """Rows of the grid, and the ones of the same rounds that each is to be compared with."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = [row for row in rows if row["cell"]["mode"] != BARE]
        self._of = {(row["cell"]["mode"], *self._context(row)): row for row in rows if row["cell"]["cache"] == "warm"}
        self.styles = {mode: n for n, mode in enumerate(dict.fromkeys(row["cell"]["mode"] for row in self.rows))}

    @staticmethod
    def _context(row: Row) -> tuple[int, int, int]:
        return row["cell"]["documents"], row["cell"]["tokens"], row["cell"]["batch"]

    def beside(self, row: Row, mode: str) -> Row | None:
        """The row of another mode that took turns with this one."""
        return self._of.get((mode, *self._context(row)))

    def sooner(self, row: Row) -> Spread | None:
        """How many times sooner than the baseline the first token comes, round by round; None without a baseline."""
        base = self.beside(row, BASELINE)
        return None if base is None else paired(base, row)


def paired(slow: Row, fast: Row) -> Spread:
    """Ratios of the first tokens of the same rounds."""
    return Spread.of([a["first_token"] / b["first_token"] for a, b in zip(slow["rounds"], fast["rounds"], strict=True)])
