"""The mean of two checkpoints on one base, as a checkpoint with a ternary adapter.

    python -m experiments.mean_checkpoint gritrag-smollm2-135m runs/gpu/checkpoint --out mean

Weights of one task that began at the same place can be averaged, and the mean is often better than either (model soups:
Wortsman et al. 2022, arXiv 2203.05482). Layers behind the pooling are left out, as their vectors are others now: fit
them anew with `gritrag whiten`.
"""

import argparse
from pathlib import Path

import torch

from gritrag import GritModel
from gritrag.config import CheckpointConfig
from gritrag.model import ternary
from gritrag.model.weight_change import Extraction, linear_layers


def mean(first: str, second: str, out: Path, share: float = 0.5) -> Extraction:
    """Write the mean of the linear layers of two checkpoints.

    Args:
        first, second: names or folders, on the same base.
        out: a new folder.
        share: weight of the second.

    Returns:
        bytes of the adapter, and what rounding it costs.

    Raises:
        ValueError: the checkpoints have different bases, or there is something in `out`.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    models = [GritModel.from_pretrained(name, dtype="float32", device="cpu") for name in (first, second)]
    bases = [model.config.base for model in models]
    if bases[0] != bases[1]:
        raise ValueError(
            f"{first} stands on {bases[0]} and {second} on {bases[1]}: only changes of one base have a mean"
        )
    layers, others = (linear_layers(model.lm) for model in models)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.lerp_(others[name].weight, share)
    base = GritModel.from_pretrained(bases[0], dtype="float32", device="cpu").lm.state_dict()
    cost = ternary.write(models[0].lm, base, out / "adapter")
    config = models[1].config
    CheckpointConfig(
        base=config.base,
        adapter="adapter",
        template=config.template,
        pooling=config.pooling,
        reading=config.reading,
        instruction=config.instruction,
    ).save(out)
    return cost


def main() -> None:
    """Average, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.5, help="weight of the second")
    given = parser.parse_args()
    cost = mean(given.first, given.second, given.out, given.share)
    print(f"{given.out}: {cost.nbytes / 1e6:.1f} MB, rounding loses {cost.weight_error:.1%} of the change of weights")


if __name__ == "__main__":
    main()
