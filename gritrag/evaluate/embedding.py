"""What vectors are worth: files of rows, each scored by the tasks its rows allow, for one encoder and others beside it.

A file with labels is clustered, and, where rows to learn from are given, classified; one of sentence pairs is ranked
(STS); one of questions is searched. Rows, vectors and resamples are the same for all encoders.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.embedding_tasks import WORDS, Classification, Clustering, Embed, Retrieval, Similarity, Task
from gritrag.evaluate.machine import machine
from gritrag.evaluate.question_rows import QUESTION
from gritrag.evaluate.report import Section, Table, losing
from gritrag.evaluate.rows import Labelled, choose, evenly, keys_of, read_labelled, read_pairs, read_questions
from gritrag.evaluate.statistics import Sampled
from gritrag.evaluate.suite import Result, Results, Row, run
from gritrag.index.protocol import Reader
from gritrag.model.encoders import check_names, load_encoder
from gritrag.model.hardware import pick_device, pick_dtype

COMMAND = "eval embedding"


@dataclass(frozen=True)
class Setting:
    """What is evaluated.

    Args:
        rows: so many of a file of labels or pairs, spread evenly over it. V-measure is not adjusted for chance: below
            ten rows per label it is high for any vectors, and tells little.
        documents: so many distinct passages of a file of questions; what they answer is searched for.
        shots: rows per label that a probe learns from.
        clusterings: each of another sample of the rows.
        instruction: read before a text that is clustered, classified or compared; the checkpoint's own where None.
        side: such texts are embedded as a ``query`` (which may have an instruction) or as a ``document``.
        seed: of samples, of k-means and of resamples.

    Raises:
        ValueError: a number is too small, an unknown side, or an instruction for documents.
    """

    rows: int = 1000
    documents: int = 300
    shots: int = 16
    clusterings: int = 20
    instruction: str | None = None
    side: str = "query"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rows", 2), ("documents", 1), ("shots", 1), ("clusterings", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.side not in ("query", "document"):
            raise ValueError(f"texts are embedded as query or as document, not as {self.side!r}")
        if self.side == "document" and self.instruction:
            raise ValueError("documents carry no instruction; embed as query, or leave the instruction out")


@dataclass(frozen=True)
class Measured:
    """One score of one system on one set."""

    set: str
    task: str
    score: str
    system: str
    value: Sampled


def read_tasks(path: Path, train: Path | None, setting: Setting) -> list[Task]:
    """The tasks that a file's rows allow.

    Args:
        path: JSONL of rows with labels, of sentence pairs, or of questions.
        train: rows with labels that a probe learns from; without it nothing is classified.
        setting: see there.

    Raises:
        ValueError: rows of no known kind, a broken row, or a label of `path` that `train` lacks.
    """
    keys, seed = keys_of(path), setting.seed
    if keys & set(QUESTION):
        return [Retrieval(choose(read_questions(path), setting.documents), seed)]
    if "sentence1" in keys:
        return [Similarity(evenly(read_pairs(path), setting.rows), seed)]
    if "label" not in keys:
        raise ValueError(
            f"{path} is of no known kind: rows hold text and label, sentence1 and sentence2 and score, or question and "
            f"passage; its first row holds {', '.join(sorted(keys))}"
        )
    rows = evenly(read_labelled(path), setting.rows)
    tasks: list[Task] = [Clustering(rows, seed, setting.clusterings)]
    if train is not None:
        shots = few_of_each(read_labelled(train), setting.shots)
        unseen = sorted({row.label for row in rows} - {row.label for row in shots})
        if unseen:
            raise ValueError(f"{train} has no row of {len(unseen)} labels of {path}, such as {unseen[0]!r}")
        tasks.append(Classification(shots, rows, seed))
    return tasks


def few_of_each(rows: Sequence[Labelled], count: int) -> list[Labelled]:
    """`count` rows of each label, spread evenly over those it has."""
    by_label: dict[str, list[Labelled]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    return [row for each in by_label.values() for row in evenly(each, count)]


def evaluate(encoder: Reader, name: str, sets: dict[str, list[Task]], setting: Setting) -> list[Measured]:
    """Every score of an encoder on every set. Of a set's ways to search, all but BM25 are the encoder's own."""
    embed, found = remembering(encoder, setting), []
    for title, tasks in sets.items():
        for task in tasks:
            for (way, score), value in task.score(encoder, embed).items():
                system = way if way == WORDS else f"{name}, {way}" if way else name
                found.append(Measured(title, task.name, score, system, value))
    return found


def remembering(encoder: Reader, setting: Setting) -> Embed:
    """The encoder for tasks of one side; a text that several tasks share is embedded once."""
    known: dict[str, np.ndarray] = {}

    def embed(texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            is_query = setting.side == "query"
            vectors = encoder.encode_query(new, setting.instruction) if is_query else encoder.encode_document(new)
            known.update(zip(new, vectors, strict=True))
        return np.stack([known[text] for text in texts])

    return embed


def distinct(measured: Sequence[Measured]) -> list[Measured]:
    """Without repetitions: each encoder's run measures BM25 anew, and finds the same."""
    return list({(m.set, m.task, m.score, m.system): m for m in measured}.values())


