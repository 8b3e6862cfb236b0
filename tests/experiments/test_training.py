"""The comparison of read-once training with two streams: same steps, and more tokens where contexts are read anew."""

import json
from pathlib import Path

from repository import TINY
from typer.testing import CliRunner

from experiments.script import application
from experiments.training import Setting, command, main, show, training


def test_both_ways_train_on_the_same_examples_and_one_reads_more(tmp_path: Path) -> None:
    setting = Setting(base=TINY, steps=1, documents_per_context=(2, 3), tokens_per_step=300)
    result = training(setting, tmp_path)
    once, twice = (result["rows"][name] for name in ("read once", "two streams"))
    assert once["tokens"] < twice["tokens"]
    assert result["examples"] > 0
    rates = [row["examples_per_second"] for row in (once, twice)]
    assert [rate.n for rate in rates] == [1, 1]
    assert (rates[0].median > rates[1].median) == (result["speedup"].median > 1)


def test_it_prints_text_and_json() -> None:
    setting = Setting(base=TINY, steps=1, tokens_per_step=300)
    assert "times as many examples per second" in main(setting=setting)
    assert json.loads(main(as_json_text=True, setting=setting))["machine"]["steps"] == 1


def test_two_ways_of_lora_read_the_same_tokens(tmp_path: Path) -> None:
    result = training(Setting(base=TINY, compared="lora", steps=2, tokens_per_step=300), tmp_path)
    assert len({row["tokens"] for row in result["rows"].values()}) == 1
    assert "with summed weights LoRA trains on" in show(result)


def test_an_unknown_comparison_is_refused() -> None:
    result = CliRunner().invoke(application(command), ["--compared", "speed"])
    assert result.exit_code == 2
    assert "none of: streams, lora" in " ".join(result.output.split())
