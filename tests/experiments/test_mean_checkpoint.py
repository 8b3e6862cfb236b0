"""The mean of two checkpoints, at smoke size: what both changed is kept, what one did alone is halved."""

from pathlib import Path

import pytest
import torch
from repository import TINY

from experiments.mean_checkpoint import mean
from gritrag import GritModel
from gritrag.config import CheckpointConfig
from gritrag.model import ternary
from gritrag.model.weight_change import linear_layers


def checkpoint(folder: Path, change: float) -> str:
    """The tiny base with a constant added to every weight of its linear layers, which three values hold exactly."""
    model = GritModel.from_pretrained(TINY, dtype="float32", device="cpu")
    base = {name: tensor.clone() for name, tensor in model.lm.state_dict().items()}
    signs = torch.Generator().manual_seed(0)
    for layer in linear_layers(model.lm).values():
        layer.weight.data += change * torch.randint(0, 2, layer.weight.shape, generator=signs)
    ternary.write(model.lm, base, folder / "adapter")
    CheckpointConfig(base=TINY, adapter="adapter", template="gritrag").save(folder)
    return str(folder)


def weights(name: str) -> dict[str, torch.Tensor]:
    model = GritModel.from_pretrained(name, dtype="float32", device="cpu")
    return {name: layer.weight.detach() for name, layer in linear_layers(model.lm).items()}


def test_the_mean_stands_between_and_the_share_says_where(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "one", 0.5), checkpoint(tmp_path / "two", -0.25)
    for share in (0.5, 0.25):
        out = tmp_path / f"mean-{share}"
        cost = mean(one, two, out, share)
        assert cost.weight_error < 0.02
        first, second, got = weights(one), weights(two), weights(str(out))
        for name, weight in got.items():
            torch.testing.assert_close(weight, first[name].lerp(second[name], share), atol=2e-3, rtol=1e-2)


def test_a_folder_that_holds_something_and_another_base_are_refused(tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "one", 0.5)
    with pytest.raises(ValueError, match="is not empty"):
        mean(one, one, tmp_path)
    with pytest.raises(ValueError, match="only changes of one base have a mean"):
        mean(one, "smollm2-135m", tmp_path / "out")
