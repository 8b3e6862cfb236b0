"""A pack travels in parts and trains over there; at smoke size, on a processor, with the script that a GPU gets."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT, TINY

from experiments.gpu_pack import pack, thinned
from experiments.gpu_parts import STAGE, join
from gritrag import GritModel
from gritrag.train.config import TrainConfig

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's rows in parts of 1 KiB, without a base."""
    folder = tmp_path_factory.mktemp("gpu") / "pack"
    settings = [f"data.data_dir={ROOT / 'configs' / 'sample'}", f"base={TINY}"]
    names = pack(TrainConfig.load(QUICKSTART, settings), folder, 10**6, 1024, python="")
    assert len(names) > 2
    assert all((folder / name).stat().st_size <= 1024 for name in names)
    return folder


def test_a_large_file_is_thinned_evenly_and_a_small_one_is_not(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f"{n:04}\n" for n in range(1000)), "utf-8")
    thinned(source, tmp_path / "a" / "rows.jsonl", 10**6)
    assert (tmp_path / "a" / "rows.jsonl").read_bytes() == source.read_bytes()
    thinned(source, tmp_path / "b" / "rows.jsonl", 500)
    kept = [int(line) for line in (tmp_path / "b" / "rows.jsonl").read_text("utf-8").split()]
    assert kept == list(range(0, 1000, 10))


def test_parts_that_are_missing_or_broken_are_named_and_nothing_is_unpacked(packed: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(packed, there)
    (there / "part-1").unlink()
    (there / "part-0").write_bytes(b"x" + (there / "part-0").read_bytes()[1:])
    assert join(there) == ["part-0", "part-1"]
    assert not (there / STAGE).exists()
    for name in ("part-0", "part-1"):
        shutil.copy(packed / name, there / name)
    assert join(there) == []
    for path in (ROOT / "configs" / "sample").glob("*.jsonl"):
        assert (there / STAGE / "data" / path.name).read_bytes() == path.read_bytes()
    assert join(there) == []  # again: what was unpacked stays


def test_the_script_waits_for_parts_then_trains_and_leaves_pieces(packed: Path, tmp_path: Path) -> None:
    there, out = tmp_path / "there", tmp_path / "out"
    shutil.copytree(packed, there)
    (there / "part-1").rename(there / "late")
    base = TINY
    environment = os.environ | {
        "PACK": str(there),
        "OUT": str(out),
        "PYTHON": sys.executable,
        "RECIPE": str(QUICKSTART),
        "SETTINGS": f"base={base} device=cpu steps=2 adapter.method=full adapter.form=ternary",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", str(ROOT / "experiments" / "gpu_train.sh")]
    waits = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "still missing: part-1" in waits.stdout
    assert not out.exists()
    (there / "late").rename(there / "part-1")
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert sum("losses" in step for step in steps) == 2
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "adapter").mkdir(parents=True)
    for name in ("gritrag.json", "adapter-ternary.safetensors"):
        pieces = sorted(out.glob(f"{name}.piece-*"))
        assert pieces
        (checkpoint / name.replace("adapter-", "adapter/")).write_bytes(b"".join(p.read_bytes() for p in pieces))
    model = GritModel.from_pretrained(checkpoint, dtype="float32", device="cpu")
    assert len(model.encode_query(["who?"])) == 1
