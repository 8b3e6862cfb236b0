"""Stages: one after the other, each as its own settings say, and a resumed run is an unbroken one."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gritrag.train.config import TrainConfig
from gritrag.train.loop import Trainer

Recipe = Callable[..., TrainConfig]

STAGES: list[dict[str, Any]] = [
    {"name": "mask", "masked": {"weight": 1}, "contrastive": {"weight": 0}},
    {"name": "views", "views": {"weight": 1}, "contrastive": {"weight": 0}, "lr": 5e-4},
    {"name": "pairs", "share": 2, "warmup_steps": 0},
]
ALONE = {"weight": 0, "p_full": 0, "p_chat": 0}


def staged(recipe: Recipe, **changes: Any) -> TrainConfig:
    return recipe(**{"steps": 8, "stages": STAGES, "generative": ALONE, "reading": "bidirectional", **changes})


class Stopped(Trainer):
    """Gets SIGTERM in the step before its last stage."""

    def step(self) -> dict[str, Any]:
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step()


def run(trainer: Trainer) -> list[dict[str, Any]]:
    taken = []
    for _ in range(trainer.config.steps):
        taken.append(trainer._timed_step())
    return taken


def test_each_stage_has_its_share_its_losses_and_its_schedule(recipe: Recipe) -> None:
    trainer = Trainer(staged(recipe, schedule="linear", min_lr_ratio=0.0, warmup_steps=0))
    taken = run(trainer)
    assert [set(record["losses"]) for record in taken] == [{"masked"}] * 2 + [{"views"}] * 2 + [{"contrastive"}] * 4
    rates = [record["lr"] for record in taken]
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert (trainer.progress.stage, trainer.progress.stage_start) == (2, 4)
    assert int(next(iter(trainer.optimizer.state.values()))["step"]) == 4, "an optimizer of its own"


def test_a_run_that_is_resumed_where_a_stage_begins_equals_an_unbroken_one(recipe: Recipe) -> None:
    unbroken = Trainer(staged(recipe, name="unbroken"))
    unbroken.train()
    first = Stopped(staged(recipe, name="broken"))
    assert first.train() is None
    assert (first.progress.step, first.progress.stage) == (4, 1)
    resumed = Trainer(staged(recipe, name="broken"))
    assert resumed.train() is not None
    for name, parameter in unbroken.parameters.items():
        assert torch.equal(resumed.parameters[name], parameter), name


def test_a_run_does_not_go_on_in_a_stage_that_the_recipe_has_not(recipe: Recipe) -> None:
    config = recipe(steps=2, stages=[{}, {}])
    Trainer(config).train()
    with pytest.raises(ValueError, match="was written in stage 2, and the recipe has 1"):
        Trainer(config.model_copy(update={"stages": (), "steps": 4})).train()


def test_a_run_can_end_by_tokens(recipe: Recipe) -> None:
    trainer = Trainer(recipe(steps=1000, tokens=1500, generative=ALONE))
    assert trainer.train() is not None
    assert trainer.progress.tokens >= 1500 > trainer.progress.tokens * (1 - 1 / trainer.progress.step)


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ({"contrastive": {"temprature": 1}}, "temprature"),
        ({"steps": 3}, "steps"),
        ({"share": 0}, "greater than 0"),
        ({"data": {"sources": []}}, "at least 1 item"),
    ],
)
def test_a_broken_stage_is_refused_at_once(recipe: Recipe, stage: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        recipe(stages=[stage])


def test_groups_of_a_stage_are_laid_over_the_recipes(recipe: Recipe) -> None:
    config = recipe(contrastive={"temperature": 0.3}, stages=[{}, {"contrastive": {"symmetric": True}}])
    first, second = config.in_stages()
    assert first == config.model_copy(update={"stages": ()})
    assert (second.contrastive.temperature, second.contrastive.symmetric) == (0.3, True)


# --- recipes that build on others -------------------------------------------------------------------------------------


def write(folder: Path, **files: dict[str, Any]) -> None:
    for name, fields in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(fields), "utf-8")


def test_a_recipe_extends_others_in_order(tmp_path: Path) -> None:
    base = {"name": "a", "lr": 0.1, "data": {"sources": [{"path": "x"}], "tokens_per_step": 7}}
    write(tmp_path, a=base, b={"lr": 0.2, "data": {"data_dir": "d"}}, c={"extends": ["a.yaml", "b.yaml"], "name": "c"})
    config = TrainConfig.load(tmp_path / "c.yaml", ["model=m"])
    assert (config.name, config.lr, config.base) == ("c", 0.2, "m")
    assert (config.data.tokens_per_step, config.data.data_dir) == (7, "d")
    write(tmp_path, d={"extends": "e.yaml"}, e={"extends": "d.yaml"})
    with pytest.raises(ValueError, match="extends itself"):
        TrainConfig.load(tmp_path / "d.yaml")
    write(tmp_path, f={"extends": "gone.yaml"})
    with pytest.raises(ValueError, match=r"cannot read the recipe .*gone\.yaml"):
        TrainConfig.load(tmp_path / "f.yaml")
