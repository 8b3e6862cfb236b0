"""Sharded runs: two processes that hold a half of everything each train as two that hold all of it do."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.loop import Trainer
from gritrag.train.snapshot import snapshots

KINDS: dict[str, dict[str, Any]] = {
    "full": {
        "adapter": {"method": "full", "embeddings": True},
        "recompute": True,
        "contrastive": {"cross_batch_memory": 20},
        "autocast": False,  # what is sharded computes in float32, so what is not must too
    },
    "lora": {"adapter": {"method": "lora", "rank": 4}, "parts": {"projection": 16}},
}


class Interrupted(Trainer):
    """The second process gets SIGTERM in the middle of the second step."""

    def step(self) -> dict[str, Any]:
        if self.progress.step == 1 and self.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step()


class Runs(NamedTuple):
    """Runs of one recipe by two processes: whole, in parts, in parts with an interruption. `held` is of each process:
    how many numbers of each parameter and of its moments."""

    whole: TrainConfig
    parts: TrainConfig
    broken: TrainConfig
    held: list[dict[str, int]]


def train(rank: int, folder: Path, jobs: list[tuple[type[Trainer], TrainConfig]]) -> None:
    """One of two processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for kind, config in jobs:
        trainer = kind(config)
        trainer.train()
    held = {
        f"{name}/{field}": (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()
        for name, parameter in trainer.parameters.items()
        for field, tensor in {"weight": parameter, **trainer.optimizer.state[parameter]}.items()
    }
    torch.save(held, folder / f"held-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=KINDS)
def runs(
    request: pytest.FixtureRequest, tiny_base: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    folder = tmp_path_factory.mktemp("sharded")

    def config(name: str, sharding: str) -> TrainConfig:
        fields = {
            "name": name,
            "sharding": sharding,
            "base": str(tiny_base),
            "runs_dir": str(folder),
            "device": "cpu",
            "steps": 4,
            "lr": 1e-3,
            "chunk_tokens": 60,
            "max_grad_norm": 0.1,
            "data": {
                "data_dir": str(data_dir),
                "sources": [{"path": "questions.jsonl"}],
                "chat": [{"path": "chat.jsonl"}],
                "tokens_per_step": 200,
            },
            "generative": {"p_chat": 0.3, "p_full": 0.3, "max_start": 9},
            "validation": {"paths": ["questions.jsonl"], "every": 3, "documents": 4, "answers": 2},
        }
        return TrainConfig.model_validate({**fields, **KINDS[request.param]})

    whole, parts, broken = config("whole", "none"), config("parts", "fsdp2"), config("broken", "fsdp2")
    jobs = [(Trainer, whole), (Interrupted, broken), (Trainer, broken), (Trainer, parts)]
    mp.spawn(train, (folder, jobs), nprocs=2)
    return Runs(whole, parts, broken, [torch.load(folder / f"held-{rank}.pt") for rank in range(2)])


def last(config: TrainConfig, file: str = "weights.safetensors") -> dict[str, torch.Tensor]:
    return load_file(snapshots(Path(config.runs_dir) / config.name)[-1] / file)


def test_training_in_parts_equals_training_whole(runs: Runs) -> None:
    whole, parts = last(runs.whole), last(runs.parts)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_resumed_sharded_run_equals_an_unbroken_one(runs: Runs) -> None:
    assert [folder.name for folder in snapshots(Path(runs.broken.runs_dir) / "broken")] == [
        "step-00000002",
        "step-00000004",
    ]
    for file in ("weights.safetensors", "optimizer.safetensors"):
        want, got = last(runs.parts, file), last(runs.broken, file)
        assert want.keys() == got.keys()
        for name, value in want.items():
            assert name == "torch_random_state" or torch.equal(got[name], value), name


def test_each_process_holds_a_part_of_weights_and_moments(runs: Runs) -> None:
    weights = last(runs.parts)
    shares = {name: sum(held[f"{name}/weight"] for held in runs.held) for name in weights}
    for name, tensor in weights.items():
        copies = 2 if name.startswith("parts.") else 1
        assert shares[name] == copies * tensor.numel(), name
        assert all(held[f"{name}/exp_avg"] == held[f"{name}/weight"] < copies * tensor.numel() for held in runs.held)


def test_the_checkpoint_of_a_sharded_run_loads_and_reads_as_that_of_a_whole_one(runs: Runs) -> None:
    base = GritModel.from_pretrained(runs.whole.base, dtype="float32", device="cpu")
    want, got = (
        GritModel.from_pretrained(
            Path(config.runs_dir) / config.name / "checkpoint", dtype="float32", device="cpu"
        ).encode_document(["Gulls nest."])
        for config in (runs.whole, runs.parts)
    )
    np.testing.assert_allclose(got, want, atol=1e-4)
    if want.shape[1] == base.dim:
        assert np.abs(base.encode_document(["Gulls nest."]) - want).max() > 1e-3


def test_a_snapshot_of_a_sharded_run_is_one_of_any_run(runs: Runs, tmp_path: Path) -> None:
    source = snapshots(Path(runs.parts.runs_dir) / "parts")[-1]
    shutil.copytree(source, tmp_path / "alone" / source.name)
    alone = Trainer(runs.parts.model_copy(update={"name": "alone", "runs_dir": str(tmp_path), "sharding": "none"}))
    assert alone.train() is not None
    assert alone.progress.step == 4
    for name, value in last(runs.parts).items():
        assert torch.equal(alone.parameters[name], value), name


def test_one_process_alone_has_nothing_to_share(runs: Runs, tmp_path: Path) -> None:
    weights = []
    for sharding in ("none", "fsdp2"):
        trainer = Trainer(runs.whole.model_copy(update={"sharding": sharding, "runs_dir": str(tmp_path / sharding)}))
        trainer.step()
        weights.append({name: parameter.detach() for name, parameter in trainer.parameters.items()})
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name
