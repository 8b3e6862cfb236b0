"""Shares of attention: by hand, as sums on tiny models, and from the command."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import architectures
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from experiments.attention import (
    FIRST,
    PARTS,
    Setting,
    command,
    draw,
    measure,
    read_texts,
    recorded,
    shares,
    summarise,
    watched,
)
from experiments.script import application
from gritrag.config import CheckpointConfig
from gritrag.model.adapter import attach
from gritrag.model.grit import GritModel

TEXTS = ["Owls click.", "The clock tower leans to the north.", "x"]


@pytest.fixture(autouse=True)
def _own_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is watched keeps that in its config, which tiny models of other tests would share."""
    monkeypatch.setattr(architectures, "CONFIGS", copy.deepcopy(architectures.CONFIGS))


def test_shares_by_hand() -> None:
    """Prompt, content, content, end of the prompt; two heads that differ."""
    one = [[1, 0, 0, 0], [0.6, 0.4, 0, 0], [0.1, 0.2, 0.7, 0], [0.25, 0.25, 0.25, 0.25]]
    two = [[1, 0, 0, 0], [0.2, 0.8, 0, 0], [0.3, 0.4, 0.3, 0], [0.25, 0.25, 0.25, 0.25]]
    weights_BHTT = torch.tensor([[one, two]])
    mask = torch.tensor([[False, True, True, False]])
    last = shares(weights_BHTT, mask, only_last=True)
    torch.testing.assert_close(last, torch.tensor([[0.2, 0.3, 0.5, 0.2]]))
    both = shares(weights_BHTT, mask, only_last=False)
    torch.testing.assert_close(both, torch.tensor([[(0.4 + 0.2) / 2, 0.3 / 2, (0.6 + 0.5) / 2, (0.4 + 0.2) / 2]]))
    bidirectional = torch.full((1, 1, 4, 4), 0.25)
    torch.testing.assert_close(shares(bidirectional, mask, True), torch.tensor([[0.5, 0.25, 0.25, 0.25]]))


def test_a_pooled_first_token_is_not_of_the_prompt() -> None:
    found = shares(torch.tensor([[[[1.0, 0.0], [0.9, 0.1]]]]), torch.tensor([[True, True]]), only_last=True)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.9, 0.1, 0.0]]))


@pytest.mark.parametrize("side", ["query", "document"])
@pytest.mark.parametrize("reading", ["causal", "bidirectional"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mistral"])
def test_parts_sum_to_one_in_every_layer_whatever_is_padded(
    make_model: Callable[..., GritModel], architecture: str, reading: str, side: str
) -> None:
    model = watched(make_model(architecture, reading=reading))
    setting = Setting(side=side)
    for only_last in (True, False):
        found = measure(model, TEXTS, setting, only_last)
        assert found.shape == (3, 3, len(PARTS) + 1)
        np.testing.assert_allclose(found[..., : len(PARTS)].sum(-1), 1, atol=1e-5)
        assert (found >= 0).all()
        assert (found[..., -1] <= found[..., 0] + 1e-6).all(), "the first token is of the prompt"
        for row, text in enumerate(TEXTS):
            np.testing.assert_allclose(measure(model, [text], setting, only_last)[0], found[row], atol=1e-5)


def test_weights_are_those_of_a_softmax_and_bidirectional_ones_see_the_future(
    make_model: Callable[..., GritModel],
) -> None:
    for reading in ("causal", "bidirectional"):
        model = watched(make_model(reading=reading))
        batch = model.prompts.encoder.pad([model.prompts.document(TEXTS[1])])
        with recorded(model) as layers:
            model.reader.read_batch(batch)
        assert len(layers) == 3
        for weights in layers:
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
            future = weights.triu(1).sum()
            assert (future > 1) == (reading == "bidirectional")
    assert not model.lm.model.layers[0].self_attn._forward_hooks, "nothing watches afterwards"


def test_an_implementation_that_hides_its_weights_is_named(make_model: Callable[..., GritModel]) -> None:
    with pytest.raises(ValueError, match="does not show its attention"):
        measure(make_model(), TEXTS, Setting(), only_last=True)
    with pytest.raises(ValueError, match="mamba has no attention"), recorded(make_model("mamba")):
        pass


def test_watching_changes_no_vector(make_model: Callable[..., GritModel]) -> None:
    for reading in ("causal", "bidirectional"):
        plain, seen = make_model(reading=reading), watched(make_model(reading=reading))
        np.testing.assert_allclose(plain.encode_document(TEXTS), seen.encode_document(TEXTS), atol=1e-5)


def test_the_change_is_paired_and_the_drawing_is_whole() -> None:
    before = np.tile(np.array([0.6, 0.3, 0.1, 0.4]), (5, 2, 1))
    after = before + np.array([-0.2, 0.2, 0.0, -0.1])
    result = summarise({"before: a & b": before, "after": after}, {}, 0)
    change = result["models"][1]["change"]
    assert [change[part].mean for part in (*PARTS, FIRST)] == pytest.approx([-0.2, 0.2, 0, -0.1])
    assert change["prompt"].low == pytest.approx(-0.2)
    svg = ElementTree.fromstring(draw(result))
    areas = [element for element in svg if element.tag.endswith("polygon")]
    assert len(areas) == 2 * len(PARTS)
    heights = [[float(point.split(",")[1]) for point in area.get("points", "").split()] for area in areas[:3]]
    assert heights[0][0] - heights[2][0] == pytest.approx(220 * 0.4), "parts are stacked up to one"


def test_texts_of_every_kind_of_file(tmp_path: Path) -> None:
    rows = {
        "labels": {"text": "a", "label": 1},
        "pairs": {"sentence1": "a", "sentence2": "b", "score": 1},
        "questions": {"question": "a", "passage": "d", "answers": []},
    }
    for name, row in rows.items():
        other = {**row, "label": 2} if name == "labels" else {**row, "score": 2} if name == "pairs" else row
        (tmp_path / name).write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
        assert read_texts(tmp_path / name, Setting()) == ["a", "a"]
    assert read_texts(tmp_path / "questions", Setting(side="document")) == ["d", "d"]
    for wrong in ({"texts": 0}, {"side": "left"}, {"side": "document", "instruction": "x"}):
        with pytest.raises(ValueError, match=r"at least 1|not as 'left'|carry no instruction"):
            Setting(**wrong)  # type: ignore[arg-type]


def test_the_command_compares_a_checkpoint_with_its_base(make_model: Callable[..., GritModel], tmp_path: Path) -> None:
    model = make_model()
    model.lm.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    checkpoint = tmp_path / "checkpoint"
    wrapper = attach(model.lm, 4, 8)
    for name, parameter in wrapper.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    wrapper.save_pretrained(str(checkpoint / "adapter"))
    CheckpointConfig(base=str(tmp_path / "base"), adapter="adapter", template="gritrag", pooling="last").save(
        checkpoint
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text, "label": n}) for n, text in enumerate(TEXTS)))
    plot = tmp_path / "attention.svg"
    options = ["--model", str(checkpoint), "--dtype", "float32", "--out", str(plot)]
    told = CliRunner().invoke(application(command), [str(rows), *options, "--json"])
    assert told.exit_code == 0, told.output
    before, after = json.loads(told.stdout)["models"]
    assert before["model"].startswith("before: ")
    assert before["layers"] != after["layers"]
    assert all(sum(layer[part] for part in PARTS) == pytest.approx(1) for layer in after["layers"])
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    table = CliRunner().invoke(application(command), [str(rows), *options])
    assert "| change" in table.stdout
