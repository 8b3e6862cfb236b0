"""Laws of a teacher: it is given the texts as they were, and what is learnt from it is what it finds near them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import make_lm
from transformers import PreTrainedTokenizerFast

from gritrag.model.encoders import load_encoder
from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.objectives.losses import Similarities
from gritrag.train.objectives.teacher import Teacher
from gritrag.train.read_once import ReadOnce

Recipe = Callable[..., TrainConfig]
TEXTS = ["The ferry carries ninety people.", "Osk harbour:  it freezes\nfor three months."]


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model of another kind than the one in training."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer.save_pretrained(folder)
    make_lm("qwen3").save_pretrained(folder)
    return folder


def test_it_embeds_the_texts_as_they_were_without_instruction(teacher_folder: Path, recipe: Recipe) -> None:
    model = GritModel.from_pretrained(recipe().base, dtype="float32", device="cpu")
    teacher = Teacher(str(teacher_folder), model)
    encoder = load_encoder(str(teacher_folder), dtype="float32", device="cpu")
    documents = teacher.documents([model.prompts.document(text) for text in TEXTS])
    np.testing.assert_allclose(documents, encoder.encode_document(TEXTS), atol=1e-5)
    queries = teacher.queries([model.prompts.query(text, "Find what answers it") for text in TEXTS])
    np.testing.assert_allclose(queries, encoder.encode_query(TEXTS), atol=1e-5)


def test_minilm_teaches_too() -> None:
    model = GritModel.from_pretrained("smollm2-135m", dtype="float32", device="cpu")
    texts = ["Curaçao's harbour: 12 m deep", "Kraków, 5 °C"]
    got = Teacher("minilm", model).documents([model.prompts.document(text) for text in texts])
    np.testing.assert_allclose(got, load_encoder("minilm", device="cpu").encode_document(texts), atol=1e-5)


def test_a_step_learns_what_the_teacher_finds_among_its_documents_and_those_remembered(
    recipe: Recipe, teacher_folder: Path
) -> None:
    config = recipe(
        contrastive={"memory": 100, "teacher": str(teacher_folder), "teacher_weight": 2.0},
        generative={"weight": 0, "p_chat": 0.0},
        data={"tokens_per_step": 150, "chat": []},
    )
    model = GritModel.from_pretrained(config.base, dtype="float32", device="cpu")
    read_once, mixture = ReadOnce(model, config), Mixture(config, model)
    first, *later = [step for step in map(mixture.step, range(20)) if isinstance(step, RetrievalStep) and step.queries]
    second = next(s for s in later if 0 < len(set(s.identities) & set(first.identities)) < len(first.identities))
    read_once(first)
    losses = read_once(second).losses

    teacher = Teacher(str(teacher_folder), model)
    with torch.no_grad():
        old, new, queries = (
            read_once.read(prompts, with_states=False).vectors
            for prompts in (first.documents, second.documents, second.queries)
        )
    taught_old, taught_new = teacher.documents(first.documents), teacher.documents(second.documents)
    anchors, taught = torch.cat([queries, new]), torch.cat([teacher.queries(second.queries), taught_new])
    compared, taught_compared = torch.cat([new, old]), torch.cat([taught_new, taught_old])
    of_documents = torch.tensor([[a == b for b in second.identities + first.identities] for a in second.identities])
    of_queries = of_documents[second.positives].clone()
    of_queries[:, : len(new)] = False
    own = torch.cat([of_queries, of_documents])
    want = Similarities(config.contrastive)(anchors, compared, taught @ taught_compared.T, own)
    assert losses["similarities"] == pytest.approx(want.item(), rel=1e-4)


def test_no_such_teacher_is_told_before_anything_is_read(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(contrastive={"teacher": str(tmp_path / "nobody")})
    model = GritModel.from_pretrained(config.base, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="nobody"):
        ReadOnce(model, config)
