"""What was proved of a model is kept for its next load: for that model alone, and only where everything works."""

import json
import logging
from pathlib import Path

import pytest
import torch
from architectures import make_lm

from gritrag.model import probe_cache
from gritrag.model.probe_cache import probe_once
from gritrag.model.probes import probe


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "probes"


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Models that were really probed."""
    asked: list[object] = []

    def counted(lm: torch.nn.Module) -> object:
        asked.append(lm)
        return probe(lm)

    monkeypatch.setattr(probe_cache, "probe", counted)
    return asked


def test_a_second_load_finds_what_the_first_has_proved(cache: Path, probed: list[object]) -> None:
    lm = make_lm("llama")
    first, second = probe_once(lm, "weights"), probe_once(lm, "weights")
    assert len(probed) == 1
    assert (second.probes, second.attention, second.shape) == (first.probes, first.attention, first.shape)
    assert second.step is not None
    assert first.step is not None
    assert second.step.guesses_freely == first.step.guesses_freely
    assert second.rotation is not None
    assert first.rotation is not None
    keys = torch.rand(3, 1, 2, 5, 8)
    torch.testing.assert_close(*(each.rotation.rotate(keys, torch.arange(7, 12)) for each in (first, second)))


@pytest.mark.parametrize("change", ["weights", "threads", "dtype", "config", "code"])
def test_another_model_is_proved_anew(change: str, probed: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    probe_once(make_lm("llama"), "weights")
    lm = make_lm("llama")
    if change == "dtype":
        lm = lm.to(torch.bfloat16)
    elif change == "config":
        lm.config.rms_norm_eps = 1e-3
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "code":
        monkeypatch.setattr(probe_cache, "_code", lambda: "other")
    probe_once(lm, "others" if change == "weights" else "weights")
    assert len(probed) == 2


def test_what_falls_back_is_asked_again(cache: Path, probed: list[object]) -> None:
    lm = make_lm("gpt2")
    assert any(each.outcome != "works" for each in probe_once(lm, "weights").probes)
    probe_once(lm, "weights")
    assert len(probed) == 2
    assert not cache.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"probes": [["move", "works", ""]], "attention": "", "shape": []}'])
def test_a_broken_file_is_written_anew(text: str, cache: Path, probed: list[object]) -> None:
    lm = make_lm("llama")
    probe_once(lm, "weights")
    (file,) = cache.iterdir()
    file.write_text(text)
    probe_once(lm, "weights")
    assert len(probed) == 2
    assert json.loads(file.read_text())["attention"] == "view"


def test_a_cache_that_cannot_be_written_stops_nothing(
    cache: Path, probed: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder would be")
    with caplog.at_level(logging.DEBUG):
        probe_once(make_lm("llama"), "weights")
        probe_once(make_lm("llama"), "weights")
    assert len(probed) == 2
    assert "not kept" in caplog.text
