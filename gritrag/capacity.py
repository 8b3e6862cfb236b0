"""The plan on paper: what an index of any number of passages takes, computed, with the source of every number.

`N` passages of `T` tokens, a model of `P` parameters whose vectors have `D` numbers and its states `E` numbers a token.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gritrag.index.storage.packed import bytes_per_token

__all__ = ["CODECS", "MODELS", "PASSAGES", "Constants", "Plan", "Shape", "measured", "plan", "render"]


@dataclass(frozen=True)
class Shape:
    """A model as a plan sees it: `parameters` P, `dim` D, and 2 * layers * key/value heads * head dim E."""

    name: str
    parameters: float
    dim: int
    elements: int


MODELS = (
    Shape("SmolLM2-135M", 134.5e6, 576, 2 * 30 * 3 * 64),
    Shape("Qwen3-0.6B", 596e6, 1024, 2 * 28 * 8 * 128),
    Shape("Llama-3-8B", 8.03e9, 4096, 2 * 32 * 8 * 128),
)
"""From their published config.json and cards."""

PASSAGES = (10**6, 10**8, 10**10)
TOKENS = 200
CODECS = ("bf16", "int8", "int4")
QUESTION_HITS = 5
GPU_FLOPS = 989e12
"""H100 SXM, bfloat16 without sparsity: NVIDIA H100 data sheet."""

UTILISATION = 0.4
"""Part of that in practice: 46% in training PaLM (Chowdhery et al. 2022, section 4.1); less is assumed."""

MEMORY_BYTES, DISK_BYTES = 256e9, 15e12
"""Of one machine, for the tier: memory of a large server, and two NVMe disks."""

HOT = 0.01
"""Part of the passages whose states are kept where all of them fit no disk: the tested default is `state_quota`, and a
state that is missing is read anew and stored."""

IVF_SHARE = 32 / 2048
"""Part of all lists that one search visits: what 0.97 recall took at a million passages."""

CANDIDATES = 128
CATALOG_BYTES = 5 * TOKENS + 8 * TOKENS
"""A passage's text (5 bytes a token), its words in the full-text index (about as much), token ids and rows."""


@dataclass(frozen=True)
class Constants:
    """What was measured here: operations and bytes in a second."""

    flops: float
    disk: float


@dataclass(frozen=True)
class Plan:
    """One row: bytes, hours on one GPU, seconds, and what decides the cost."""

    passages: int
    model: str
    vectors: float
    catalog: float
    states: dict[str, float]
    gpu_hours: float
    here_hours: float
    tier: str
    break_even: dict[str, float]
    query_bytes: float
    query_search_bytes: float
    cost_driver: str


FORMULAS = {
    "vectors": "N (4 D + 16 + D/8 + 8): exact vectors, their row and checksum, a code and its id (indexes/README.md)",
    "catalog": "N (4 D + 13 T): the vector again, text, words and ids (about; measured indexes differ by their texts)",
    "states": "N T b, b bytes of one token's E numbers by codec (gritrag.codecs; scales included, file headers not)",
    "gpu_hours": "2 P N T / (0.4 * 989e12) / 3600: 2 P operations a token (Kaplan et al. 2020, section 2.1)",
    "here_hours": "the same with this machine's measured operations a second",
    "tier": "memory up to 256 GB of vectors and bf16 states, disk up to 15 TB, else object storage and a hot hundredth",
    "break_even": "b C / (2 P) bytes a second: a faster store than this makes loading beat reading anew (anchors, 3)",
    "query_bytes": "5 T b: bf16 states of five passages",
    "query_search_bytes": "N (D/8 + 8) * 32/2048 + 128 * 4 D: codes of the lists that are visited, exact candidates",
}


def plan(constants: Constants, passages: Sequence[int] = PASSAGES, tokens: int = TOKENS) -> list[Plan]:
    """A row for each number of passages and each model."""
    return [_row(constants, count, shape, tokens) for count in passages for shape in MODELS]


def _row(constants: Constants, count: int, shape: Shape, tokens: int) -> Plan:
    per_token = {codec: bytes_per_token(codec, shape.elements) for codec in CODECS}
    states = {codec: count * tokens * size for codec, size in per_token.items()}
    operations = 2 * shape.parameters
    vectors = count * (4 * shape.dim + 16 + shape.dim / 8 + 8)
    gpu_hours = operations * count * tokens / (UTILISATION * GPU_FLOPS) / 3600
    whole = vectors + states["bf16"]
    tier = "memory" if whole <= MEMORY_BYTES else "disk" if whole <= DISK_BYTES else "object storage, hot states only"
    kept = states["bf16"] * (1 if whole <= DISK_BYTES else HOT)
    return Plan(
        passages=count,
        model=shape.name,
        vectors=vectors,
        catalog=count * (4 * shape.dim + CATALOG_BYTES * tokens / TOKENS),
        states=states,
        gpu_hours=gpu_hours,
        here_hours=operations * count * tokens / constants.flops / 3600,
        tier=tier,
        break_even={codec: size * constants.flops / operations for codec, size in per_token.items()},
        query_bytes=QUESTION_HITS * tokens * per_token["bf16"],
        query_search_bytes=count * (shape.dim / 8 + 8) * IVF_SHARE + CANDIDATES * 4 * shape.dim,
        cost_driver="states on disk" if kept > vectors else "vectors",
    )


def measured(folder: Path | None = None, dtype: torch.dtype = torch.float32) -> Constants:
    """Operations a second of a product as the model's layers have, and bytes a second of a new file read back from
    disk, its pages dropped where the system allows it."""
    left, right = torch.randn(1024, 576).to(dtype), torch.randn(576, 1536).to(dtype)
    seconds = _least(lambda: left @ right)
    size = 1 << 27
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())

        def read() -> None:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            offset = 0
            while data := os.pread(file.fileno(), 1 << 22, offset):
                offset += len(data)

        return Constants(2 * left.shape[0] * left.shape[1] * right.shape[1] / seconds, size / _least(read, 3))


def _least(work: Callable[[], object], repetitions: int = 9) -> float:
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def as_record(constants: Constants, rows: Sequence[Plan]) -> dict[str, Any]:
    """Everything, as JSON can hold it."""
    return {"constants": asdict(constants), "formulas": FORMULAS, "rows": [asdict(row) for row in rows]}


def render(constants: Constants, rows: Sequence[Plan]) -> str:
    """Tables in Markdown, and how each column was computed."""
    heads = ["passages", "model", "vectors", "catalog", *(f"states {codec}" for codec in CODECS)]
    heads += ["hours on an H100", "hours here", "tier", "loading wins above", "a query loads", "and searches", "cost"]
    lines = [
        f"Measured here: {constants.flops / 1e9:,.0f} GFLOP/s in products, {size_of(constants.disk)}/s from disk.",
        "",
        f"| {' | '.join(heads)} |",
        "|" + " --- |" * len(heads),
    ]
    for row in rows:
        cells = [f"{row.passages:,}", row.model, size_of(row.vectors), size_of(row.catalog)]
        cells += [size_of(row.states[codec]) for codec in CODECS]
        cells += [f"{row.gpu_hours:,.2f}", f"{row.here_hours:,.0f}", row.tier, f"{size_of(row.break_even['bf16'])}/s"]
        cells += [size_of(row.query_bytes), size_of(row.query_search_bytes), row.cost_driver]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{name}: {formula}" for name, formula in FORMULAS.items())])


def size_of(number: float) -> str:
    """Bytes in decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} PB"
