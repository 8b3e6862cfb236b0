"""Facts that belong to every measurement: commit, machine, dtype, threads and versions."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

from gritrag import __version__
from gritrag.model.grit import GritModel

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
