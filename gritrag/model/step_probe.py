"""The probe of our own step: every layer computes what the model's layers do.

Shape letters: `B` batch, `T` tokens, `D` hidden, `N` tokens of all rows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from gritrag.model.attention import decoder_stack
from gritrag.model.caches import CacheShape, PlacedCache
from gritrag.model.inner_errors import INNER_ERRORS
from gritrag.model.module_forward import ModuleForward
from gritrag.model.probed import SHIFT, TOKENS, Probe, differ, tolerance
from gritrag.model.step import SPARE_COLUMNS, STEP_TOKENS, Step


def probe_step(lm: PreTrainedModel, ids: torch.Tensor, shape: CacheShape) -> tuple[Probe, Step | None]:
    """Asked near the start and near the end of what the model takes, where some models compute otherwise.

    Each layer is compared by itself, on what the model's own layers hand on: through a whole model in 16 bits, two
    ways of rounding grow apart further than a wrong layer does. Embeddings, every layer, the last norm and the head
    make the forward. In float32 nothing grows apart, and the whole is compared too.
    """
    fallback = "the forward of transformers is used, which is slower"
    longest = int(getattr(lm.config.get_text_config(), "max_position_embeddings", TOKENS))
    starts = sorted({0, max(0, longest - TOKENS)})
    try:
        step = Step(lm)
        off = max(layer_differs(lm, step, ids, shape, start) for start in starts)
    except torch.OutOfMemoryError:
        raise
    except INNER_ERRORS as error:  # what it lacks, or computes in another way
        return Probe("step", "falls back", f"{error}; {fallback}"), None
    if off > LAYER_TOLERANCE[shape.dtype]:
        return Probe("step", "falls back", f"a layer of our own step is off by {off:.1e}; {fallback}"), None
    if shape.dtype == torch.float32:
        whole = max(_step_differs(lm, step, ids, shape, start) for start in starts)
        if whole > tolerance(shape.dtype):
            return Probe("step", "falls back", f"our own step is off by {whole:.1e}; {fallback}"), None
    step.guesses_freely = _is_same_alone(step, ids, shape)
    guesses = "" if step.guesses_freely else "; rounding depends on the shape of a product, so lookup is off"
    return Probe("step", "works", f"every layer of our own step equals the model's to {off:.0e}{guesses}"), step


LAYER_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of one layer, relative to what it computes. A wrong rotation, scale or mask is off by ten times as much in some
layer: tests hold both."""


class _Heard(NamedTuple):
    """What went through one layer of a model: its input, the output of its attention, that with the input, the output
    of its MLP, and its own output. All `[B, T, D]`."""

    entered: torch.Tensor
    attended: torch.Tensor
    between: torch.Tensor
    mlp: torch.Tensor
    left: torch.Tensor


