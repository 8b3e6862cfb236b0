"""The folder of a run: one run writes it at a time, and a recipe that goes on there with other settings is told."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from gritrag.train.config import TrainConfig

__all__ = ["RECIPE", "changed", "held"]

RECIPE = "config.yaml"


@contextmanager
def held(run: Path, is_first: bool) -> Iterator[None]:
    """Keep other runs out of the folder, which is made if need be; the first of several processes does.

    Raises:
        ValueError: a run is writing it.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / "lock", timeout=0)
    if not is_first:
        yield
        return
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{run} is being written by another run: wait for its end, or give this one a name: --set name=NAME"
        ) from None
    try:
        yield
    finally:
        lock.release()


def changed(run: Path, config: TrainConfig) -> list[str]:
    """Settings, such as ``data.data_dir``, in which a recipe differs from the one that was last run in a folder; none
    where that was never written to its end."""
    file = run / RECIPE
    try:
        written = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else None
    except yaml.YAMLError:
        return []
    if not isinstance(written, dict):
        return []
    before, now = dict(_flat("", written)), dict(_flat("", config.model_dump(mode="json")))
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _flat(prefix: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value
