"""An index remembers the name of its model, and loads it by that name when something has to be read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hash_reader import HashReader

from gritrag.index.index import Index
from gritrag.model.grit import GritModel
from gritrag.records import Document, FingerprintMismatch

TEXTS = [Document("The ferry stops at four.", id="a"), Document("Owls click their beaks.", id="b")]


@pytest.fixture
def folder(tiny_model: GritModel, tmp_path: Path) -> Path:
    """A model on disk."""
    tiny_model.lm.save_pretrained(tmp_path / "model")
    tiny_model.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def built(folder: Path, tmp_path: Path) -> Path:
    """An index that was built with it, by its name."""
    with Index.create(tmp_path / "index", model=folder) as index:
        index.add(TEXTS)
    return tmp_path / "index"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that are loaded from now on."""
    names: list[str] = []
    load = GritModel.from_pretrained

    def counted(name: str, **options: object) -> GritModel:
        names.append(str(name))
        return load(name, **options)

    monkeypatch.setattr(GritModel, "from_pretrained", counted)
    return names


def test_a_path_is_enough_and_the_model_is_loaded_when_it_is_needed(
    built: Path, folder: Path, loads: list[str]
) -> None:
    with Index.open(built) as index:
        assert index["a"] == TEXTS[0]
        assert index.verify() == ([], [])
        assert index.stats()["documents"] == 2
        assert loads == []
        assert index.search("ferry", 1)[0].document.id == "a"
        assert index.search("owls", 1)[0].document.id == "b"
    assert loads == [str(folder)]


def test_reading_is_the_default_and_writing_is_asked_for(built: Path) -> None:
    with Index.open(built) as index, pytest.raises(ValueError, match="mode='rw'"):
        index.add(["more"])
    with Index.open(built, mode="rw") as index:
        assert index.add(["more"]).added == 1


def test_indexes_of_one_model_share_it(built: Path, loads: list[str]) -> None:
    with Index.open(built) as one, Index.open(built) as other:
        assert one.model is other.model
    assert len(loads) == 1


def test_settings_that_a_bare_model_was_given_are_remembered_too(folder: Path, tmp_path: Path) -> None:
    model = GritModel.from_pretrained(folder, pooling="last", reading="bidirectional")
    Index.create(tmp_path / "index", model=model).close()
    with Index.open(tmp_path / "index") as index:
        assert index.model.fingerprint == model.fingerprint


def test_a_relative_path_is_remembered_whole(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Index.create("index", model="model").close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with Index.open(tmp_path / "index") as index:
        assert isinstance(index.model, GritModel)


def test_a_model_that_has_gone_is_told_with_the_remedy_and_can_be_given(built: Path, folder: Path) -> None:
    moved = folder.rename(folder.with_name("moved"))
    with Index.open(built) as index:
        assert len(index) == 2
        with pytest.raises(ValueError, match=r"was built with the model '.*model', which cannot be loaded.*model="):
            index.search("ferry")
    with Index.open(built, model=moved) as index:
        assert index.search("ferry", 1)[0].document.id == "a"
    with Index.open(built, model=moved, mode="rw"):
        pass
    with Index.open(built) as index:
        assert index.search("ferry", 1)[0].document.id == "a", "who may write an index tells it where its model is now"


def test_another_model_under_the_same_name_is_refused(
    built: Path, folder: Path, make_model: Callable[..., GritModel]
) -> None:
    shutil.rmtree(folder)
    make_model("qwen2").lm.save_pretrained(folder)
    make_model("qwen2").tokenizer.save_pretrained(folder)
    with (
        Index.open(built) as index,
        pytest.raises(FingerprintMismatch, match="not the model that the index was built") as told,
    ):
        index.search("ferry")
    assert "weights" in told.value.fields
    with pytest.raises(FingerprintMismatch, match="weights"):
        Index.open(built, model=folder)


def test_a_model_without_a_name_has_to_be_given(tmp_path: Path, tiny_model: GritModel) -> None:
    for number, model in enumerate((HashReader(), tiny_model)):
        with Index.create(tmp_path / str(number), model=model) as index:
            index.add(TEXTS)
        with Index.open(tmp_path / str(number), mode="rw") as index:
            assert index.delete(ids=["a"]) == 1
            with pytest.raises(ValueError, match=r"does not know the name of its model.*model="):
                index.add(["more"])
        with Index.open(tmp_path / str(number), model=model) as index:
            assert [hit.document.id for hit in index.search("owls")] == ["b"]


def test_the_manifest_holds_the_name_under_its_checksum(built: Path, folder: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["model"] == {"name": str(folder)}
    (built / "manifest.json").write_text((built / "manifest.json").read_text().replace(str(folder), "/evil"))
    with pytest.raises(ValueError, match="damaged"):
        Index.open(built)
