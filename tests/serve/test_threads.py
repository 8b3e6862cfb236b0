"""Threads that compute: those of the engine have the processors to themselves."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gritrag import GritModel
from gritrag.cli import app
from gritrag.serve import server
from gritrag.serve.service import Service
from gritrag.serve.threads import compute_with, in_thread

TEAM = """
import os, time, torch
from gritrag.serve.threads import apart
torch.set_num_threads(4)
before = len(os.listdir("/proc/self/task"))
work = lambda: (torch.ones(1 << 22) + 1, len(os.listdir("/proc/self/task")))[1]
inside, end = apart(work), time.monotonic() + 20
while len(os.listdir("/proc/self/task")) > before and time.monotonic() < end:
    time.sleep(0.01)  # they end by themselves
print(inside - before, len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no list of threads")
def test_what_is_computed_apart_leaves_no_threads() -> None:
    done = subprocess.run([sys.executable, "-c", TEAM], capture_output=True, text=True, check=True)
    inside, after = map(int, done.stdout.split())
    assert inside == 4, "no team of OpenMP threads"
    assert after == 0


def test_a_thread_keeps_its_number_whoever_sets_theirs() -> None:
    """Though it has not computed before others set it."""
    before, seen = torch.get_num_threads(), list[int]()
    begun, set_by_others = threading.Event(), threading.Event()

    def engine() -> None:
        compute_with(3)
        begun.set()
        set_by_others.wait(20)
        torch.ones(1 << 20).add(1)
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=engine)
    thread.start()
    try:
        begun.wait(20)
        assert asyncio.run(in_thread(torch.get_num_threads)) == 1
        torch.set_num_threads(1)
        set_by_others.set()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [3]


def test_the_model_is_loaded_apart(tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaders: list[threading.Thread] = []

    def load(*options: str) -> GritModel:
        loaders.append(threading.current_thread())
        return tiny_model

    async def finish(service: Service) -> None:
        service.engine.start()
        await service.finish()

    monkeypatch.setattr("gritrag.cli.serving.load_model", load)
    monkeypatch.setattr(server, "run", lambda service, host, port: asyncio.run(finish(service)))
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "index"), "--data", str(tmp_path / "data")])
    assert result.exit_code == 0, result.output
    (loader,) = loaders
    assert loader is not threading.main_thread()
    assert not loader.is_alive()
