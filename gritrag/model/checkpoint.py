"""A checkpoint of its own: weights with the adapter merged, tokenizer, trained parts, and how it reads."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gritrag.config import FORMAT, CheckpointConfig, Origin
from gritrag.folders import give_usual_rights
from gritrag.model.answerability import ANSWERABILITY_FILE, Answerability
from gritrag.model.identity import hash_files
from gritrag.model.parts import PARTS_FILE, Parts
from gritrag.model.retrieval_heads import RETRIEVAL_HEADS_FILE, RetrievalHeads

SAVED_MODEL = "model"
"""Folder of the weights inside a checkpoint."""


def save_checkpoint(
    folder: Path,
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: CheckpointConfig,
    parts: Parts,
    identity: tuple[str, str],
    answerability: Answerability | None = None,
    retrieval_heads: RetrievalHeads | None = None,
) -> None:
    """Write one; see `GritModel.save_pretrained`.

    Args:
        folder: made, or written over.
        identity: of the weights and of the adapter, for the fingerprint of the copy.
        answerability, retrieval_heads: of the model, if it has any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lm.save_pretrained(folder / SAVED_MODEL)
    tokenizer.save_pretrained(folder / SAVED_MODEL)
    parts_file = None if parts.is_empty else PARTS_FILE
    if parts_file is not None:
        parts.save(folder / parts_file)
    (folder / ANSWERABILITY_FILE).unlink(missing_ok=True)
    if answerability is not None:
        answerability.save(folder / ANSWERABILITY_FILE)
    (folder / RETRIEVAL_HEADS_FILE).unlink(missing_ok=True)
    if retrieval_heads is not None:
        retrieval_heads.save(folder / RETRIEVAL_HEADS_FILE)
    origin = Origin(files=hash_files(folder / SAVED_MODEL), weights=identity[0], adapter=identity[1])
    written = {"format": FORMAT, "base": SAVED_MODEL, "adapter": None, "parts_file": parts_file, "origin": origin}
    config.model_copy(update=written).save(folder)
    give_usual_rights(folder)
