"""How does an index grow? Build time, memory, recall and latency of each engine, for ever more passages.

    python -m experiments.scale --sizes 200000,1000000
    python -m experiments.scale --sizes 20000 --engines flat,hnsw,ivf-pq --json

Vectors and texts are drawn from real ones; see `experiments.scale_sample`. The sample, and indexes that were built,
stay in `--folder` and are used again, so a run can be resumed; what was measured of an engine is kept there, too
(`--again` builds and measures anew). Questions are real texts that are not indexed. Each
engine is built and opened in a process of its own. Questions are asked one at a time, with `mode="dense"` and vectors
given: what is timed is the whole of `Index.search_many`, documents included. Recall is of the ten nearest, against an
exact search.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from experiments.scale_sample import Sample, SampledReader, real_texts
from experiments.script import run
from gritrag import Document, GritModel, Index
from gritrag.index.documents import check_documents
from gritrag.index.storage.catalog import Catalog
from gritrag.index.storage.engines import chosen
from gritrag.index.storage.entries import Entry
from gritrag.index.storage.manifest import CATALOG
from gritrag.index.storage.vectors import VectorIndex
from gritrag.progress import ProgressBar

REAL_TEXTS, QUESTIONS = 1500, 250
K = 10
BATCH = 20_000
PARTS, PART = 100, 7
"""Of so many passages one satisfies the filter, which asks for this part."""

FILTERS: dict[str, dict[str, Any] | None] = {"": None, "filtered_": {"part": PART}}


def sample_in(folder: Path, model: str, texts: Path | None) -> Sample:
    """The sample that is there, or a new one."""
    path = folder / "sample.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        loaded = GritModel.from_pretrained(model)
        Sample.make(loaded, real_texts(texts, REAL_TEXTS), QUESTIONS).save(path)
    return Sample.load(path)


def fill(folder: Path, sample: Sample, count: int) -> dict[str, Any]:
    """An index of so many passages, without a file of vectors: the catalog alone.

    In commits of 20,000, as a build on Ray has but one. `Index.add` commits more often, to lose less when it is killed.
    """
    root, note = folder / f"index-{count}", folder / f"index-{count}.json"
    if note.exists():
        return dict(json.loads(note.read_text()))
    reader = SampledReader(sample.vectors(count, seed=0))
    texts = sample.texts(count, seed=0)
    began = time.perf_counter()
    index = Index.create(root, model=reader, states="none", overwrite=True)
    catalog = index._parts.catalog
    for start in ProgressBar(range(0, count, BATCH), desc="index", unit="batch"):
        numbers = range(start, min(start + BATCH, count))
        documents = [Document(next(texts), id=f"d{n}", metadata={"part": n % PARTS}) for n in numbers]
        checked, _ = check_documents(reader, documents)
        vectors_ND = reader.encode_document(documents)
        with catalog.transaction():
            catalog.put(
                Entry(each.document, each.token_ids, vector, each.key)
                for each, vector in zip(checked, vectors_ND, strict=True)
            )
    index._parts.catalog.close()  # not the index: that would write vectors
    index._parts.lock.release()  # type: ignore[union-attr]
    found = {"seconds": time.perf_counter() - began, "catalog": (root / CATALOG).stat().st_size}
    note.write_text(json.dumps(found))
    return found


def build(folder: Path, count: int, dim: int, engine: str) -> dict[str, Any]:
    """The files of one engine over the catalog that `fill` made: seconds, bytes, and what it measured of itself."""
    root = folder / f"index-{count}"
    catalog = Catalog(root / CATALOG, "rw")
    vectors = VectorIndex(root, catalog, dim, engine)
    began = time.perf_counter()
    vectors.save(rebuild=True)
    found = {"seconds": time.perf_counter() - began, "bytes": vectors.nbytes(), **vectors.figures()}
    catalog.close()
    return found | {"peak": peak()}


def measure(folder: Path, count: int, questions: int) -> dict[str, Any]:
    """Open, search, and compare with an exact search."""
    sample = Sample.load(folder / "sample.npz")
    queries = sample.queries[:questions]
    reader = SampledReader(np.zeros((1, queries.shape[1]), np.float32))
    before = memory()
    began = time.perf_counter()
    index = Index.open(folder / f"index-{count}", model=reader)
    found: dict[str, Any] = {"open_seconds": time.perf_counter() - began, "open_bytes": memory() - before}
    with index:
        began = time.perf_counter()
        index.search_many(["x"], K, mode="dense", vectors=queries[:1])
        found["first_seconds"] = time.perf_counter() - began
        answers = {name: searched(index, queries, where) for name, where in FILTERS.items()}
        found["memory"] = memory() - before
    vectors_ND = sample.vectors(count, seed=0)
    for name, (hits, seconds) in answers.items():
        places = np.arange(count) if FILTERS[name] is None else np.arange(PART, count, PARTS)
        found[f"{name}recall"] = recall(hits, queries, vectors_ND, places)
        found[f"{name}p50"], found[f"{name}p95"] = (float(np.quantile(seconds, share)) for share in (0.5, 0.95))
    return found


def searched(index: Index, queries: np.ndarray, where: dict[str, Any] | None) -> tuple[list[list[str]], list[float]]:
    """Ids for each question, asked alone, and seconds; asked twice, and the second time counts."""
    hits: list[list[str]] = []
    seconds: list[float] = []
    for round_ in range(2):
        for query in queries:
            began = time.perf_counter()
            (found,) = index.search_many(["x"], K, mode="dense", where=where, vectors=query[None])
            if round_:
                seconds.append(time.perf_counter() - began)
                hits.append([hit.document.id for hit in found])
    return hits, seconds


def recall(hits: Sequence[Sequence[str]], queries: np.ndarray, vectors_ND: np.ndarray, places: np.ndarray) -> float:
    """Part of the ten nearest, of these places, that was found."""
    scores = queries @ (vectors_ND if len(places) == len(vectors_ND) else vectors_ND[places]).T
    count = min(K, len(places))
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    expected = [{f"d{places[place]}" for place in row} for row in best]
    return float(np.mean([len(wanted & set(found)) / count for wanted, found in zip(expected, hits, strict=True)]))


def memory() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def peak() -> int:
    """Most bytes that this process has had in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def alone(*words: str) -> dict[str, Any]:
    """A part of the work in a process of its own, so that memory is its own."""
    command = [sys.executable, "-m", "experiments.scale", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} ended with status {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def show(rows: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown."""
    heads = "passages | engine | fill s | build s | peak GB | files GB | open ms | opened MB | first s | memory MB"
    heads += " | recall@10 | p50 ms | p95 ms | 1%: recall@10 | p50 ms | p95 ms"
    lines = [f"| {heads} |", "|" + " --- |" * (heads.count("|") + 1)]
    for row in rows:
        cells = [f"{row['passages']:,}", row["engine"], f"{row['fill']:.0f}", f"{row['build']['seconds']:.0f}"]
        cells += [f"{row['build'][name] / 1e9:.2f}" for name in ("peak", "bytes")]
        cells += [f"{row['open_seconds'] * 1e3:.0f}", f"{row['open_bytes'] / 1e6:.0f}", f"{row['first_seconds']:.2f}"]
        cells += [f"{row['memory'] / 1e6:.0f}"]
        for name in ("", "filtered_"):
            cells += [f"{row[f'{name}recall']:.3f}", *(f"{row[f'{name}{p}'] * 1e3:.2f}" for p in ("p50", "p95"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def command(
    sizes: Annotated[str, typer.Option(help="Numbers of passages.")] = "200000,1000000",
    engines: Annotated[str, typer.Option(help="Of flat, hnsw, ivf-pq and auto.")] = "auto",
    folder: Annotated[Path, typer.Option(help="Of the sample and the indexes.")] = Path("runs/scale"),
    texts: Annotated[Path | None, typer.Option(help="Folder of text files to draw from.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="What embeds them.")] = "gritrag-smollm2-135m",
    questions: Annotated[int, typer.Option(help="To ask.", min=1)] = QUESTIONS,
    again: Annotated[bool, typer.Option(help="Build and measure anew what was measured before.")] = False,
    part: Annotated[str, typer.Option(help="One part of the work: build or measure.", hidden=True)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fill indexes, build each engine over them, and print one table."""
    if part:
        count = int(sizes)
        dim = Sample.load(folder / "sample.npz").real.shape[1]
        done = build(folder, count, dim, engines) if part == "build" else measure(folder, count, questions)
        typer.echo(json.dumps(done))
        return
    sample = sample_in(folder, model, texts)
    rows = []
    for count in map(int, sizes.split(",")):
        filled = fill(folder, sample, count)
        for engine in dict.fromkeys(chosen(name, count) for name in engines.split(",")):
            note = folder / f"row-{count}-{engine}-{questions}.json"
            if again or not note.exists():
                words = ["--sizes", str(count), "--engines", engine, "--folder", str(folder)]
                words += ["--questions", str(questions), "--part"]
                row = {"passages": count, "engine": engine, "fill": filled["seconds"], "build": alone(*words, "build")}
                note.write_text(json.dumps(row | alone(*words, "measure")))
            rows.append(json.loads(note.read_text()))
            typer.echo(f"{count:,} passages, {engine}: {note.read_text()}", err=True)
    typer.echo(json.dumps(rows) if as_json else show(rows))


if __name__ == "__main__":
    run(command)
