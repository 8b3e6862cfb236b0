"""Memory of answering: its parts make the whole, and it is measured in a process of its own."""

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from repository import TINY
from typer.testing import CliRunner

from gritrag.answer import RAG
from gritrag.cli import app
from gritrag.evaluate import memory
from gritrag.evaluate.machine import CAN_RESET
from gritrag.evaluate.memory import ALLOWED, Setting, main, others, sections
from gritrag.evaluate.workload import Subject
from gritrag.index.index import Index
from gritrag.model import hardware
from gritrag.model import packed as packed_module
from gritrag.model.packed import Packed, can_pack
from gritrag.model.pages import can_give_back, give_back_heap

MB = 1e6
CPU = torch.device("cpu")


def test_parts_are_those_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = bytearray(os.urandom(1 << 20) * 1024)  # what this process holds is no matter
    subject, setting = Subject(TINY, "float32"), Setting(documents=2, tokens=40, repetitions=2)
    result = main(subject, setting)
    (row,), model = result.rows, subject.load()
    assert row["weights"] == sum(parameter.nbytes for parameter in model.lm.parameters())
    assert row["states"] == 2 * 40 * model.state_elements_per_token * 4
    assert row["files"] > 2 * 40 * model.state_elements_per_token * 2
    assert 0 < row["libraries"] < row["loaded"] <= row["answering"] < len(ballast)
    assert row["loading"] >= row["loaded"] - MB or not CAN_RESET  # which is read a moment later
    assert row["seconds"] > 0
    parts = ("libraries", "weights", "states", "files")
    assert others(row) == row["answering"] - sum(row[part] for part in parts)


@pytest.mark.skipif(not can_pack(CPU), reason="no kernel for packed weights")
def test_packed_weights_count_as_they_are_packed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Once, in 16 bits, where what they were packed from lies in a file; twice where it does not."""
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path))
    monkeypatch.setattr(packed_module, "SMALLEST", 0)
    monkeypatch.setattr(hardware, "has_native_bf16", lambda device: False)
    model = Subject(TINY, "auto").load()
    assert model.step is not None
    packed = [weight for each in model.step.packed for weight in each.weights]
    numbers, whole = sum(weight.numel() for weight in packed), sum(each.nbytes for each in model.lm.parameters())
    assert memory.weight_bytes(model) == whole - (2 if can_give_back() else -2) * numbers
    monkeypatch.setattr("gritrag.model.packed.is_of_file", lambda weight: False)
    assert memory.weight_bytes(model) == whole + 2 * numbers


@pytest.mark.skipif(not can_pack(CPU) or not can_give_back(), reason="packed weights of FBGEMM on Linux only")
def test_what_packed_weights_leave_unused_is_told() -> None:
    """That is what they take, as the system tells, beyond 16 bits a number."""
    weight = torch.randn(32768, 576).half().float()
    gc.collect()  # what earlier tests have left would be freed, or used, while this is measured
    give_back_heap()
    before = memory.resident()
    packed = Packed([weight])
    assert packed.spare_bytes == 2 * 32768 * (1024 - 576)
    assert memory.resident() - before == pytest.approx(2 * weight.numel() + packed.spare_bytes, rel=0.1)
    assert Packed([torch.randn(40, 512).half().float()]).spare_bytes == 0
    assert Packed([torch.randn(size, 24).half().float() for size in (40, 8, 9)]).spare_bytes == 2 * 64 * (512 - 24)


def test_answers_are_those_of_hits_and_of_searches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []
    subject, setting = Subject(TINY, "float32"), Setting(documents=2, tokens=40, repetitions=2)
    model = subject.load()
    with Index.create(tmp_path / "index", model=model, states=setting.codec) as index:
        index.add(memory.documents_of(model, setting.tokens, setting.documents, setting.seed))
    ask = RAG.ask
    monkeypatch.setattr(
        RAG, "ask", lambda rag, question, hits, **k: asked.append(hits) or ask(rag, question, hits=hits)
    )
    found = memory.answering(subject, setting, tmp_path / "index")
    assert [given is None for given in asked] == [False, True] * setting.repetitions
    assert found["states"] == 2 * 40 * model.state_elements_per_token * 4


def test_too_much_is_told() -> None:
    row = {"libraries": 400 * MB, "loading": 900 * MB, "loaded": 700 * MB, "weights": 300 * MB, "states": 100 * MB}
    row |= {"files": 50 * MB, "seconds": 1.0, "answering": 950 * MB}
    row |= {"spare": 30 * MB}
    settings = {"documents": 10, "tokens": 500, "codec": "bf16"}
    told, lost = sections({"settings": settings}, [row])
    assert "950 MB are resident at most" in told.text
    assert "150 MB more, of which 50 MB are state files" in told.text
    assert told.tables[0].rows[-2:] == [["all else", "100"], ["of that, unused beside packed weights", "30"]]
    assert not lost.tables[0].rows
    _, lost = sections({"settings": settings}, [{**row, "answering": 950 * MB + ALLOWED}])
    assert lost.tables[0].rows == [["250 MB beside libraries, weights and states"]]


def test_the_command_prints_it_and_refuses_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--model", TINY, "--dtype", "float32", "--documents", "1", "--tokens", "40", "--repetitions", "1"]
    told = CliRunner().invoke(app, ["bench", "memory", *options, "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["rows"][0]["answering"] > 0
    monkeypatch.setattr(memory, "pick_device", lambda device: memory.torch.device("cuda"))
    refused = CliRunner().invoke(app, ["bench", "memory", *options])
    assert refused.exit_code != 0
    assert "--device cpu" in refused.output
