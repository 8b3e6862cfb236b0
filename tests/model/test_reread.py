"""Reading over placed states by our own step computes what the model's own modules do, in blocks of any size."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from architectures import MOVABLE

from gritrag.model import reread_step
from gritrag.model.caches import PlacedCache
from gritrag.model.context import Context, Part
from gritrag.model.grit import GritModel
from gritrag.model.inputs import inputs
from gritrag.model.module_forward import ModuleForward
from gritrag.model.recompute import Again, Rereader, choosing_layers
from gritrag.model.reread_modules import ModuleRereader
from gritrag.model.reread_step import StepRereader, blocks
from gritrag.model.sampling import Sampling

TEXTS = ["the river", "a much longer text about a bridge over the river", "nobody crosses it in the winter"]
SAMPLING = Sampling(max_new_tokens=4)


def biased(model: GritModel) -> Context:
    """Documents in a row, each with a bias of its own, and a question."""
    states = [reading.state for reading in model.read_documents(TEXTS)]
    parts = [Part(state, -float(number)) for number, state in enumerate(states)]
    question = model.prompts.question_ids("who crosses the bridge?", has_documents=True)
    return Context((replace(parts[0], unbiased=2), *parts[1:], Part(tuple(question))))


def readers(model: GritModel) -> tuple[Rereader, Rereader]:
    assert model.step is not None
    return StepRereader(model.step), ModuleRereader(ModuleForward(model.lm))


def with_a_step(make_model: Callable[..., GritModel]) -> list[GritModel]:
    models = [make_model(name) for name in MOVABLE]
    return [model for model in models if model.step is not None]


def again_of(context: Context, columns: list[int]) -> Again:
    ids = torch.tensor([context.token_ids])[:, columns]
    return Again(ids, torch.tensor([columns]), torch.tensor(columns))


@pytest.fixture(params=[1, 7, 1000])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of blocks of every kind, so that texts of tests have several."""
    for name in ("BLOCK", "DENSE_BLOCK", "OBSERVED_ROWS"):
        monkeypatch.setattr(reread_step, name, request.param)
    return int(request.param)


@torch.inference_mode()
def test_what_a_question_attends_to_is_what_the_modules_say(size: int, make_model: Callable[..., GritModel]) -> None:
    models = with_a_step(make_model)
    assert len(models) > 2
    for model in models:
        context = biased(model)
        given, found = inputs([context], model.device), []
        for reader in readers(model):
            cache = model.decoder.place([context], SAMPLING)
            before = [buffer[..., : cache.length, :].clone() for buffer in cache.buffers]
            found.append(reader.attention(given, cache))
            assert cache.length == context.cached_tokens
            for buffer, was in zip(cache.buffers, before, strict=True):
                assert torch.equal(buffer[..., : cache.length, :], was), "what is placed stays as it is"
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
        rows = len(context.fresh_ids) * model.lm.config.num_attention_heads * len(choosing_layers(len(before[0])))
        assert 0 < float(found[0].sum()) < rows


@torch.inference_mode()
def test_tokens_are_overwritten_with_what_the_modules_write(size: int, make_model: Callable[..., GritModel]) -> None:
    for model in with_a_step(make_model):
        context = biased(model)
        last = context.cached_tokens - 1
        for columns in ([0, 3, 4, 9, last], [last], list(range(last + 1))):
            caches = [model.decoder.place([context], SAMPLING) for _ in range(3)]
            for reader, cache in zip(readers(model), caches, strict=False):
                reader.overwrite(again_of(context, columns), PlacedCache(*cache.buffers, cache.length))
            own, modules, before = (torch.stack(cache.buffers)[..., : last + 1, :] for cache in caches)
            torch.testing.assert_close(own, modules, atol=1e-4, rtol=1e-4)
            others = [column for column in range(last + 1) if column not in columns]
            assert torch.equal(own[..., others, :], before[..., others, :])
            assert not torch.equal(own[-1, ..., columns, :], before[-1, ..., columns, :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_block_sees_all_up_to_each_of_its_tokens(dtype: torch.dtype, size: int) -> None:
    """In bfloat16 in products, elsewhere by the kernel; what lies behind the last column is hidden."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, 9, 6, 8, generator=draw).to(dtype)
    key, value = (torch.randn(1, 2, 100, 8, generator=draw).to(dtype) for _ in "kv")
    columns = [0, 1, 5, 6, 30, 64, 65, 70, 90]
    parts = blocks(columns, 100, query)
    assert len(parts) == -(-9 // size)
    assert all(part.columns <= 100 for part in parts)
    found = torch.cat([part.attend(query, key, value, 0.4) for part in parts], dim=1)
    keys, values = (each[0].float().repeat_interleave(3, dim=0) for each in (key, value))
    for number, column in enumerate(columns):
        rows = query[0, number].float()[:, None]
        attention = (rows @ keys[:, : column + 1].mT * 0.4).softmax(-1)
        want = (attention @ values[:, : column + 1]).flatten()
        torch.testing.assert_close(
            found[0, number].float(), want, atol=4e-2 if dtype != torch.float32 else 1e-5, rtol=0
        )


def test_the_middle_third_of_the_layers_chooses() -> None:
    assert [choosing_layers(layers) for layers in (30, 3, 2, 1)] == [range(10, 20), range(1, 2), range(2), range(1)]
