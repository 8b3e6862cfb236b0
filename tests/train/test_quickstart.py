"""The recipe that a newcomer runs first: its sample is sound, and it trains, ships and answers as it stands."""

from pathlib import Path

import pytest
from repository import ROOT

from gritrag import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.config import SourceConfig
from gritrag.train.data.rows import read_source
from gritrag.train.loop import Trainer

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def test_every_answer_of_the_sample_stands_in_its_passages() -> None:
    config, kinds, rows = TrainConfig.load(QUICKSTART), set(), 0
    folder = ROOT / config.data.data_dir
    paths = [source.path for source in (*config.data.sources, *config.data.chat)] + list(config.validation.paths)
    assert {folder / path for path in paths} == set(folder.glob("*.jsonl"))
    for path in paths:
        passages, chats = read_source(folder / path, SourceConfig(path=path))
        rows += len(chats)
        for passage in passages:
            for question in passage.questions:
                rows += 1
                kinds.add((question.is_unanswerable, bool(question.negatives), bool(question.evidence)))
                if not (question.is_unanswerable or question.negatives):
                    assert question.answer.lower() in passage.text.lower(), question
    assert rows == 41
    assert kinds == {(False, False, False), (True, False, False), (False, True, False), (False, True, True)}


def test_it_trains_on_a_tiny_model_and_what_it_ships_loads(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    settings = [f"base={tiny_base}", f"runs_dir={tmp_path}", "device=cpu"]
    config = TrainConfig.load(QUICKSTART, settings)
    folder = Trainer(config).train()
    assert folder is not None
    model = GritModel.from_pretrained(folder, dtype="float32", device="cpu")
    assert isinstance(model.generate("When?", max_new_tokens=2), str)


def test_the_default_recipe_says_where_its_files_come_from(tmp_path: Path, tiny_base: Path) -> None:
    settings = [f"data.data_dir={tmp_path}", f"base={tiny_base}", f"runs_dir={tmp_path}", "init=null", "device=cpu"]
    with pytest.raises(
        ValueError, match=r"cannot read .*nq\.train\.jsonl.*data\.data_dir=FOLDER.*how-to/train\.md.*quickstart"
    ):
        Trainer(TrainConfig.load(ROOT / "configs" / "default.yaml", settings))
