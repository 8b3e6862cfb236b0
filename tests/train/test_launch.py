"""The commands of docs/how-to/train.md that start several processes do so, here with two of them and no GPU."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from repository import ROOT

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig

Recipe = Callable[..., TrainConfig]

COMMANDS = re.findall(r"^accelerate launch .*$", (ROOT / "docs/how-to/train.md").read_text("utf-8"), re.MULTILINE)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_the_page_starts_each_file() -> None:
    files = {part for command in COMMANDS for part in shlex.split(command) if part.startswith("configs/accelerate/")}
    assert files == {f"configs/accelerate/{path.name}" for path in (ROOT / "configs/accelerate").iterdir()}
    for name in files:  # each says itself how it is started
        assert any(command in (ROOT / name).read_text("utf-8") for command in COMMANDS), name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.findall(r"(\w+)\.yaml", command)[0])
def test_a_documented_command_trains_with_two_processes(command: str, recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(steps=2, generative={"p_full": 0.5})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), "utf-8")
    program, launch, *words = shlex.split(command.replace("--num_processes 4", "--num_processes 2"))
    words[words.index("configs/default.yaml")] = str(tmp_path / "recipe.yaml")
    words = [launch, "--main_process_port", str(free_port()), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("2 x cpu") == 1, "two processes, of which one prints"
    run = tmp_path / "runs" / "run"
    kept = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    assert kept["sharding"] == ("fsdp2" if "fsdp2.yaml" in command else "none")
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [step["step"] for step in steps if "losses" in step] == [0, 1]
    base, trained = (
        GritModel.from_pretrained(path, dtype="float32", device="cpu").encode_document(["Gulls nest."])
        for path in (config.base, run / "checkpoint")
    )
    assert abs(base - trained).max() > 1e-5
