"""The record of a run survives torn lines, and its drawing is well-formed."""

from pathlib import Path
from xml.etree import ElementTree

from gritrag.train.metrics import Metrics


def test_a_resumed_record_forgets_what_its_snapshot_does_not_know(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    for step in range(4):
        if step == 2:
            metrics.write({"step": 2, "validation": {"nq/recall@1": 0.5}})
        metrics.write({"step": step, "losses": {"placed": 1.0 / (step + 1)}})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    resumed = Metrics(tmp_path, 2)
    assert [(r["step"], "validation" in r) for r in resumed.records()] == [(0, False), (1, False), (2, True)]
    resumed.write({"step": 2, "losses": {"placed": 0.1}})
    assert resumed.records()[-1] == {"step": 2, "losses": {"placed": 0.1}}


def test_the_drawing_names_every_curve(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    metrics.draw()
    metrics.write({"step": 0, "losses": {"contrastive": 2.0, "placed": 4.0}})
    metrics.write({"step": 1, "losses": {"placed": 3.0}})
    metrics.write({"step": 1, "validation": {"nq/recall@1": 0.5}})
    metrics.draw()
    root = ElementTree.fromstring((tmp_path / "losses.svg").read_text("utf-8"))
    told = " ".join(element.text or "" for element in root)
    for name in ("contrastive 2.000", "placed 3.900", "nq/recall@1 0.500"):
        assert name in told
