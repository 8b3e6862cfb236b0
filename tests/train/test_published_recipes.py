"""The seven published recipes: each trains at its smoke size, loads to the same vectors, and answers from an index."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from repository import ROOT

from gritrag import RAG, Document, GritModel, Index
from gritrag.train.config import TrainConfig
from gritrag.train.loop import Trainer

RECIPES = ("gritlm", "e5-mistral", "nv-embed", "llm2vec", "causal2vec", "epic", "prompt-contrastive")
TEXTS = ["The mill grinds buckwheat.", "Seven bells hang in the tower of Halm, the oldest from 1640.", "Larch."]
NO_VALIDATION = ["validation.paths=[]", "steps=4", "data.tokens_per_step=400"]


def path_of(name: str) -> Path:
    return ROOT / "configs" / "recipes" / f"{name}.yaml"


def test_there_are_seven_and_each_has_a_smoke_size() -> None:
    found = {path.stem for path in path_of("x").parent.glob("*.yaml")} - {"smoke"}
    assert found == {*RECIPES, *(f"{name}-smoke" for name in RECIPES)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_source_and_runs_on_any_model(name: str) -> None:
    text = path_of(name).read_text("utf-8")
    assert "arXiv 2" in text
    config = TrainConfig.load(path_of(name), ["model=some/model", "tokens=300000"])
    assert (config.name, config.base, config.tokens) == (name, "some/model", 300_000)
    smoke = TrainConfig.load(path_of(f"{name}-smoke"))
    kept = ("reading", "pooling", "template", "contrastive", "masked", "views", "adapter")
    assert all(getattr(smoke, field) == getattr(config, field) for field in kept)
    assert [stage.name for stage in smoke.stages] == [stage.name for stage in config.stages]
    if name in ("causal2vec", "epic"):
        assert "Rebuilt from its abstract alone" in text


@pytest.fixture(scope="module", params=RECIPES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trainer, Path]]:
    """A recipe after four steps, and its checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # recipes name files from here
        runs = tmp_path_factory.mktemp("runs")
        settings = [f"runs_dir={runs}", "device=cpu", *NO_VALIDATION]
        trainer = Trainer(TrainConfig.load(path_of(f"{request.param}-smoke"), settings))
        folder = trainer.train()
        assert folder is not None
        yield trainer, folder


@pytest.fixture(scope="module")
def loaded(trained: tuple[Trainer, Path]) -> GritModel:
    return GritModel.from_pretrained(trained[1], dtype="float32", device="cpu")


def test_it_reloads_to_identical_vectors(trained: tuple[Trainer, Path], loaded: GritModel) -> None:
    model = trained[0].model
    np.testing.assert_allclose(loaded.encode_document(TEXTS), model.encode_document(TEXTS), atol=2e-6)
    np.testing.assert_allclose(loaded.encode_query(TEXTS), model.encode_query(TEXTS), atol=2e-6)
    assert loaded.dim == model.dim
    config = trained[0].config
    bare = GritModel.from_pretrained(
        config.base, dtype="float32", device="cpu", reading=config.reading, pooling=config.pooling,
        template=config.template, instruction=config.instruction, parts=config.parts,
    )  # fmt: skip
    assert np.abs(bare.encode_document(TEXTS) - loaded.encode_document(TEXTS)).max() > 1e-4, "it has learnt something"


def test_a_batch_of_one_equals_a_batch_of_many(loaded: GritModel) -> None:
    for encode in (loaded.encode_document, loaded.encode_query):
        np.testing.assert_allclose(encode(TEXTS), np.concatenate([encode([text]) for text in TEXTS]), atol=1e-5)
    for reading, text in zip(loaded.read_documents(TEXTS), TEXTS, strict=True):
        (alone,) = loaded.read_documents([text])
        np.testing.assert_allclose(reading.vector, alone.vector, atol=1e-5)
        np.testing.assert_allclose(reading.state.keys, alone.state.keys, atol=1e-4)


def test_it_indexes_and_answers_and_cached_is_uncached_where_that_is_exact(loaded: GritModel, tmp_path: Path) -> None:
    with Index.create(tmp_path / "index", model=loaded, states="float32") as index:
        index.add([Document(text, id=str(n)) for n, text in enumerate(TEXTS)])
        assert index.search(TEXTS[1], k=3, mode="dense")[0].document.id in {"0", "1", "2"}
        hits = index.search("bells", k=1, mode="sparse")
        answers = {
            mode: RAG(index, mode=mode, k=1).ask("How many bells?", hits=hits, max_new_tokens=8) for mode in MODES
        }
    assert answers["doc-cache"].usage.cached_tokens == len(loaded.document_token_ids(TEXTS[1]))
    assert answers["doc-cache"].exact == (loaded.config.reading == "causal")
    if answers["doc-cache"].exact:
        assert answers["doc-cache"].text == answers["doc-query"].text
    assert answers["doc-query-cache"].usage.cached_tokens > answers["doc-cache"].usage.cached_tokens


MODES = ("doc-cache", "doc-query", "doc-query-cache")


def test_parts_are_there_where_the_recipe_has_some(trained: tuple[Trainer, Path], loaded: GritModel) -> None:
    trainer, folder = trained
    has_parts = trainer.config.name.removesuffix("-smoke") in ("nv-embed", "causal2vec", "epic")
    assert (folder / "parts.safetensors").is_file() == has_parts == ("parts" in loaded.fingerprint.parts)
    assert any(name.startswith("parts.") for name in trainer.parameters) == has_parts
