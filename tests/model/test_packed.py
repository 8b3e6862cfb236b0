"""Laws of packed weights: the same numbers in fewer bytes, for models that lose nothing by it, and never stale ones."""

import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from architectures import VOCABULARY, make_lm
from torch.nn.functional import linear
from transformers import PreTrainedTokenizerFast

from gritrag.config import CheckpointConfig
from gritrag.model import packed as packed_module
from gritrag.model.gemm_layout import GemmLayout
from gritrag.model.grit import GritModel
from gritrag.model.hardware import halves_weights
from gritrag.model.layers import Products
from gritrag.model.packed import Packed, can_pack, can_pack_bf16, is_packable, round_to_half
from gritrag.model.step import Step

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(not can_pack_bf16(CPU), reason="this processor does not compute in bfloat16")
needs_kernel = pytest.mark.skipif(not can_pack(CPU), reason="this build of torch has no kernel for packed weights")


@pytest.fixture(autouse=True)
def _pack_tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "SMALLEST", 0)


def test_processors_of_our_machines_have_the_kernel() -> None:
    assert can_pack(CPU) or platform.machine().lower() not in ("x86_64", "amd64")


@needs_kernel
def test_a_packed_weight_holds_the_very_same_numbers() -> None:
    """Those that half precision writes without a leading one, too."""
    weight = (torch.randn(40, 24) * torch.logspace(-7, 3, 24)).half().float()
    assert (weight.abs() < torch.finfo(torch.float16).smallest_normal).any()
    assert torch.equal(Packed([weight])(torch.eye(24)), weight.t())


@needs_kernel
@pytest.mark.parametrize("rows", [1, 2, 5, 17, 64])
def test_a_product_is_that_of_linear(rows: int) -> None:
    weight, x = torch.randn(40, 24).half().float(), torch.randn(2, rows, 24)
    torch.testing.assert_close(Packed([weight])(x), linear(x, weight))


@needs_bf16
@pytest.mark.parametrize("rows", [1, 4, 20, 300])
def test_bfloat16_is_laid_out_anew_and_computes_the_same(rows: int) -> None:
    weights = [torch.randn(size, 32).bfloat16() for size in (48, 16, 16)]
    x, residual = torch.randn(2, rows, 32).bfloat16(), torch.randn(2, rows, 80).bfloat16()
    packed, want = Packed(weights), linear(x.float(), torch.cat(weights).float())
    torch.testing.assert_close(packed(x).float(), want, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(packed.plus(x, residual).float(), residual.float() + want, atol=2e-2, rtol=1e-2)


@needs_kernel
def test_several_weights_are_one_product() -> None:
    weights = [torch.randn(size, 24).half().float() for size in (40, 8, 8)]
    x, residual = torch.randn(3, 24), torch.randn(3, 56)
    torch.testing.assert_close(Packed(weights)(x), torch.cat([linear(x, weight) for weight in weights], dim=-1))
    torch.testing.assert_close(Packed(weights).plus(x, residual), residual + Packed(weights)(x))


@needs_kernel
def test_threads_that_pack_at_once_get_each_its_own_weight() -> None:
    class Slow(list[Packed]):
        def append(self, packed: Packed) -> None:
            super().append(packed)
            time.sleep(0.02)  # the others append too before this one goes on

    weights = [torch.randn(40, 24).half().float() for _ in range(8)]
    products = Products(GemmLayout(weights), packs=True)
    products.packed = Slow()
    with ThreadPoolExecutor(len(weights)) as threads:
        found = list(threads.map(lambda weight: products.pack([weight]), weights))
    for weight, packed in zip(weights, found, strict=True):
        assert packed is not None
        assert packed.weights[0] is weight


@needs_kernel
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_step_over_packed_weights_equals_the_forward(architecture: str) -> None:
    lm = make_lm(architecture)
    round_to_half(lm)
    step, ids = Step(lm), torch.randint(3, VOCABULARY, (2, 12))
    assert step.packed
    with torch.inference_mode():
        torch.testing.assert_close(step.read(ids), lm.base_model(input_ids=ids).last_hidden_state, atol=1e-4, rtol=0)


def test_a_model_that_would_lose_something_is_not_packed() -> None:
    assert not is_packable(make_lm("llama"))
    assert not is_packable(make_lm("llama").to(torch.float16))
    wide = make_lm("llama")
    with torch.no_grad():
        wide.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    before = wide.model.layers[0].mlp.gate_proj.weight.clone()
    round_to_half(wide)
    assert torch.equal(wide.model.layers[0].mlp.gate_proj.weight, before)
    assert not is_packable(wide)


@needs_kernel
@pytest.mark.parametrize("number", [0, 99, -1])
def test_each_number_is_asked_for(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "COMPARED_AT_ONCE", 100)
    lm = make_lm("llama")
    round_to_half(lm)
    assert is_packable(lm)
    with torch.no_grad():
        lm.get_output_embeddings().weight.view(-1)[number] = 1 + 2**-12
    assert not is_packable(lm)


def test_bfloat16_loses_nothing() -> None:
    assert is_packable(make_lm("llama").to(torch.bfloat16)) == can_pack_bf16(CPU)


def test_small_models_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "SMALLEST", 1 << 20)
    lm = make_lm("llama")
    round_to_half(lm)
    assert not is_packable(lm)


def in_place(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.mul_(-1)


def exchanged(weight: torch.Tensor) -> None:
    weight.data = -weight.data


@pytest.mark.parametrize("change", [in_place, exchanged])
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=needs_kernel), pytest.param(torch.bfloat16, marks=needs_bf16)]
)
def test_a_model_that_is_changed_is_not_answered_from_what_it_was(
    tokenizer: PreTrainedTokenizerFast, change: Callable[[torch.Tensor], None], dtype: torch.dtype
) -> None:
    lm = make_lm("llama")
    round_to_half(lm)
    lm.to(dtype)
    model = GritModel(lm, tokenizer, CheckpointConfig())
    before = model.generate("the river", max_new_tokens=8)
    assert model.step is not None
    change(lm.get_output_embeddings().weight)
    assert model.step is None
    assert model.generate("the river", max_new_tokens=8) != before


@needs_kernel
def test_auto_rounds_and_a_dtype_that_was_asked_for_does_not(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    make_lm("llama").save_pretrained(tmp_path)

    def weights(dtype: str) -> torch.Tensor:
        return GritModel.from_pretrained(tmp_path, dtype=dtype, device="cpu").lm.model.layers[0].mlp.up_proj.weight

    exact = weights("float32")
    assert not torch.equal(exact, exact.half().float())
    if halves_weights("auto", CPU):
        assert torch.equal(weights("auto"), exact.half().float())
    assert not halves_weights("float32", CPU)
