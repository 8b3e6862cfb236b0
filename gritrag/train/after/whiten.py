"""Whitening: a linear layer behind the pooling, fitted after training, that lets no few directions outweigh the others.

Vectors of a language model share directions that tell little: all of a kind of text have them, right or wrong.
Whitening (Su et al. 2021, arXiv 2103.15316, section 3) scales each direction by the inverse of its spread. Directions
in which a question differs from the document that answers it tell little too: relevant component analysis (Bar-Hillel
et al. 2003) scales by the inverse of that spread. Here the mean of both spreads is taken, on documents and questions;
in part, by a `power` of it, as the whole lets noise speak; and without centring, as one linear layer has to serve
queries and documents alike. Only vectors change; states do not.

Shape letters: `N` texts, `Q` questions, `D` length of a vector.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gritrag.config import CHECKPOINT_FILE
from gritrag.folders import check_new, give_usual_rights
from gritrag.model.answerability import ANSWERABILITY_FILE
from gritrag.model.grit import GritModel
from gritrag.model.names import locate
from gritrag.model.parts import PARTS_FILE, PROJECTION, save_parts
from gritrag.records import Document

POWER, FLOOR = 0.35, 0.1
QUESTIONS_PER_DOCUMENT = 3
"""What the command fits to, at most: files with many questions on few documents take no longer than others."""


class Sample(NamedTuple):
    """Documents of one kind, questions, and for each question the row of the document that answers it."""

    documents: Sequence[Document]
    questions: Sequence[str]
    own: Sequence[int]


class Whitening(NamedTuple):
    """What was fitted.

    Args:
        matrix: float32 `[D, D]`, symmetric; a vector times it, normalised, is the new vector.
        documents, questions: how many it was fitted on.
        cosine_before, cosine_after: mean over pairs of different documents of the same sample.
    """

    matrix: np.ndarray
    documents: int
    questions: int
    cosine_before: float
    cosine_after: float


def whiten(model: GritModel, samples: Sequence[Sample], power: float = POWER, floor: float = FLOOR) -> Whitening:
    """Fit a whitening to a model's vectors.

    Args:
        model: embeds.
        samples: one of each kind of text; all weigh the same, and within each documents as much as questions.
        power: of the inverse spread of a direction: 0 would change nothing, 0.5 is the whole whitening.
        floor: added to all spreads, as a share of their mean: directions without spread are not blown up.

    Raises:
        ValueError: a power outside (0, 0.5], a floor of 0 or less, a sample without documents or questions, or fewer
            texts than a vector has numbers.
    """
    if not 0 < power <= 0.5 or floor <= 0:
        raise ValueError(f"power must lie in (0, 0.5] and floor above 0, got {power} and {floor}")
    if not samples or not all(sample.documents and sample.questions for sample in samples):
        raise ValueError("every sample needs documents and questions")
    texts = sum(len(sample.documents) + len(sample.questions) for sample in samples)
    if texts < model.dim:
        raise ValueError(f"{texts} texts are too few to fit {model.dim} directions to; give at least {model.dim}")
    documents = [model.encode_document(sample.documents, show_progress_bar=True) for sample in samples]
    questions = [model.encode_query(sample.questions, show_progress_bar=True) for sample in samples]
    pairs = zip(samples, documents, questions, strict=True)
    apart = [vectors_QD - vectors_ND[list(sample.own)] for sample, vectors_ND, vectors_QD in pairs]
    spread_D, directions_DD = np.linalg.eigh(_spread([*documents, *questions]) + _spread(apart))
    scale_D = (spread_D.clip(0) + floor * spread_D.mean()) ** -power
    matrix_DD = ((directions_DD * scale_D) @ directions_DD.T).astype(np.float32)
    before = float(np.mean([_cosine(vectors_ND) for vectors_ND in documents]))
    after = float(np.mean([_cosine(vectors_ND @ matrix_DD) for vectors_ND in documents]))
    return Whitening(matrix_DD, sum(map(len, documents)), sum(map(len, questions)), before, after)


def write(name: str, model: GritModel, whitening: Whitening, folder: Path) -> None:
    """Write a checkpoint that is the model with the whitening behind its pooling.

    Args:
        name: what `model` was loaded from.
        folder: new or empty.

    Raises:
        ValueError: the folder holds something.
    """
    check_new(folder)
    config, source = model.config, locate(name)
    if (source / CHECKPOINT_FILE).is_file():
        shutil.copytree(source, folder, dirs_exist_ok=True)
        beside = source / config.base
        if beside.is_dir() and not beside.resolve().is_relative_to(source.resolve()):
            config = config.model_copy(update={"base": str(beside.resolve())})
    elif Path(name).exists():
        config = config.model_copy(update={"base": str(Path(name).resolve())})
    parts = config.parts.model_copy(update={"projection": model.dim})
    weights = {key: tensor.detach().cpu() for key, tensor in model.parts.state_dict().items()}
    matrix_DD = torch.from_numpy(whitening.matrix)
    before = weights.get(PROJECTION)
    weights[PROJECTION] = matrix_DD if before is None else matrix_DD @ before.float()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANSWERABILITY_FILE).unlink(missing_ok=True)  # it was fitted to other vectors
    save_parts(weights, folder / PARTS_FILE)
    config.model_copy(update={"parts": parts, "parts_file": PARTS_FILE}).save(folder)
    give_usual_rights(folder)


def _spread(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Second moments `[D, D]`, the mean of all groups, as shares of their sum."""
    moments_DD = np.mean([g.T.astype(np.float64) @ g / len(g) for g in groups], axis=0)
    return np.asarray(moments_DD / np.trace(moments_DD))


def _cosine(vectors_ND: np.ndarray) -> float:
    """Mean over pairs of different rows; 0 of a single one."""
    unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    count = len(unit_ND)
    return float((np.square(unit_ND.sum(0)).sum() - count) / (count * (count - 1))) if count > 1 else 0.0
