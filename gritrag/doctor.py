"""Findings: what `gritrag doctor` looks at, machine and installation first, then the probes of a model."""

import os
import platform
import shutil
import sqlite3
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from gritrag import GritModel
from gritrag.folders import cache_folder
from gritrag.model.hardware import halves_weights, has_native_bf16, pick_device
from gritrag.model.probes import probe as probe_model

WAL_RESET_FIXED = (3, 51, 3)
LOW_DISK_BYTES = 5 * 10**9

Level = Literal["ok", "note", "problem"]


class Finding(NamedTuple):
    """One line of the table. A `problem` breaks something, a `note` is worth knowing."""

    name: str
    level: Level
    detail: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.name:<20} {self.detail}"


def examine(folder: Path) -> list[Finding]:
    """Everything that can be known without a model; `folder` is where indexes are to be kept."""
    return [
        Finding("python", "ok", f"{platform.python_version()} on {platform.machine()}, {sys.platform}"),
        torch_build(),
        native_bf16(),
        faiss({name.lower() for distribution in metadata.distributions() if (name := distribution.metadata["Name"])}),
        sqlite(sqlite3.sqlite_version_info),
        free_disk(folder),
        cache(),
    ]


def examine_model(model: GritModel) -> list[Finding]:
    """One finding per probe, made anew: a fallback is slower or approximate and a note, a refusal is a problem."""
    levels: dict[str, Level] = {"works": "ok", "falls back": "note", "refused": "problem"}
    return [
        Finding(f"probe: {probe.name}", levels[probe.outcome], f"{probe.outcome}: {probe.detail}")
        for probe in probe_model(model.lm).probes
    ]


def torch_build() -> Finding:
    """Which torch this is, and on what it computes."""
    if torch.cuda.is_available():
        build = f"{'ROCm' if torch.version.hip else 'CUDA'} on {torch.cuda.get_device_name()}"
    elif torch.backends.mps.is_available():
        build = "Apple MPS"
    else:
        build = f"CPU, {torch.get_num_threads()} threads"
    return Finding("torch", "ok", f"{torch.__version__}: {build}")


def native_bf16() -> Finding:
    """Whether the hardware computes in bfloat16."""
    if has_native_bf16(pick_device("auto")):
        return Finding("bfloat16", "ok", "native")
    weights = "weights rounded to half precision" if halves_weights("auto", pick_device("auto")) else "full weights"
    return Finding("bfloat16", "note", f"emulated on this machine, so --dtype auto is float32 with {weights}")


def faiss(installed: set[str]) -> Finding:
    """`installed`: names of distributions, lower case. The builds of FAISS overwrite each other's files."""
    builds = sorted(name for name in installed if name.startswith(("faiss-cpu", "faiss-gpu")))
    if len(builds) > 1:
        names = " ".join(builds)
        remedy = f"keep one: pip uninstall -y {names} && pip install {builds[0]}"
        return Finding("faiss", "problem", f"{' and '.join(builds)} share one directory and break each other; {remedy}")
    if not builds:
        return Finding("faiss", "note", "not installed: exact search in torch is used; pip install 'gritrag[faiss]'")
    return Finding("faiss", "ok", f"{builds[0]} {metadata.version(builds[0])}")


def sqlite(version: tuple[int, ...]) -> Finding:
    """Whether SQLite of this version has full-text search, and a bug that others must not meet."""
    number = ".".join(map(str, version))
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE probe USING fts5(text)")
    except sqlite3.OperationalError:
        return Finding(
            "sqlite", "problem", f"{number} without FTS5: an index cannot be made; use a Python built with it"
        )
    finally:
        connection.close()
    if version < WAL_RESET_FIXED:
        fixed = ".".join(map(str, WAL_RESET_FIXED))
        detail = f"{number} with FTS5; before {fixed} two writers at once can corrupt a WAL: an index's lock admits one"
        return Finding("sqlite", "note", f"{detail}, so write only through GritRAG")
    return Finding("sqlite", "ok", f"{number} with FTS5")


def free_disk(folder: Path) -> Finding:
    """How much room there is for indexes in `folder`, or where it will be made."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    level: Level = "ok" if free >= LOW_DISK_BYTES else "note"
    return Finding(
        "disk", level, f"{free / 1e9:.1f} GB free at {folder.resolve()}; `gritrag estimate` says what a build needs"
    )


def cache() -> Finding:
    """What the cache folder holds: converted files, weights as they are computed with, states that were fetched."""
    folder, size = cache_folder(), 0
    for inside, _, names in os.walk(folder):  # which passes over folders that have just gone
        for name in names:
            with suppress(OSError):  # another process may just have removed it
                size += Path(inside, name).stat().st_size
    return Finding(
        "cache", "ok", f"{size / 1e9:.1f} GB in {folder}; made again where you delete it, and GRITRAG_CACHE moves it"
    )
