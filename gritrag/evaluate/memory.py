"""Memory of answering: what a process holds at most, and what of it libraries, weights and states are.

It is measured in a process that does nothing else: it loads the model, opens an index that is there already, and
answers, from documents that are given and from those of a search. What libraries take is what is resident once they are
imported.
"""

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from gritrag.answer import RAG
from gritrag.evaluate.first_token import QUESTION
from gritrag.evaluate.machine import files_below, how_memory, machine_of, peak_memory, resident
from gritrag.evaluate.report import Section, Table, losing
from gritrag.evaluate.suite import Result, Results, Row, run
from gritrag.evaluate.workload import Subject, documents_of
from gritrag.index.index import Index
from gritrag.model.grit import GritModel
from gritrag.model.hardware import pick_device
from gritrag.model.packed import Packed
from gritrag.records import Hit

COMMAND = "bench memory"
CPU = torch.device("cpu")
KIND = "memory"
ALLOWED = 150e6
"""Bytes beside libraries, weights and states."""


@dataclass(frozen=True)
class Setting:
    """`documents` of `tokens` each are answered from, `repetitions` times as hits and as often as a search finds them;
    each time up to `new_tokens` are written."""

    documents: int = 10
    tokens: int = 500
    codec: str = "bf16"
    new_tokens: int = 16
    repetitions: int = 3
    seed: int = 0


def answering(subject: Subject, setting: Setting, folder: Path) -> dict[str, float]:
    """Load, open and answer, in a process that has done nothing before.

    Returns:
        Bytes: `libraries` are resident before anything is loaded, `loading` at most while the model is, `loaded` after
        that, `answering` at most while it answers; `weights` as `weight_bytes` counts them, `spare` of which they leave
        unused where they are packed, `states` that are placed, and `files` of states, which are mapped; and `seconds`
        of loading.
    """
    libraries, began = resident(), perf_counter()
    with peak_memory(CPU) as while_loading:
        model = subject.load()
    seconds, loaded = perf_counter() - began, resident()
    documents = documents_of(model, setting.tokens, setting.documents, setting.seed)
    hits = [Hit(document, 1 / rank, rank) for rank, document in enumerate(documents, start=1)]
    with Index.open(folder, model=model) as index, peak_memory(CPU) as while_answering:
        rag = RAG(index, k=setting.documents)
        cached = [
            rag.ask(QUESTION, hits=given, max_new_tokens=setting.new_tokens).usage.cached_tokens
            for _ in range(setting.repetitions)
            for given in (hits, None)
        ]
    return {
        "libraries": libraries,
        "loading": while_loading.peak,
        "loaded": loaded,
        "answering": while_answering.peak,
        "weights": weight_bytes(model),
        "spare": sum(each.spare_bytes for each in packed_of(model)),
        "states": max(cached) * model.state_elements_per_token * model.dtype.itemsize,
        "files": sum(file.stat().st_size for file in files_below(folder / "states")),
        "seconds": seconds,
    }


def weight_bytes(model: GritModel) -> int:
    """Bytes of weights that are in memory whatever happens: packed ones in 16 bits, and in their own dtype those that
    are not packed, or do not lie in a mapped file."""
    packed = packed_of(model)
    given_back = {id(weight) for each in packed if each.is_of_file for weight in each.weights}
    kept = sum(parameter.nbytes for parameter in model.lm.parameters() if id(parameter) not in given_back)
    return kept + sum(2 * weight.numel() for each in packed for weight in each.weights)


def packed_of(model: GritModel) -> list[Packed]:
    """Its weights as they are packed; none where they are not."""
    return model.step.packed if model.step is not None else []


def others(row: Mapping[str, Any]) -> float:
    """Bytes at the peak that are neither libraries, weights, placed states nor their files: what packed weights leave
    unused is among them."""
    return float(row["answering"] - sum(row[part] for part in ("libraries", "weights", "states", "files")))


def sections(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """One table: what is resident, and when."""
    (row,), setting = rows, facts["settings"]
    text = (
        f"Answering from {setting['documents']} x {setting['tokens']} tokens, states in {setting['codec']}: "
        f"{_mb(row['answering'])} MB are resident at most, which are libraries, weights, states and "
        f"{_mb(others(row) + row['files'])} MB more, of which {_mb(row['files'])} MB are state files, mapped from the "
        f"page cache: the system can take them back. Loading took {row['seconds']:.2f} s."
    )
    lines = [
        ["libraries, before anything is loaded", _mb(row["libraries"])],
        ["while the model is loaded, at most", _mb(row["loading"])],
        ["once it is loaded", _mb(row["loaded"])],
        ["while it answers, at most", _mb(row["answering"])],
        ["of that, weights as they are computed with", _mb(row["weights"])],
        ["placed states", _mb(row["states"])],
        ["mapped state files", _mb(row["files"])],
        ["all else", _mb(others(row))],
        ["of that, unused beside packed weights", _mb(row.get("spare", 0))],
    ]
    lost = [f"{_mb(others(row))} MB beside libraries, weights and states"] if others(row) > ALLOWED else []
    return [
        Section("Memory of answering", text, (), [Table(["resident", "MB"], lines)]),
        losing(lost, f"More than {_mb(ALLOWED)} MB beside libraries, weights, states and their files."),
    ]


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f}"


def main(subject: Subject, setting: Setting | None = None) -> Result:
    """Measure a model, or random weights of a geometry, on the processor.

    Raises:
        ValueError: the device is another; or as `Subject.load`.
    """
    setting = setting or Setting()
    if pick_device(subject.device).type != "cpu":
        raise ValueError("this measures the memory of the processor; use --device cpu")
    loaded = subject.load()
    facts = {"model": subject.name, **machine_of(loaded), "memory": how_memory(CPU)}

    def work(results: Results) -> None:
        with tempfile.TemporaryDirectory(prefix="gritrag-bench-") as scratch:
            folder = Path(scratch) / "index"
            with Index.create(folder, model=loaded, states=setting.codec) as index:
                index.add(documents_of(loaded, setting.tokens, setting.documents, setting.seed))
            # a process that is spawned shares no memory with this one, which has read documents
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found = process.submit(answering, subject, setting, folder).result()
        results.write(KIND, [({}, found)])

    return run(COMMAND, asdict(setting), facts, work)
