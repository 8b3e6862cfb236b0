"""The bench of decoding compares like with like: every way goes on from the same states with the same tokens."""

import re

import pytest
from repository import TINY

from gritrag.evaluate.decoding import BASELINE, WAYS, Setting, contexts, main, sections
from gritrag.evaluate.workload import Subject
from gritrag.model.context import Context
from gritrag.model.grit import GritModel

SETTING = Setting(documents=2, tokens=60, new_tokens=6, repetitions=2)


@pytest.fixture(scope="module")
def given(tiny_model: GritModel) -> dict[str, Context]:
    return contexts(tiny_model, SETTING)


def test_contexts_hold_the_states_and_end_with_tokens(given: dict[str, Context]) -> None:
    cached = [context.cached_tokens for context in given.values()]
    assert cached == [2 * 60, 2 * 60, 0, 0]
    assert all(context.fresh_ids for context in given.values())
    quoting = next(iter(given.values()))
    text = " ".join(map(str, quoting.token_ids))
    assert text.count(" ".join(map(str, quoting.fresh_ids))) == 2


@pytest.mark.parametrize("way", WAYS)
def test_every_way_decodes_the_same_tokens(way: str, tiny_model: GritModel, given: dict[str, Context]) -> None:
    for context in given.values():
        run = WAYS[way](tiny_model, context, 6)
        assert run.token_ids == WAYS[BASELINE](tiny_model, context, 6).token_ids
        assert run.seconds > 0


def test_the_table_has_a_row_for_every_way_and_counts_same_tokens() -> None:
    result = main(Subject(TINY, "float32"), SETTING)
    printed = result.show()
    assert len(re.findall(r"2 of 2 runs", printed)) == 4 * len(WAYS)
    assert all(way in printed for way in WAYS)
    assert "our own step equals the model's" in printed


def test_a_slower_way_and_other_tokens_are_told() -> None:
    cells = [{"context": "c", "way": way} for way in (BASELINE, "gritrag")]
    speeds, same = ([10.0, 20.0], [5.0, 10.0]), (2, 1)
    rows = [
        {"kind": "decoding", "cell": cell, "tokens_per_second": speed, "tokens": 4, "forwards": 4, "same_tokens": n}
        for cell, speed, n in zip(cells, speeds, same, strict=True)
    ]
    lost = sections({"settings": {"repetitions": 2}}, rows)[-1]
    assert [row[0] for row in lost.tables[0].rows] == [
        f"c, gritrag: 0.50 [0.50, 0.50] of {BASELINE}",
        f"c, gritrag: other tokens than {BASELINE} in 1 runs",
    ]
