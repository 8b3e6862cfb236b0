"""From trained weights to a checkpoint directory that `GritModel.from_pretrained` loads."""

from collections.abc import Mapping
from pathlib import Path

import torch

from gritrag.config import CheckpointConfig
from gritrag.folders import give_usual_rights
from gritrag.model import ternary
from gritrag.model.adapter import PeftModel, extract
from gritrag.model.answerability import ANSWERABILITY_FILE
from gritrag.model.checkpoint import SAVED_MODEL
from gritrag.model.grit import GritModel
from gritrag.model.names import locate
from gritrag.model.parts import PARTS_FILE
from gritrag.model.retrieval_heads import RETRIEVAL_HEADS_FILE, RetrievalHeads
from gritrag.train.config import TrainConfig

ADAPTER = "adapter"


def load_base(config: TrainConfig, device: str) -> GritModel:
    """The model that a recipe starts from, reading as its checkpoint will."""
    return GritModel.from_pretrained(
        config.base,
        dtype=config.dtype,
        device=device,
        reading=config.reading,
        pooling=config.pooling,
        template=config.template,
        instruction=config.instruction,
        link_tokens=config.link_tokens,
        parts=config.parts,
    )


def export(
    model: GritModel,
    adapter: PeftModel | None,
    config: TrainConfig,
    folder: Path,
    moments: Mapping[str, torch.Tensor] | None = None,
) -> str:
    """Write the checkpoint.

    Args:
        model: trained.
        adapter: peft's wrapper where an adapter was trained; None where weights were, of which it is then extracted.
        config: the recipe.
        folder: made, or written over.
        moments: of the layers' inputs, for an extracted adapter; see `gritrag.model.adapter.extract`.

    Returns:
        what was written, in one line; for an extracted adapter, what the extraction costs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_whole = config.adapter.embeddings and config.adapter.method == "full"
    if is_whole:
        model.lm.save_pretrained(folder / SAVED_MODEL)
        model.tokenizer.save_pretrained(folder / SAVED_MODEL)
        told = "the whole model, embeddings included"
    elif adapter is not None:
        adapter.save_pretrained(str(folder / ADAPTER))
        told = f"the trained adapter of rank {config.adapter.rank}"
    else:
        told = _extracted(model, config, folder, moments)
    if not model.parts.is_empty:
        model.parts.save(folder / PARTS_FILE)
    for fitted in (ANSWERABILITY_FILE, RETRIEVAL_HEADS_FILE):  # to the weights that were written over
        (folder / fitted).unlink(missing_ok=True)
    if (heads := _retrieval_heads(model, config)) is not None:
        heads.save(folder / RETRIEVAL_HEADS_FILE)
    CheckpointConfig(
        base=SAVED_MODEL if is_whole else config.base,
        adapter=None if is_whole else ADAPTER,
        template=config.template,
        pooling=config.pooling,
        reading=config.reading,
        instruction=config.instruction,
        link_tokens=config.link_tokens,
        parts=config.parts,
        parts_file=None if model.parts.is_empty else PARTS_FILE,
    ).save(folder)
    give_usual_rights(folder)
    return f"{folder}: {told}"


def _extracted(model: GritModel, config: TrainConfig, folder: Path, moments: Mapping[str, torch.Tensor] | None) -> str:
    """Write the adapter that turns the base into the model, as far as one can; what it is, and what it costs."""
    weights, settings = load_base(config, "cpu").lm.state_dict(), config.adapter
    if settings.form == "ternary":
        cost, what = ternary.write(model.lm, weights, folder / ADAPTER, moments), "a ternary adapter"
    else:
        cost = extract(model.lm, weights, settings.rank, folder / ADAPTER, config.base, moments)
        what = f"an adapter of rank {settings.rank}"
    return (
        f"{what} extracted from the change of weights: {cost.nbytes / 1e6:.1f} MB, "
        f"loses {cost.weight_error:.1%} of the change of weights, {cost.output_error:.1%} of that of outputs"
    )


def _retrieval_heads(model: GritModel, config: TrainConfig) -> RetrievalHeads | None:
    """Those of the base, or of the checkpoint that the run went on from: training moves no head to another place."""
    if model.retrieval_heads is not None or not config.init or Path(config.init).is_file():
        return model.retrieval_heads
    try:
        file = locate(config.init) / RETRIEVAL_HEADS_FILE
    except ValueError:  # it has gone meanwhile, and what was trained is to be written all the same
        return None
    return RetrievalHeads.load(file) if file.is_file() else None
