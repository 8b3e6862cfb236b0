"""Masked next token prediction against its definition, and views that differ by dropout alone."""

import random
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy

from gritrag.model.grit import GritModel
from gritrag.tokens import TokenIds
from gritrag.train.config import TrainConfig
from gritrag.train.data.collate import Collator
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.objectives.config import MaskedConfig, ViewsConfig
from gritrag.train.objectives.losses import MaskedNextToken, Views
from gritrag.train.objectives.self_supervised import dropping
from gritrag.train.read_once import ReadOnce

Recipe = Callable[..., TrainConfig]
MakeModel = Callable[..., GritModel]

TEXTS = ["Varn lighthouse was built in 1871.", "Osk harbour freezes.", "The ferry carries ninety people, and no more."]
ONLY = {"contrastive": {"weight": 0}, "generative": {"weight": 0}}


def step_of(model: GritModel, config: TrainConfig, seed: int = 5) -> RetrievalStep:
    dress = Collator(model, config)
    return RetrievalStep("test", [dress.document(text) for text in TEXTS], [], [], None, [], seed=seed)


def gradients(model: GritModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.lm.named_parameters() if p.grad is not None}
    model.lm.zero_grad()
    return found


def test_masks_are_on_content_never_on_the_first_token_and_as_many_as_asked() -> None:
    prompt = TokenIds(list(range(10, 50)), [True] * 30 + [False] * 10)
    masker = MaskedNextToken(MaskedConfig(share=(0.2, 0.8)))
    counts = set()
    for seed in range(60):
        masked, columns = masker.mask(prompt, 7, random.Random(seed))
        assert [column for column, id in enumerate(masked.ids) if id == 7] == columns
        assert all(0 < column < 30 for column in columns)
        assert [id for id in masked.ids if id != 7] == [id for n, id in enumerate(prompt.ids) if n not in columns]
        counts.add(len(columns))
    assert (min(counts), max(counts)) == (6, 23)  # a fifth and four fifths of 29
    short, columns = masker.mask(TokenIds([1, 2], [False, True]), 7, random.Random(0))
    assert (short.ids, columns) == ([1, 7], [1])
    with pytest.raises(ValueError, match=r"from above 0 to at most 1, got 0\.0 to 0\.5"):
        MaskedNextToken(MaskedConfig(share=(0.0, 0.5)))


@pytest.mark.parametrize("reading", ["causal", "bidirectional"])
def test_a_masked_token_is_predicted_at_the_position_before_it(
    make_model: MakeModel, recipe: Recipe, reading: str
) -> None:
    """Labels shift by one: the loss is that of the language model's own head one token to the left."""
    model = make_model(reading=reading)
    config = recipe(masked={"weight": 1.0}, chunk_tokens=1, **ONLY)
    step = step_of(model, config)
    losses = ReadOnce(model, config)(step).losses
    got, rng, want = gradients(model), random.Random(5), []
    mask_id = model.prompts.encoder.content_ids("_")[0]
    for document in step.documents:
        masked, columns = MaskedNextToken(config.masked).mask(document, mask_id, rng)
        seen = torch.ones(len(masked.ids), len(masked.ids)).bool()
        seen = seen if reading == "bidirectional" else seen.tril()
        hidden = model.lm.model(input_ids=torch.tensor([masked.ids]), attention_mask=seen[None, None]).last_hidden_state
        logits = model.lm.get_output_embeddings()(hidden[0])
        want += [cross_entropy(logits[column - 1], torch.tensor(document.ids[column])) for column in columns]
    loss = torch.stack(want).mean()
    assert losses == {"masked": pytest.approx(loss.item(), abs=1e-4)}
    loss.backward()
    expected = gradients(model)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-3)


def test_dropout_is_seeded_leaves_nothing_behind_and_keeps_the_mean(tiny_model: GritModel) -> None:
    layer, ids = tiny_model.lm.get_input_embeddings(), torch.arange(4, 200)[None]
    plain, views = layer(ids), []
    for seed in (1, 1, 2):
        with dropping(tiny_model.lm, 0.25, seed):
            views.append(layer(ids))
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert torch.equal(layer(ids), plain)
    kept = views[0] != 0
    assert 0.73 < kept.float().mean() < 0.77
    torch.testing.assert_close(views[0][kept], plain[kept] / 0.75)


def test_views_are_each_others_positives(make_model: MakeModel, recipe: Recipe) -> None:
    first, second = torch.eye(3), torch.eye(3)[[0, 2, 1]]
    loss = Views(ViewsConfig(temperature=1.0))(first, second)
    rows = [first[row] @ second.T for row in range(3)]
    want = [cross_entropy(row, torch.tensor(number)) for number, row in enumerate(rows)]
    assert loss.item() == pytest.approx(torch.stack(want).mean().item(), abs=1e-5)


def test_views_read_anew_in_the_backward_pass_are_the_same_views(make_model: MakeModel, recipe: Recipe) -> None:
    model, found = make_model(reading="bidirectional"), []
    for recompute in (False, True):
        config = recipe(views={"weight": 1.0, "dropout": 0.3}, chunk_tokens=1, recompute=recompute, **ONLY)
        found.append((ReadOnce(model, config)(step_of(model, config)), gradients(model)))
    assert found[0][0] == found[1][0]
    assert found[0][0].losses["views"] > 1e-3
    assert found[0][0].tokens == 2 * sum(len(document.ids) for document in step_of(model, config).documents)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-6, rtol=1e-4)
    other = ReadOnce(model, config)(step_of(model, config, seed=6)).losses
    assert other != found[0][0].losses
    model.lm.zero_grad()
