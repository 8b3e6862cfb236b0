"""What a recipe asks, counted over a draw at smoke size."""

from repository import ROOT

from experiments.mixture_shares import KINDS, TOTAL, count, table
from gritrag.train.config import TrainConfig


def test_shares_are_those_of_the_recipe() -> None:
    overrides = [
        f"data.data_dir={ROOT / 'configs' / 'sample'}",
        f"base={ROOT / 'configs' / 'tiny' / 'model'}",
        "steps=200",
        "generative.p_document_chat=0.5",
        "generative.p_unanswerable=0.2",
        "generative.p_two_documents=0",
        "generative.p_full=0",
    ]
    found = count(TrainConfig.load(ROOT / "configs" / "quickstart.yaml", overrides), 400)
    total = found[TOTAL]
    assert total["answers"] >= 400
    assert total["answers"] == sum(counts["answers"] for source, counts in found.items() if source != TOTAL)
    assert 0.4 < total["in chats"] / total["answers"] < 0.6
    assert 0.1 < total["not found"] / total["answers"] < 0.35
    assert total["full"] == 0
    lines = table(found).splitlines()
    assert len(lines) == 2 + len(found)
    assert lines[2].startswith(f"| {TOTAL} | {total['answers']} | ")
    assert all(kind in lines[0] for kind in KINDS)
