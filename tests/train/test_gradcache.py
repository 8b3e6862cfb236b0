"""GradCache: gradients through cached outputs are those of a plain run, in chunks, recomputed or not."""

import pytest
import torch
from torch import nn

from gritrag.train.objectives.config import ContrastiveConfig
from gritrag.train.objectives.gradcache import GradCache
from gritrag.train.objectives.losses import Contrastive


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))


def encode(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(module(rows), dim=-1)


@pytest.mark.parametrize("recompute", [True, False])
def test_cached_gradients_equal_plain_ones(recompute: bool) -> None:
    plain, cached = encoder(), encoder()
    queries, documents, positive = torch.randn(6, 6), torch.randn(9, 6), torch.tensor([0, 2, 2, 4, 8, 7])
    loss_of = Contrastive(ContrastiveConfig())
    loss = loss_of(encode(plain, queries), encode(plain, documents), positive)
    loss.backward()

    sides = [GradCache(lambda c: (encode(cached, c),), x.split(2), recompute) for x in (queries, documents)]
    vectors = [torch.cat([leaves[0] for leaves in side.leaves]) for side in sides]
    cached_loss = loss_of(*vectors, positive)
    cached_loss.backward()
    for side in sides:
        side.backward()

    assert cached_loss.item() == pytest.approx(loss.item(), abs=1e-6)
    for got, want in zip(cached.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, atol=1e-5, rtol=1e-5)


def test_several_losses_and_an_output_without_any() -> None:
    module, rows = encoder(), torch.randn(4, 6)
    cache = GradCache(lambda c: (module(c), c @ module[0].weight.T, module(c) ** 2), [rows[:3], rows[3:]], True)
    for first, second, _ in cache.leaves:
        first.sum().backward()
        second.square().sum().backward()
    cache.backward()
    got = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    (module(rows).sum() + (rows @ module[0].weight.T).square().sum()).backward()
    for gradient, parameter in zip(got, module.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-5)


def test_recomputing_holds_no_graph_between_the_passes() -> None:
    module, seen = encoder(), []
    cache = GradCache(lambda c: (seen.append(torch.is_grad_enabled()) or module(c),), [torch.randn(2, 6)] * 3, True)
    assert seen == [False] * 3
    cache.leaves[1][0].sum().backward()
    cache.backward()
    assert seen == [False] * 3 + [True], "only the chunk that has a gradient runs again"
