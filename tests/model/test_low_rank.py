"""Laws of LoRA with summed weights: what peft computes, gradients too, at whatever the weights are now."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from architectures import VOCABULARY, make_lm
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from transformers import PreTrainedModel

from gritrag.model.adapter import attach
from gritrag.model.low_rank import SummedForward, sum_layers

IDS = torch.randint(3, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(0))


def adapted(architecture: str, is_summed: bool) -> PreTrainedModel:
    """The same model with the same adapter, which changes something, either way."""
    lm = make_lm(architecture)
    attach(lm, rank=4, alpha=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    if is_summed:
        sum_layers(lm)
    return lm


def run(lm: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of their loss."""
    lm.zero_grad()
    out = lm(input_ids=IDS, labels=IDS)
    out.loss.backward()
    return out.logits.detach(), {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}


def agree(one: PreTrainedModel, other: PreTrainedModel) -> None:
    (logits, gradients), (expected, expected_gradients) = run(one), run(other)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-6, rtol=1e-4)


@contextmanager
def counted(lm: PreTrainedModel) -> Iterator[list[None]]:
    """How often peft's own forward pass of a layer's adapter is run while the context is open."""
    calls: list[None] = []
    downs = [layer.lora_A["default"] for layer in lm.modules() if isinstance(layer, LoraLinear)]
    handles = [down.register_forward_hook(lambda *_: calls.append(None)) for down in downs]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_logits_and_gradients_are_those_of_peft(architecture: str) -> None:
    lm = adapted(architecture, is_summed=True)
    with counted(lm) as calls:
        agree(lm, adapted(architecture, is_summed=False))
    assert not calls


def test_a_step_of_the_optimizer_is_seen() -> None:
    models = [adapted("llama", is_summed) for is_summed in (True, False)]
    for lm in models:
        optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=0.1)
        before, _ = run(lm)
        optimizer.step()
        assert (run(lm)[0] - before).abs().max() > 1e-2
    agree(*models)


def test_a_changed_base_is_seen() -> None:
    models = [adapted("llama", is_summed) for is_summed in (True, False)]
    for lm in models:
        run(lm)
        with torch.no_grad():
            for layer in lm.modules():
                if isinstance(layer, LoraLinear):
                    layer.get_base_layer().weight.mul_(1.5)
    agree(*models)


def test_the_sum_is_kept_while_nothing_changes() -> None:
    lm = adapted("llama", is_summed=True)
    run(lm)
    forwards = [m.forward for m in lm.modules() if isinstance(m, LoraLinear)]
    sums = [forward._sum_OI for forward in forwards if isinstance(forward, SummedForward)]
    assert len(sums) == len(forwards) > 0
    run(lm)
    assert all(forward._sum_OI is kept for forward, kept in zip(forwards, sums, strict=True))


def test_what_it_is_not_made_for_is_left_to_peft() -> None:
    """Adapters switched off, reduced precision, dropout."""
    lm, plain = adapted("llama", is_summed=True), adapted("llama", is_summed=False)
    layers = [[m for m in model.modules() if isinstance(m, LoraLinear)] for model in (lm, plain)]
    for layer in [*layers[0], *layers[1]]:
        layer.enable_adapters(False)
    with torch.no_grad(), counted(lm) as calls:
        assert torch.equal(lm(input_ids=IDS).logits, plain(input_ids=IDS).logits)
        assert not calls
    for layer in [*layers[0], *layers[1]]:
        layer.enable_adapters(True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), counted(lm) as calls:
        assert torch.equal(lm(input_ids=IDS).logits, plain(input_ids=IDS).logits)
        assert len(calls) == len(layers[0])
    for layer in layers[0]:
        layer.lora_dropout["default"] = nn.Dropout(0.5)
    with torch.no_grad(), counted(lm) as calls:
        lm(input_ids=IDS)
        assert len(calls) == len(layers[0])
