"""What makes a step fast changes what it computes no more than a law allows."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from answer_steps import assert_equal_gradients, gradients, retrieval_step
from architectures import make_lm
from torch import nn

from gritrag.model.grit import GritModel
from gritrag.train import half_products
from gritrag.train.config import TrainConfig
from gritrag.train.data.steps import Prompted
from gritrag.train.grouped_attention import NAME, group_attention
from gritrag.train.half_products import HalfForward, HalfProducts, Rounded
from gritrag.train.loop import Trainer
from gritrag.train.read_once import ReadOnce

Recipe = Callable[..., TrainConfig]
MakeModel = Callable[..., GritModel]


def test_grouped_attention_gives_the_gradients_of_the_usual_one(make_model: MakeModel, recipe: Recipe) -> None:
    """Contexts of different lengths, so that there is a mask, and some of them weighed."""
    every = []
    for grouped in (False, True):
        model = make_model()
        step = retrieval_step(model, recipe())
        weighed = replace(step.answers[1], biases=(-3.0, 0.0, -1.5), shares_positions=(True, True, True))
        if grouped:
            group_attention(model.lm)
            assert model.lm.config._attn_implementation == NAME
        done = ReadOnce(model, recipe())(replace(step, answers=[*step.answers, weighed]))
        every.append((done.losses, gradients(model)))
    assert every[0][0] == pytest.approx(every[1][0], abs=1e-5)
    assert_equal_gradients(every[1][1], every[0][1], atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_half_product_is_the_product_of_rounded_factors_and_follows_the_weight(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40, bias=bias), torch.randn(2, 5, 24, requires_grad=True)
    forward = HalfForward(layer, Rounded())
    for _ in range(2):
        want = nn.functional.linear(x.bfloat16().float(), layer.weight.bfloat16().float(), layer.bias)
        got = forward(x)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, atol=2e-2, rtol=1e-2)
        weights = torch.randn_like(got)
        layer.zero_grad()
        x.grad = None
        halves = (got * weights).split(1)  # two backward passes, one gradient
        for half in halves:
            half.sum().backward(retain_graph=True)
        assert layer.weight.grad is None
        forward.finish()
        of_got = [x.grad, *(parameter.grad for parameter in layer.parameters())]
        of_want = torch.autograd.grad((want * weights).sum(), [x, *layer.parameters()])
        for mine, other in zip(of_got, of_want, strict=True):
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine, other, atol=8e-2, rtol=2e-2)
        with torch.no_grad():
            layer.weight.mul_(-3)  # as an optimizer does: the rounded copy must not outlive it


def test_activations_are_rounded_once_for_all_layers_that_read_them_and_anew_when_they_change() -> None:
    rounded, x = Rounded(), torch.randn(3, 8)
    first = rounded(x)
    assert rounded(x) is first
    x.add_(1)
    assert torch.equal(rounded(x), x.bfloat16())
    assert torch.equal(rounded(x.clone()), x.bfloat16())


def test_frozen_weights_and_leaves_get_no_gradient() -> None:
    layer, x = nn.Linear(8, 8, bias=False), torch.randn(3, 8)
    forward = HalfForward(layer, Rounded())
    for times in (1, 2):
        forward(x).sum().backward()
        forward.finish()
        torch.testing.assert_close(
            layer.weight.grad, times * x.bfloat16().float().sum(0).expand(8, 8), atol=0.05, rtol=0.02
        )
    layer.weight.requires_grad_(False)
    layer.weight.grad = None
    forward(x.requires_grad_()).sum().backward()
    forward.finish()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_what_is_kept_for_a_gradient_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_products, "MOST_TOKENS", 5)
    layer, x = nn.Linear(8, 8, bias=False), torch.randn(3, 8)
    forward = HalfForward(layer, Rounded())
    forward(x).sum().backward()
    assert layer.weight.grad is None
    forward(x).sum().backward()  # six tokens
    want = 2 * x.bfloat16().float().sum(0).expand(8, 8)
    torch.testing.assert_close(layer.weight.grad, want, atol=0.05, rtol=0.02)


def test_only_linear_layers_of_a_float32_model_on_a_processor_that_gains_are_halved_and_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = torch.tensor([[5, 6, 7]])
    for has_bf16, dtype in ((True, torch.float32), (False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(half_products, "has_native_bf16", lambda device, has=has_bf16: has)
        lm = make_lm("llama").to(dtype)
        before, products = lm(ids).logits, HalfProducts(lm)
        assert products.is_on == (has_bf16 and dtype == torch.float32)
        with products():
            halved = [name for name, layer in lm.named_modules() if isinstance(layer.forward, HalfForward)]
            assert bool(halved) == products.is_on
            assert not any("lm_head" in name for name in halved)
            assert torch.equal(lm(ids).logits, before) != products.is_on
        assert torch.equal(lm(ids).logits, before)


def test_a_run_with_half_products_learns_what_one_without_does(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, weights = [], []
    for autocast in (False, True):
        monkeypatch.setattr(half_products, "has_native_bf16", lambda device: True)
        trainer = Trainer(recipe(name=f"run-{autocast}", autocast=autocast, generative={"p_chat": 0, "p_full": 0}))
        losses.append([trainer._timed_step()["losses"]["placed"] for _ in range(4)])
        weights.append(torch.cat([p.detach().flatten() for p in trainer.parameters.values()]))
        assert all(p.dtype == torch.float32 for p in trainer.parameters.values())
    assert losses[0] != losses[1]  # it was on
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    start = torch.cat([p.detach().flatten() for p in Trainer(recipe(name="new")).parameters.values()])
    cosine = torch.cosine_similarity(weights[0] - start, weights[1] - start, dim=0)
    assert cosine > 0.9


def test_chunks_of_answers_hold_every_answer_once_and_keep_to_the_budget(make_model: MakeModel, recipe: Recipe) -> None:
    model, rng = make_model(), random.Random(0)
    config = recipe(answer_chunk_tokens=120)
    step = retrieval_step(model, config)
    answers = [
        Prompted([1] * rng.randint(1, 9), [2] * rng.randint(1, 5), tuple(rng.sample(range(3), rng.randint(1, 3))))
        for _ in range(40)
    ]
    step = replace(step, answers=answers)
    chunks = ReadOnce(model, config).chunks(step, is_full=False)
    assert sorted(map(id, answers)) == sorted(id(answer) for chunk in chunks for answer in chunk)
    new = [[len(answer.question_ids) + len(answer.answer_ids) for answer in chunk] for chunk in chunks]
    assert [length for chunk in new for length in chunk] == sorted((n for c in new for n in c), reverse=True)
    for chunk in chunks:
        widest = max(
            sum(len(step.documents[row].ids) for row in answer.context)
            + len(answer.question_ids)
            + len(answer.answer_ids)
            for answer in chunk
        )
        assert len(chunk) == 1 or len(chunk) * widest <= 120
