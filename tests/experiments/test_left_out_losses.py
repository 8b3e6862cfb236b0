"""Losses on files that were left out, at smoke size: the same questions for every model."""

from repository import ROOT, TINY

from experiments.left_out_losses import losses


def test_a_model_has_the_same_figures_each_time_and_one_for_each_kind() -> None:
    base, file = TINY, "questions.validation.jsonl"
    sizes = {"documents": 6, "answers": 4, "distractors": 2}
    found = losses("", ROOT / "configs" / "sample", [file], sizes, base)
    assert found == losses("", ROOT / "configs" / "sample", [file], sizes, base)
    assert found.keys() == {f"questions.validation/{kind}" for kind in ("recall@1", "placed", "full")}
    assert 0 <= found["questions.validation/recall@1"] <= 1
    assert found["questions.validation/placed"] > 1
