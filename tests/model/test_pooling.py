"""Poolings: latent attention is its definition, padding on any side changes nothing, vectors can be joined."""

import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, softmax

from gritrag.config import PartsConfig
from gritrag.model.grit import GritModel
from gritrag.model.pooling import POOLINGS, LatentAttention, Pooler, mean

EVERY = [*POOLINGS, "latent_attention", "first+last", "mean+last"]
SMALL = PartsConfig(latents=6, latent_heads=4)


def stirred(pooler: torch.nn.Module) -> torch.nn.Module:
    """With random weights everywhere, those that begin at zero included."""
    torch.manual_seed(3)
    for parameter in pooler.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return pooler


def naive(layer: LatentAttention, token_D: torch.Tensor) -> torch.Tensor:
    """One token, one head, one latent at a time."""
    size = len(token_D) // layer.heads
    query_D = layer.query.weight @ layer_norm(token_D, token_D.shape, layer.norm.weight, layer.norm.bias)
    heard = []
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        scores, values = [], []
        for latent in layer.latents:
            both = layer.key_value.weight @ layer_norm(
                latent, latent.shape, layer.latent_norm.weight, layer.latent_norm.bias
            )
            key_D, value_D = both[: len(token_D)], both[len(token_D) :]
            scores.append((query_D[part] @ key_D[part]) / math.sqrt(size))
            values.append(value_D[part])
        weights = softmax(torch.stack(scores), 0)
        heard.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
    token_D = token_D + layer.output.weight @ torch.cat(heard)
    normed_D = layer_norm(token_D, token_D.shape, layer.forward_norm.weight, layer.forward_norm.bias)
    value, gate = (layer.widen.weight @ normed_D + layer.widen.bias).chunk(2)
    return token_D + layer.narrow.weight @ (value * gelu(gate)) + layer.narrow.bias


def test_latent_attention_is_a_naive_loop() -> None:
    layer = stirred(LatentAttention(16, latents=5, heads=4))
    hidden = torch.randn(2, 3, 16)
    want = torch.stack([torch.stack([naive(layer, token) for token in row]) for row in hidden])
    torch.testing.assert_close(layer(hidden), want, atol=1e-5, rtol=1e-5)
    pooler = Pooler("latent_attention", 16, SMALL)
    pooler.latent_attention = layer
    mask = torch.tensor([[True, False, True], [False, True, False]])
    torch.testing.assert_close(pooler(hidden, mask), torch.stack([want[0, [0, 2]].mean(0), want[1, 1]]))


def test_latent_attention_begins_as_the_mean() -> None:
    torch.manual_seed(0)
    hidden, mask = torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool)
    torch.nn.init.zeros_((pooler := Pooler("latent_attention", 32, SMALL)).latent_attention.narrow.bias)
    torch.testing.assert_close(pooler(hidden, mask), mean(hidden, mask))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(name: str, side: str) -> None:
    pooler = stirred(Pooler(name, 16, SMALL))
    text, junk = torch.randn(1, 4, 16), torch.full((1, 3, 16), torch.inf)
    is_text, is_junk = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool)
    order = (1, -1) if side == "right" else (-1, 1)
    padded = torch.cat([text, junk][:: order[0]], dim=1)
    mask = torch.cat([is_text, is_junk][:: order[0]], dim=1)
    torch.testing.assert_close(pooler(padded, mask), pooler(text, is_text))


def test_joined_poolings_are_side_by_side_and_a_projection_comes_last() -> None:
    hidden, mask = torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    joined = Pooler("first+last", 8, PartsConfig())
    torch.testing.assert_close(joined(hidden, mask), torch.cat([hidden[:, 0], hidden[:, 2]], dim=-1))
    projected = Pooler("first+last", 8, PartsConfig(projection=5))
    assert projected.dim == projected(hidden, mask).shape[1] == 5
    torch.testing.assert_close(projected(hidden, mask), joined(hidden, mask) @ projected.projection.weight.T)


def test_a_pooling_that_there_is_not_is_named(make_model: object) -> None:
    with pytest.raises(ValueError, match=r"no pooling 'max'; there are: mean, .*latent_attention"):
        make_model(pooling="mean+max")
    with pytest.raises(ValueError, match="latent_heads=8 does not divide the 12 dimensions"):
        Pooler("latent_attention", 12, PartsConfig())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("reading", ["causal", "bidirectional"])
def test_a_batch_of_one_equals_a_batch_of_many(make_model: object, name: str, reading: str) -> None:
    model: GritModel = make_model(pooling=name, parts=SMALL, reading=reading, template="instruct")
    stirred(model.parts)
    texts = ["the river", "a much longer text about a bridge over the river", "x"]
    many = torch.from_numpy(model.encode_query(texts, "find it"))
    alone = torch.cat([torch.from_numpy(model.encode_query([text], "find it")) for text in texts])
    torch.testing.assert_close(many, alone, atol=1e-5, rtol=1e-4)
    assert many.shape[1] == model.dim == 32 * len(name.split("+"))


def test_the_end_token_is_what_last_pooling_takes(make_model: object) -> None:
    model: GritModel = make_model(pooling="last", template="instruct")
    for prompt in (model.prompts.document("a text"), model.prompts.query("a text", "find it")):
        assert prompt.ids[-1] == model.tokenizer.eos_token_id
        assert prompt.is_pooled[-1]
        assert prompt.ids.count(model.tokenizer.eos_token_id) == 1
    cloze = make_model(pooling="last", template="cloze")
    text = cloze.tokenizer.decode(cloze.document_token_ids("a text"))
    assert text.endswith('This sentence : "a text" belongs to the following cluster:')
    assert cloze.prompts.document("a text").is_pooled[-7:] == [False] * 6 + [True]
