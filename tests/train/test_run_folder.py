"""One run writes a folder at a time; a recipe that goes on there with other settings says so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gritrag.train.config import TrainConfig
from gritrag.train.loop import Trainer
from gritrag.train.run_folder import RECIPE, changed, held


def test_a_second_run_is_refused_and_takes_nothing_from_the_first(recipe: Callable[..., TrainConfig]) -> None:
    first = Trainer(recipe(steps=2))
    assert first.train() is not None
    kept = {file: file.stat().st_mtime_ns for file in first.run.rglob("*") if file.is_file()}
    second = Trainer(recipe(steps=3))
    with held(first.run, is_first=True), pytest.raises(ValueError, match=r"being written by another run.*--set name="):
        second.train()
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    with held(first.run, is_first=True), held(first.run, is_first=False):
        pass  # the other processes of a run
    assert second.train() is not None, "whoever waits is let in"


def test_a_run_with_other_settings_says_which_and_that_it_goes_on(
    recipe: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Trainer(recipe(steps=2)).train()
    assert "resuming" not in capsys.readouterr().out
    Trainer(recipe(steps=2)).train()
    told = capsys.readouterr().out
    assert "step-00000002 which is its end" in told
    assert "other settings" not in told
    Trainer(recipe(steps=3, lr=2e-3, data={"tokens_per_step": 300})).train()
    told = capsys.readouterr().out
    assert "which is its end" not in told
    assert "had other settings (data.tokens_per_step, lr, steps): give --set name=NAME" in told


def test_a_recipe_that_was_not_written_to_its_end_tells_nothing(
    recipe: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    for left in ("", "name", "lr: [1"):
        (tmp_path / RECIPE).write_text(left, "utf-8")
        assert changed(tmp_path, recipe()) == []
