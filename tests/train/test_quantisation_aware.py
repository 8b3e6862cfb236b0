"""Training with the weights that will be shipped: what is computed with is what loads, what is kept is the whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gritrag.model import ternary
from gritrag.model.grit import GritModel
from gritrag.model.weight_change import linear_layers
from gritrag.train.config import TrainConfig
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.loop import Trainer
from gritrag.train.quantisation_aware import QuantisationAware
from gritrag.train.read_once import StepLosses

Recipe = Callable[..., TrainConfig]
TERNARY = {"form": "ternary"}
PLACED = {"p_chat": 0, "p_full": 0}


def weights(lm: Any) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in linear_layers(lm).items()}


def test_inside_are_the_weights_that_load_and_outside_those_in_training(tiny_base: Path, tmp_path: Path) -> None:
    lm = GritModel.from_pretrained(str(tiny_base), dtype="float32", device="cpu").lm
    base = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    as_shipped = QuantisationAware(lm)
    with as_shipped():
        assert all(torch.equal(w, base[f"{name}.weight"]) for name, w in weights(lm).items()), "no change yet"
    with torch.no_grad():
        for layer in linear_layers(lm).values():
            layer.weight += torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)) / 50
    whole = weights(lm)
    ternary.write(lm, base, tmp_path)
    loaded = GritModel.from_pretrained(str(tiny_base), dtype="float32", device="cpu").lm
    ternary.add(loaded, tmp_path / ternary.TERNARY)
    with as_shipped():
        inside = weights(lm)
    for name, weight in weights(loaded).items():
        assert torch.equal(inside[name], weight), name
        assert not torch.equal(inside[name], whole[name]), name
    assert all(torch.equal(w, whole[name]) for name, w in weights(lm).items())

    with pytest.raises(KeyError), as_shipped():
        raise KeyError
    assert all(torch.equal(w, whole[name]) for name, w in weights(lm).items())


class Watched(Trainer):
    """Notes for each step whether it computes with the weights that the optimizer changes."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.seen: list[bool] = []
        inner = self.read_once._read_once

        def watch(step: RetrievalStep) -> StepLosses:
            self.seen.append(all(torch.equal(w, self.kept[name]) for name, w in weights(self.model.lm).items()))
            return inner(step)

        self.read_once._read_once = watch  # type: ignore[method-assign]

    def step(self) -> dict[str, Any]:
        self.kept = weights(self.model.lm)
        return super().step()


def test_the_last_share_of_a_run_is_aware(recipe: Recipe) -> None:
    trainer = Watched(recipe(steps=10, lr=1e-2, generative=PLACED, adapter={**TERNARY, "quantisation_aware": 0.3}))
    before = weights(trainer.model.lm)
    trainer.train()
    assert trainer.seen == [True] * 7 + [False] * 3
    assert all(not torch.equal(w, before[name]) for name, w in weights(trainer.model.lm).items()), "and it still learns"
    plain = Watched(recipe(name="plain", steps=3, lr=1e-2, generative=PLACED, adapter=TERNARY))
    plain.train()
    assert plain.seen == [True] * 3


def test_an_aware_run_is_shipped_as_it_was_trained_and_resumed_as_it_was(recipe: Recipe) -> None:
    settings = {"lr": 1e-2, "adapter": {**TERNARY, "quantisation_aware": 0.5, "calibration_steps": 0}}
    whole = Trainer(recipe(name="whole", steps=6, **settings))
    shipped = GritModel.from_pretrained(str(whole.train()), dtype="float32", device="cpu")
    assert whole._quantisation_aware is not None
    with whole._quantisation_aware():
        for name, weight in weights(shipped.lm).items():
            assert torch.equal(weight, linear_layers(whole.model.lm)[name].weight), name

    class Stopped(Trainer):
        def _must_stop(self) -> bool:
            return self.progress.step == 4

    config = recipe(name="broken", steps=6, **settings)
    assert Stopped(config).train() is None
    again = Trainer(config)
    again.train()
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, again.parameters[name]), name


def test_only_what_is_shipped_in_ternary_can_be_aware(recipe: Recipe) -> None:
    for adapter in (
        {"quantisation_aware": 0.5},
        {**TERNARY, "quantisation_aware": 0.5, "method": "lora"},
        {**TERNARY, "quantisation_aware": 0.5, "embeddings": True},
    ):
        with pytest.raises(ValueError, match=r"adapter\.quantisation_aware is of ternary adapters"):
            recipe(adapter=adapter)
    with pytest.raises(ValueError, match=r"adapter\.quantisation_aware=0 or sharding=none"):
        recipe(adapter={**TERNARY, "quantisation_aware": 0.5}, sharding="fsdp2")
