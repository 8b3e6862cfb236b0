"""The machine: facts that belong to every measurement, its memory, and its page cache."""

import ctypes
import gc
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from torch import nn

from gritrag import __version__
from gritrag.corpus import questions
from gritrag.evaluate.workload import documents_of
from gritrag.index.index import Index
from gritrag.model.attention import decoder_stack
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
"""Instructions that decide how fast products of matrices are."""


def machine(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Commit, hardware and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "commit": _commit(),
        "hardware": name,
        "cpu_flags": " ".join(_cpu_flags()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "gritrag": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def machine_of(model: GritModel) -> dict[str, Any]:
    """`machine`, and in how many bits the model's weights are read."""
    return {**machine(model.lm.dtype, model.lm.device), "weights": model.forwards.precision}


def _processor() -> str:
    return f"{_of_processor('model name') or platform.processor() or 'unknown processor'}, {platform.machine()}"


def _cpu_flags() -> list[str]:
    known = set((_of_processor("flags") or _of_processor("Features")).split())
    return [flag for flag in CPU_FLAGS if flag in known]


def _of_processor(field: str) -> str:
    """Of `/proc/cpuinfo`; empty on a system that has none."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def _commit() -> str:
    """Of the source tree this file lies in, with ``+`` if that differs from what is committed; empty outside of one."""
    home = Path(__file__).parent
    try:
        run = [
            subprocess.run(["git", *words], cwd=home, capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run[0] + ("+" if run[1] else "")


# --- memory -----------------------------------------------------------------------------------------------------------

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc, clear_refs
CAN_RESET = os.access(CLEAR_REFS, os.W_OK)


@dataclass
class Memory:
    """Bytes: `before` something was done, and the `peak` while it was done."""

    before: int = 0
    peak: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """Measure what is done inside; see `how_memory` for what that means on this machine.

    What has been freed is given back first, else the peak of something earlier would hide this one. Getting it again
    takes time, so times that were taken meanwhile are not to be used.
    """
    memory = Memory()
    gc.collect()
    if give_back := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc has it
        give_back(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        memory.before = torch.cuda.memory_allocated(device)
        yield memory
        memory.peak = torch.cuda.max_memory_allocated(device)
    elif CAN_RESET:
        CLEAR_REFS.write_text(RESET_PEAK)
        memory.before = _status("VmRSS")
        yield memory
        memory.peak = _status("VmHWM")
    else:
        memory.before = _high_water()
        yield memory
        memory.peak = _high_water()


def how_memory(device: torch.device) -> str:
    """How peak memory is measured here."""
    if device.type == "cuda":
        return "allocated on the device, peak reset before each run"
    if CAN_RESET:
        return "resident (VmHWM), mapped state files included, peak reset before each run"
    return "resident, high water of the whole process so far: later runs inherit the peaks of earlier ones"


def resident() -> int:
    """Bytes of this process that are in memory now; at most so far where the system does not tell."""
    return _status("VmRSS") if STATUS.is_file() else _high_water()


def _status(field: str) -> int:
    """Bytes of a line of `/proc/self/status`."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


def _high_water() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- files ------------------------------------------------------------------------------------------------------------


def drop_from_page_cache(files: Iterable[Path]) -> None:
    """Make the next read of these files come from the disk. Pages that something has mapped stay.

    Raises:
        ValueError: this system has no way to ask for it.
    """
    if not hasattr(os, "posix_fadvise"):
        raise ValueError(f"cold reads need posix_fadvise, which {sys.platform} lacks; measure caches: [warm] only")
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are still to be written would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- ceilings ---------------------------------------------------------------------------------------------------------

LONG = 512
"""Tokens of a forward that is as good as any: longer ones reach no more FLOP/s."""

MEMORY_BYTES = 1 << 28
REPETITIONS = 5
DOCUMENTS, TOKENS = 24, 250
"""Whose state files are read: so many documents, of so many tokens each."""


def ceilings(model: GritModel, codec: str, scratch: Path) -> dict[str, Any]:
    """FLOP/s, memory and file bandwidth: each the best of a few, as a ceiling is; and what a token costs this model.

    Returns:
        ``matmul_flops``: FLOP/s of the model's own matrices, by the number of tokens they are applied to.
        ``flop_per_token``: of these matrices; ``flop_per_pair``: of attention, for each token and each one it sees.
        ``weight_bytes``: that a forward reads. ``memory_bytes_per_second``: reading.
        ``file_bytes_per_second``: of state files, ``warm`` and ``cold``.
    """
    config = model.lm.config.get_text_config()
    shape = model.decoder.shape
    embedding = model.lm.get_input_embeddings()
    weights = [p for p in decoder_stack(model.lm).parameters() if p.dim() == 2 and p is not embedding.weight]
    head = model.lm.get_output_embeddings().weight
    asked = sorted(len(model.prompts.question_ids(each.question, has_documents=True)) for each in questions())
    lengths = (asked[len(asked) // 2], LONG)
    query_heads = int(getattr(config, "num_attention_heads", shape.heads))
    measured = ProgressBar(lengths, desc="ceilings")
    return {
        "matmul_flops": {str(tokens): _matmul_flops(weights, tokens) for tokens in measured},
        "flop_per_token": 2 * sum(weight.numel() for weight in weights),
        "flop_per_pair": 4 * shape.layers * query_heads * shape.head_dim,
        "weight_bytes": sum(weight.nbytes for weight in weights) + head.nbytes,
        "memory_bytes_per_second": memory_bandwidth(model.lm.device),
        "file_bytes_per_second": _file_bandwidth(model, codec, scratch),
    }


def _matmul_flops(weights: Sequence[torch.Tensor], tokens: int) -> float:
    inputs = {width: torch.randn(tokens, width).to(weights[0]) for width in {weight.shape[1] for weight in weights}}

    def work() -> None:
        with torch.inference_mode():
            for weight in weights:
                nn.functional.linear(inputs[weight.shape[1]], weight)

    return 2 * tokens * sum(weight.numel() for weight in weights) / fastest(work, weights[0].device)


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second of reading a buffer larger than the caches, with all threads."""
    numbers = torch.ones(MEMORY_BYTES // 4, device=device)
    return numbers.nbytes / fastest(numbers.sum, device)


def _file_bandwidth(model: GritModel, codec: str, scratch: Path) -> dict[str, float]:
    """Of state files as an index has them, read one after another."""
    with Index.create(scratch, model=model, states=codec) as index:
        index.add(documents_of(model, TOKENS, DOCUMENTS, seed=0))
    files = files_below(scratch / "states")
    size = sum(file.stat().st_size for file in files)
    buffer = bytearray(max(file.stat().st_size for file in files))

    def read() -> None:
        for file in files:
            with file.open("rb", buffering=0) as stream:
                stream.readinto(buffer)

    cold = []
    for _ in range(REPETITIONS):
        drop_from_page_cache(files)
        start = perf_counter()
        read()
        cold.append(perf_counter() - start)
    return {"warm": size / fastest(read, torch.device("cpu")), "cold": size / min(cold)}


def fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few runs."""
    seconds = []
    for _ in range(1 + REPETITIONS):
        start = perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - start)
    return min(seconds[1:])
