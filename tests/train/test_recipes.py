"""Recipes: unknown keys, bad values and bad overrides are refused by name; every recipe of the repository is sound."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from repository import ROOT

from gritrag.train.config import TrainConfig

MINIMAL = "name: a\ndata: {sources: [{path: x.jsonl}]}\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL, "utf-8")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_of_the_repository_are_understood(path: Path) -> None:
    if "data" in yaml.safe_load(path.read_text("utf-8")):
        assert TrainConfig.load(path).name


@pytest.mark.parametrize("content", [b"\xf3\x28", b"a: [", b"[" * 100_000], ids=["bytes", "torn", "deep"])
def test_what_is_no_yaml_is_no_recipe(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the recipe .*a\.yaml"):
        TrainConfig.load(tmp_path / "a.yaml")


def test_overrides(minimal: Path) -> None:
    overrides = ["lr=1e-4", "contrastive.matryoshka_dims=[64, 576]", "name=b", "seconds=null", "generative.p_full=0"]
    config = TrainConfig.load(minimal, overrides)
    assert (config.lr, config.contrastive.matryoshka_dims, config.name) == (1e-4, (64, 576), "b")
    assert (config.seconds, config.generative.p_full) == (None, 0)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("lr", "--set takes key=value"),
        ("=3", "--set takes key=value"),
        ("data.sources=[", "--set data.sources=[: the value is no YAML"),
        ("lrr=1", "lrr"),
        ("data.token=1", "data.token"),
        ("name.first=1", "name is a value, not a group"),
        ("lr=-1", "greater than 0"),
        ("data.sources=[]", "at least 1 item"),
        ("generative.p_full=2", "less than or equal to 1"),
    ],
)
def test_bad_overrides(minimal: Path, override: str, told: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011, what it tells is checked below
        TrainConfig.load(minimal, [override])
    assert told in str(error.value)


@pytest.mark.parametrize("text", ["[1]", "a: [", ""])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"bad.yaml"):
        TrainConfig.load(tmp_path / "bad.yaml")
    with pytest.raises(ValueError, match="cannot read the recipe"):
        TrainConfig.load(tmp_path / "gone.yaml")


def test_a_recipe_survives_being_written(recipe: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = recipe(generative={"documents_per_context": (1, 4)})
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), "utf-8")
    assert TrainConfig.load(tmp_path / "again.yaml") == config
