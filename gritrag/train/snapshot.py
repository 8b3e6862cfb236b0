"""What a run leaves on disk so that it can go on: weights, optimizer and counters, complete or absent.

runs/<name>/
    config.yaml              the recipe as it was run
    metrics.jsonl            one line per step and per validation
    step-00000120/
        weights.safetensors  trainable parameters by name
        optimizer.safetensors  "<parameter>/<field>", torch's random state, and "memory/<field>"
        state.json           fields of `Progress`, version
    checkpoint/              what `GritModel.from_pretrained` loads, written at the end
"""

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gritrag.folders import give_usual_rights
from gritrag.model.grit import GritModel
from gritrag.train.objectives.cross_batch_memory import CrossBatchMemory
from gritrag.train.sharding import gathered, scattered

FORMAT = 1
SCRATCH = ".writing-"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
RANDOM, MEMORY = "torch_random_state", "memory"


class Progress(NamedTuple):
    """`step` steps are done, in `seconds` of training, over `tokens` tokens; `stage` began at `stage_start`."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    stage: int = 0
    stage_start: int = 0


def save(
    run: Path,
    progress: Progress,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    memory: CrossBatchMemory,
    keep: int,
    writes: bool = True,
) -> None:
    """Write a snapshot, then remove all but the `keep` latest.

    All processes must call it, for sharded tensors are gathered here; the one that `writes` does the rest.
    """
    weights = _whole(parameters, writes)
    moments = _whole(_optimizer_tensors(parameters, optimizer), writes)
    if not writes:
        return
    target = run / f"step-{progress.step:08d}"
    for torn in run.glob(f"{SCRATCH}*"):  # of a run that was killed here; nobody else writes this folder
        shutil.rmtree(torn)
    scratch = run / f"{SCRATCH}{progress.step:08d}"
    scratch.mkdir(parents=True)
    save_file(weights, scratch / WEIGHTS)
    remembered = {f"{MEMORY}/{name}": tensor for name, tensor in memory.tensors().items()}
    save_file(moments | remembered, scratch / OPTIMIZER)
    give_usual_rights(scratch)
    (scratch / STATE).write_text(json.dumps({"format": FORMAT, **progress._asdict()}), "utf-8")
    for file in scratch.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    if target.exists():
        shutil.rmtree(target)
    scratch.rename(target)
    for old in snapshots(run)[:-keep]:
        shutil.rmtree(old)


def snapshots(run: Path) -> list[Path]:
    """Complete snapshots of a run, earliest first."""
    return sorted(path for path in run.glob("step-*") if (path / STATE).is_file())


def restore(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, memory: CrossBatchMemory
) -> Progress:
    """Put a snapshot into parameters, optimizer and memory, in place.

    Raises:
        ValueError: the snapshot is of another model or another set of trained parameters, or of a later format.
    """
    state = json.loads((folder / STATE).read_text("utf-8"))
    if state.pop("format") > FORMAT:
        raise ValueError(f"{folder} was written by a later version; upgrade gritrag")
    load_weights(str(folder / WEIGHTS), parameters)
    tensors = load_file(folder / OPTIMIZER)
    torch.set_rng_state(tensors.pop(RANDOM))
    memory.restore({key.removeprefix(f"{MEMORY}/"): t for key, t in tensors.items() if key.startswith(f"{MEMORY}/")})
    for name, parameter in parameters.items():
        prefix = f"{name}/"
        fields = {key.removeprefix(prefix): tensors[key] for key in list(tensors) if key.startswith(prefix)}
        if fields:
            optimizer.state[parameter] = {
                field: value if field == "step" else scattered(value, parameter) for field, value in fields.items()
            }
    return Progress(**state)


def load_weights(source: str, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put the weights of an earlier run into parameters, in place; see `stored_weights`."""
    tensors = stored_weights(source, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(scattered(tensors[name], parameter))


def average_weights(sources: Sequence[str], parameters: Mapping[str, nn.Parameter]) -> None:
    """Make parameters the mean of themselves and of the weights of other runs, in place (Wortsman et al. 2022, model
    soups, arXiv 2203.05482); see `stored_weights`."""
    for count, source in enumerate(sources, start=2):
        tensors = stored_weights(source, parameters)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.lerp_(tensors[name].to(parameter), 1 / count)


def stored_weights(source: str, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The weights of an earlier run, by name.

    Args:
        source: ``weights.safetensors`` of a snapshot; or a checkpoint, as `GritModel.from_pretrained` takes it. That is
            less than a snapshot where its adapter was extracted, and all there is where the run's folder is gone.
        parameters: those of the model that they are for, by name.

    Raises:
        ValueError: neither of them, or names or shapes that differ.
    """
    file = Path(source)
    if file.is_file():
        tensors = load_file(file)
    elif file.suffix == Path(WEIGHTS).suffix:
        raise ValueError(f"there are no weights {file}; name a checkpoint, or the {WEIGHTS} of a run's snapshot")
    else:
        tensors = _of_checkpoint(source, parameters)
    differing = sorted(set(tensors) ^ set(parameters))
    if differing:
        raise ValueError(
            f"{source} holds {len(tensors)} parameters, this recipe trains {len(parameters)}; the first that differs "
            f"is {differing[0]}: base and adapter settings must be those of the run that wrote it"
        )
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise ValueError(
                f"{source}: {name} has shape {list(tensors[name].shape)}, the model's has {list(parameter.shape)}"
            )
    return tensors


def _of_checkpoint(source: str, wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Those weights of a checkpoint that are trained, its adapter merged."""
    model = GritModel.from_pretrained(source, dtype="float32", device="cpu")
    found = {**dict(model.lm.named_parameters()), **{f"parts.{n}": p for n, p in model.parts.named_parameters()}}
    if any(name not in found for name in wanted):
        first = next(name for name in wanted if name not in found)
        raise ValueError(
            f"{source} is a checkpoint, and has no {first}: its adapter is merged into its weights, so it goes on with "
            "adapter.method=full; for one of LoRA name its folder in adapter.init"
        )
    return {name: found[name].detach() for name in wanted}


def _optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    tensors = {RANDOM: torch.get_rng_state()}
    for name, parameter in parameters.items():
        for field, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, torch.Tensor), f"AdamW keeps tensors only, got {field} of {type(value)}"
            tensors[f"{name}/{field}"] = value
    return tensors


def _whole(tensors: Mapping[str, torch.Tensor], are_kept: bool) -> dict[str, torch.Tensor]:
    """One after the other gathered, and moved out of the way of the next."""
    whole = ((name, gathered(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu().contiguous() for name, tensor in whole if are_kept}
