"""Parts are trained with the rest: both losses reach them, in chunks as in one batch, and snapshots hold them."""

from collections.abc import Callable

import pytest
import torch
from repository import ENCODER
from safetensors.torch import load_file

from gritrag.config import PartsConfig
from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.loop import Trainer
from gritrag.train.read_once import ReadOnce
from gritrag.train.snapshot import snapshots

Recipe = Callable[..., TrainConfig]

KINDS = {
    "latent attention": {"pooling": "latent_attention", "parts": {"latents": 6, "latent_heads": 4}},
    "projection": {"pooling": "mean", "parts": {"projection": 12}},
    "contextual": {"pooling": "first+last", "parts": {"contextual_encoder": ENCODER}, "template": "instruct"},
    "demonstrations": {"pooling": "last", "parts": {"demonstrations": 3}, "template": "instruct"},
}


def gradients(model: GritModel) -> dict[str, torch.Tensor]:
    parameters = [*model.lm.named_parameters(), *model.parts.named_parameters(prefix="parts")]
    found = {name: parameter.grad.clone() for name, parameter in parameters if parameter.grad is not None}
    model.lm.zero_grad()
    model.parts.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_parts_in_chunks_are_those_of_one_batch(
    make_model: Callable[..., GritModel], recipe: Recipe, kind: str
) -> None:
    fields = KINDS[kind]
    model = make_model(**{**fields, "parts": PartsConfig(**fields["parts"])})
    model.parts.requires_grad_()
    found = []
    for changes in ({"chunk_tokens": 10_000}, {"chunk_tokens": 1, "recompute": True}):
        config = recipe(data={"chat": [], "tokens_per_step": 400}, generative={"p_full": 0}, **fields, **changes)
        step = Mixture(config, model).step(0)
        assert isinstance(step, RetrievalStep)
        ReadOnce(model, config)(step)
        found.append(gradients(model))
    plain, chunked = found
    of_parts = [name for name in plain if name.startswith("parts.")]
    assert of_parts
    assert any(plain[name].abs().max() > 1e-6 for name in of_parts)
    assert plain.keys() == chunked.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(chunked[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_answers_train_the_contextual_token_through_the_states(
    make_model: Callable[..., GritModel], recipe: Recipe
) -> None:
    fields = KINDS["contextual"]
    model = make_model(**{**fields, "parts": PartsConfig(**fields["parts"])})
    model.parts.requires_grad_()
    config = recipe(data={"chat": []}, contrastive={"weight": 0}, generative={"p_full": 0, "p_chat": 0}, **fields)
    assert ReadOnce(model, config)(Mixture(config, model).step(0)).losses.keys() == {"placed"}
    assert gradients(model)["parts.contextual.project.enter.weight"].abs().max() > 1e-6


def test_parts_are_trained_and_kept_while_encoders_stay_as_they_are(recipe: Recipe) -> None:
    trainer = Trainer(recipe(steps=3, **KINDS["contextual"], adapter={"method": "lora", "rank": 2}))
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items() if "parts." in name}
    assert before.keys() == {
        f"parts.contextual.project.{n}.{w}" for n in ("enter", "leave") for w in ("weight", "bias")
    }
    trainer.train()
    kept = load_file(snapshots(trainer.run)[-1] / "weights.safetensors")
    for name, value in before.items():
        assert not torch.equal(trainer.parameters[name], value), name
        assert torch.equal(kept[name], trainer.parameters[name]), name
