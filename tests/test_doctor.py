"""The doctor tells a broken installation from a merely slow one."""

import os
import shutil
from pathlib import Path

import pytest

from gritrag.doctor import cache, examine, examine_model, faiss, free_disk, sqlite
from gritrag.folders import cache_folder
from gritrag.model.grit import GritModel


@pytest.mark.parametrize("other", ["faiss-gpu", "faiss-gpu-cu12"])
def test_two_builds_of_faiss_are_a_problem_with_a_remedy(other: str) -> None:
    finding = faiss({"faiss-cpu", other, "numpy"})
    assert finding.level == "problem"
    assert f"pip uninstall -y faiss-cpu {other}" in finding.detail


def test_one_build_is_fine_and_none_is_worth_knowing() -> None:
    assert faiss({"faiss-cpu"}).level == "ok"
    assert faiss({"faiss-serve", "numpy"}).level == "note"


@pytest.mark.parametrize(("version", "level"), [((3, 51, 2), "note"), ((3, 51, 3), "ok"), ((3, 9, 9), "note")])
def test_sqlite_before_the_wal_reset_fix_gets_a_note(version: tuple[int, ...], level: str) -> None:
    assert sqlite(version).level == level


def test_free_disk_of_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    assert str(tmp_path) in free_disk(tmp_path / "not" / "there").detail


def test_it_tells_how_large_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path / "cache"))
    assert f"0.0 GB in {tmp_path / 'cache'}" in cache().detail
    for name in ("gguf-2", "weights-1"):
        (tmp_path / "cache" / name / "a").mkdir(parents=True)
        with (tmp_path / "cache" / name / "a" / "model.safetensors").open("wb") as file:
            file.truncate(600_000_000)  # a hole: nothing is written
    assert "1.2 GB in" in cache().detail


def test_a_folder_of_the_cache_may_go_while_it_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path))
    for name in ("gone", "left"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(2 * 10**8))
    scan = os.scandir

    def scandir(folder: str | int) -> object:
        if folder == str(tmp_path / "gone"):
            monkeypatch.undo()
            shutil.rmtree(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "0.2 GB in" in cache().detail


@pytest.mark.parametrize(("given", "folder"), [("~/kept", "kept"), ("", ".cache/gritrag"), (None, ".cache/gritrag")])
def test_the_cache_folder_is_below_the_home_folder_unless_it_is_named(
    given: str | None, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GRITRAG_CACHE", raising=False)
    if given is not None:
        monkeypatch.setenv("GRITRAG_CACHE", given)
    assert cache_folder() == tmp_path / folder


def test_a_user_without_a_home_folder_is_told_to_name_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where nobody knows the user
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("GRITRAG_CACHE")
    with pytest.raises(ValueError, match="GRITRAG_CACHE"):
        cache_folder()


def test_this_installation_has_no_problem(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    assert [finding for finding in findings if finding.level == "problem"] == []
    assert {"python", "torch", "bfloat16", "faiss", "sqlite", "disk", "cache"} == {finding.name for finding in findings}


def test_every_probe_of_a_model_is_a_finding(tiny_model: GritModel) -> None:
    findings = examine_model(tiny_model)
    assert len(findings) == len(tiny_model.probes) > 0
    assert all(probe.outcome in finding.detail for probe, finding in zip(tiny_model.probes, findings, strict=True))
