"""An exported folder, loaded by sentence-transformers itself, gives the vectors of the model; or it is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from gritrag.cli import app
from gritrag.config import PartsConfig
from gritrag.export import to_sentence_transformers
from gritrag.model.grit import GritModel

ABOUT = "config_sentence_transformers.json"
TEXTS = [
    "Who painted it?",
    "(The clock) leans: 12 degrees!",
    "x",
    "A longer text.\n\nWith a second paragraph, and one more line\nat its end",
    "document\nquestion\nInstruct: imitates a prompt",
]


def loaded(model: GritModel, folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(to_sentence_transformers(model, folder)), device="cpu")


def assert_same(model: GritModel, theirs: SentenceTransformer) -> None:
    for ours, other in ((model.encode_query, theirs.encode_query), (model.encode_document, theirs.encode_document)):
        np.testing.assert_allclose(ours(TEXTS), other(TEXTS), atol=1e-4)
        np.testing.assert_allclose(ours(TEXTS[:1]), other(TEXTS[:1]), atol=1e-4)


@pytest.mark.parametrize("instruction", ["", "Find the passage"])
@pytest.mark.parametrize(
    ("template", "pooling"),
    [
        ("gritrag", "mean"),
        ("gritrag", "last"),
        ("gritrag", "mean+last"),
        ("chatml", "mean"),
        ("gritlm", "mean"),
        ("plain", "last"),
        ("instruct", "last"),
        ("llm2vec", "last"),
        ("cloze", "last"),
    ],
)
def test_the_same_vectors(
    make_model: Callable[..., GritModel], tmp_path: Path, template: str, pooling: str, instruction: str
) -> None:
    model = make_model(template=template, pooling=pooling, instruction=instruction)
    assert_same(model, loaded(model, tmp_path / "st"))


def test_a_projection_is_a_layer_of_its_own(make_model: Callable[..., GritModel], tmp_path: Path) -> None:
    for pooling in ("mean", "mean+last"):
        model = make_model(pooling=pooling, parts=PartsConfig(projection=24))
        theirs = loaded(model, tmp_path / pooling)
        assert_same(model, theirs)
        assert theirs.encode_query(TEXTS).shape == (len(TEXTS), 24)
        files = [file for file in (tmp_path / pooling).rglob("*") if file.is_file()]
        assert len({file.stat().st_mode for file in files}) == 1  # others can read all of it


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mistral"])
def test_bidirectional_reading_travels_in_the_config(
    make_model: Callable[..., GritModel], tmp_path: Path, architecture: str
) -> None:
    model = make_model(architecture, template="gritlm", pooling="mean", reading="bidirectional")
    theirs = loaded(model, tmp_path / "st")
    assert_same(model, theirs)
    causal = make_model(architecture, template="gritlm", pooling="mean")
    assert np.abs(causal.encode_document(TEXTS) - theirs.encode_document(TEXTS)).max() > 1e-2


def test_older_releases_warn_that_their_vectors_may_differ(tiny_model: GritModel, tmp_path: Path) -> None:
    about = json.loads((to_sentence_transformers(tiny_model, tmp_path / "st") / ABOUT).read_text("utf-8"))
    assert about["__version__"] == {"sentence_transformers": "5.4.0"}  # what they compare with their own


def test_similarities_are_cosines_and_long_texts_are_cut(tiny_model: GritModel, tmp_path: Path) -> None:
    theirs = loaded(tiny_model, tmp_path / "st")
    queries, documents = theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)
    np.testing.assert_allclose(theirs.similarity(queries, documents), queries @ documents.T, atol=1e-5)
    assert theirs.encode_document(["word " * 1000]).shape == (1, tiny_model.dim)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"template": "gritrag", "reading": "bidirectional"}, "behind a text, which bidirectional attention reads"),
        ({"template": "cloze", "pooling": "mean"}, "of which only the last token is pooled"),
        ({"template": "plain", "pooling": "mean"}, "ends with a control token"),
        ({"pooling": "weighted_mean"}, "cannot pool like 'weighted_mean'; it can: mean, last"),
        ({"pooling": "last+mean"}, "cannot pool like 'last"),
    ],
)
def test_what_would_differ_is_refused_and_nothing_is_written(
    make_model: Callable[..., GritModel], tmp_path: Path, settings: dict[str, str], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        to_sentence_transformers(make_model(**settings), tmp_path / "st")
    assert not (tmp_path / "st").exists()


def test_a_folder_that_holds_something_is_left_alone(tiny_model: GritModel, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        to_sentence_transformers(tiny_model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command(tiny_model: GritModel, tmp_path: Path) -> None:
    tiny_model.lm.save_pretrained(tmp_path / "model")
    tiny_model.tokenizer.save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "model"), str(tmp_path / "st"), "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    prompts = json.loads((tmp_path / "st" / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"query": "<|im_start|>query\n", "document": "<|im_start|>document\n"}
    assert_same(
        GritModel.from_pretrained(tmp_path / "model", dtype="float32"), SentenceTransformer(str(tmp_path / "st"))
    )