def compared(measured: Sequence[Measured]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Rows of intervals, with the difference of each set's first system from every other."""
    first: dict[tuple[str, str, str], Measured] = {}
    for each in measured:
        first.setdefault((each.set, each.task, each.score), each)
    order = list(first)
    rows: list[tuple[dict[str, str], dict[str, Any]]] = []
    for each in sorted(measured, key=lambda m: order.index((m.set, m.task, m.score))):
        best = first[each.set, each.task, each.score]
        cell = {"set": each.set, "task": each.task, "score": each.score, "system": each.system}
        change = None if best is each else best.value.minus(each.value).interval()
        rows.append((cell, {"value": each.value.interval(), "first_minus_this": change}))
    return rows


def sections(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """One table, in points of 100, and where another system is ahead of the first."""
    keys = ("set", "task", "score", "system")
    lines, lost = [], []
    for row in rows:
        names, change = [row["cell"][key] for key in keys], row["first_minus_this"]
        shown = change.show("+.1f") if change else ""
        lines.append([*names, row["value"].show(), shown, str(row["value"].n)])
        if change and change.high < 0:
            lost.append(f"{', '.join(names[:3])}: {names[3]} is ahead, {shown}")
    text = "Points of 100 with 95% bootstrap intervals; differences are paired."
    return [
        Section("Vectors", text, (), [Table([*keys, "value", "first minus this", "rows"], lines)]),
        losing(lost, "Scores in which the interval of the difference to another system lies below 0."),
    ]


def main(
    paths: Sequence[Path],
    train: Path | None = None,
    model: str = DEFAULT_MODEL,
    compare: Sequence[str] = (),
    dtype: str = "auto",
    device: str = "auto",
    setting: Setting | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Run; what is wrong with a file is said before a model is loaded.

    Raises:
        ValueError: a missing file, a broken row, two files of the same name, or an unknown model.
    """
    setting = setting or Setting()
    sets = {path.stem: read_tasks(path, train, setting) for path in paths}
    if len(sets) < len(paths):
        raise ValueError(f"sets are called by their file names, which must differ: {', '.join(map(str, paths))}")
    check_names((model, *compare))
    where = pick_device(device)
    facts = {"model": model, "train": train.name if train else "", **machine(pick_dtype(dtype, where), where)}

    def work(results: Results) -> None:
        measured: list[Measured] = []
        for name in dict.fromkeys((model, *compare)):
            say(f"evaluating {name}")
            encoder = load_encoder(name, dtype, device)
            measured += evaluate(encoder, name, sets, setting)
            del encoder  # the next one needs its memory
        results.write("embedding", compared(distinct(measured)))

    return run(COMMAND, asdict(setting), facts, work)
