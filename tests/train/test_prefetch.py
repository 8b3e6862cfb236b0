"""Steps that other processes made are those that the mixture makes, in order, from wherever a run goes on."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.prefetch import Prefetch
from gritrag.train.loop import Trainer

Recipe = Callable[..., TrainConfig]
KINDS = {"p_chat": 0.3, "p_full": 0.3}


@pytest.fixture
def mixture(recipe: Recipe) -> Mixture:
    config = recipe(generative=KINDS)
    return Mixture(config, GritModel.from_pretrained(config.base, dtype="float32", device="cpu"))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_steps_are_the_mixtures_own(mixture: Mixture, workers: int) -> None:
    prefetch = Prefetch(mixture, workers, 40)
    # in order, from further on, and back again
    for number in (*range(6), *range(20, 24), 3, 4):
        assert prefetch.step(number) == mixture.step(number)


def test_processes_are_started_once_for_steps_in_a_row(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    prefetch, started = Prefetch(mixture, 1, 9), []
    inner = prefetch._loader
    monkeypatch.setattr(prefetch, "_loader", lambda numbers: started.append(numbers) or inner(numbers))
    for number in (0, 1, 2, 5, 6):
        prefetch.step(number)
    assert started == [range(9), range(5, 9)]


def test_the_last_step_is_made_too(mixture: Mixture) -> None:
    prefetch = Prefetch(mixture, 2, 5)
    assert [prefetch.step(number) for number in range(5)] == [mixture.step(number) for number in range(5)]


def test_what_a_worker_raises_reaches_the_run(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(number: int) -> None:
        raise ValueError(f"step {number} is broken")

    monkeypatch.setattr(mixture, "step", broken)
    with pytest.raises(ValueError, match="step 0 is broken"):
        Prefetch(mixture, 1, 5).step(0)


def test_a_run_with_workers_equals_one_without(recipe: Recipe) -> None:
    trained = []
    for workers in (0, 2):
        trainer = Trainer(recipe(name=f"run-{workers}", generative=KINDS, data={"workers": workers}))
        trainer.train()
        trained.append(trainer.parameters)
    for name, parameter in trained[0].items():
        assert torch.equal(parameter, trained[1][name]), name


def test_stages_have_steps_of_their_own(recipe: Recipe) -> None:
    stages = [{"generative": {"documents_per_context": [1]}}, {"generative": {"documents_per_context": [2]}}]
    runs = [
        Trainer(recipe(name=f"run-{workers}", steps=4, stages=stages, data={"workers": workers})) for workers in (0, 2)
    ]
    for run in runs:
        run.train()
    for name, parameter in runs[0].parameters.items():
        assert torch.equal(parameter, runs[1].parameters[name]), name


def test_a_system_that_does_not_fork_is_told(mixture: Mixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ValueError, match=r"use data\.workers=0"):
        Prefetch(mixture, 2, 5)
    assert Prefetch(mixture, 0, 5).step(1) == mixture.step(1)