@contextmanager
def _listening(lm: PreTrainedModel) -> Iterator[dict[tuple[str, int], torch.Tensor]]:
    """Keeps what goes through the parts of a Llama-like model, by name and number of the layer."""
    heard: dict[tuple[str, int], torch.Tensor] = {}

    def entering(name: str, number: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
            heard[name, number] = given[0] if given else named["hidden_states"]

        return hook

    def leaving(name: str, number: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, given: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            heard[name, number] = output[0] if isinstance(output, tuple) else output

        return hook

    decoder: Any = decoder_stack(lm)
    handles = [
        decoder.norm.register_forward_hook(leaving("normed", 0)),
        decoder.embed_tokens.register_forward_hook(leaving("embedded", 0)),
    ]
    for number, layer in enumerate(decoder.layers):
        handles += [
            layer.register_forward_pre_hook(entering("entered", number), with_kwargs=True),
            layer.self_attn.register_forward_hook(leaving("attended", number)),
            layer.post_attention_layernorm.register_forward_pre_hook(entering("between", number), with_kwargs=True),
            layer.mlp.register_forward_hook(leaving("mlp", number)),
            layer.register_forward_hook(leaving("left", number)),
        ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def layer_differs(lm: PreTrainedModel, step: Step, ids: torch.Tensor, shape: CacheShape, start: int) -> float:
    """Largest difference of any part of our step from the model's own on the same input, relative to what it computes.

    Two rows, the second padded on the left, in two runs: the first from nothing, the second from a cache.
    """
    positions = torch.arange(start, start + TOKENS, device=ids.device)[None].expand(2, -1)
    is_real = torch.ones_like(ids, dtype=torch.bool)
    is_real[1, :2] = False
    theirs, ours = (PlacedCache(*shape.empty(2, TOKENS), 0) for _ in range(2))
    forward, off = ModuleForward(lm), 0.0
    for run in (slice(0, SHIFT), slice(SHIFT, TOKENS)):
        with _listening(lm) as heard:
            mask = is_real[:, : run.stop]
            logits = forward.logits(ids[:, run], positions[:, run], mask, theirs, run.stop - run.start)
        layers = [_Heard(*(heard[name, number] for name in _Heard._fields)) for number in range(len(step.layers))]
        chain = [heard["embedded", 0], *(layer.left for layer in layers[:-1])]
        embedded = step.embed(ids[:, run])
        frame = step.frame(positions[:, run], mask, step.end(run.stop - run.start, ours), ours, embedded)
        pairs = [(embedded, heard["embedded", 0])]
        pairs += [(layer.entered, before) for layer, before in zip(layers, chain, strict=True)]
        for number, (layer, of) in enumerate(zip(step.layers, layers, strict=True)):
            mixed = layer.attend(of.entered, frame.rotary, frame, ours, number)
            gated = layer.gated(of.between)
            pairs += [
                (layer.out(mixed), of.attended),
                (layer.out.plus(mixed, of.entered), of.between),
                (layer.down(gated), of.mlp),
                (layer.down.plus(gated, of.between), of.left),
            ]
        pairs.append((step.norm(layers[-1].left), heard["normed", 0]))
        pairs.append((step.head(heard["normed", 0]).float(), logits))
        off = max(off, *(_tokens_differ(own[is_real[:, run]], of[is_real[:, run]]) for own, of in pairs))
    return off


def _tokens_differ(own_ND: torch.Tensor, models_ND: torch.Tensor) -> float:
    """Largest difference of a token, relative to its length, or to the mean of all where that is larger."""
    if own_ND.shape != models_ND.shape:
        return float("inf")
    lengths_N = models_ND.float().norm(dim=-1)
    scale_N = torch.maximum(lengths_N, lengths_N.mean()).clamp_min(1e-12)
    off = ((own_ND.float() - models_ND.float()).norm(dim=-1) / scale_N).max()
    return float(off) if bool(off.isfinite()) else float("inf")


def _is_same_alone(step: Step, ids: torch.Tensor, shape: CacheShape) -> bool:
    """Whether tokens read together come out as those read one by one, bit by bit where all steps have one shape."""
    if not step.has_fixed_shape:
        return True
    logits = []
    for size in (1, STEP_TOKENS):
        keys, values = shape.empty(1, TOKENS + SPARE_COLUMNS)
        cache = PlacedCache(keys.zero_(), values.zero_(), 0)
        runs = [ids[:1, n : n + size] for n in range(0, TOKENS, size)]
        logits.append(
            [step.next_logits(run, torch.tensor([[cache.length]]).to(ids.device), None, cache) for run in runs]
        )
    return torch.equal(*(torch.cat(parts, dim=1) for parts in logits))


def _step_differs(lm: PreTrainedModel, step: Step, ids: torch.Tensor, shape: CacheShape, start: int) -> float:
    """Two rows, the second padded on the left, in two runs: the first from nothing, the second from a cache."""
    positions = torch.arange(start, start + TOKENS, device=ids.device)[None].expand(2, -1)
    is_real = torch.ones_like(ids, dtype=torch.bool)
    is_real[1, :2] = False
    logits = []
    for forward in (step, ModuleForward(lm)):
        cache = PlacedCache(*shape.empty(2, TOKENS), 0)
        runs = [slice(0, SHIFT), slice(SHIFT, TOKENS)]
        logits.append(
            [forward.logits(ids[:, r], positions[:, r], is_real[:, : r.stop], cache, r.stop - r.start) for r in runs]
        )
    own, models = (torch.cat(parts, dim=1)[is_real] for parts in logits)
    return differ(own, models)
