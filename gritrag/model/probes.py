"""Probe, never assume: on a tiny input, prove of this very model what GritRAG relies on.

Four probes: (a) the bidirectional view sees the future, unpadded and padded, while the causal stack does not; (b) keys
moved by rotation equal keys computed at the new position; (c) going on from a state equals one long forward; (d) our
own step computes what the model's layers do.

Shape letters: `B` batch, `T` tokens, `D` hidden, `N` tokens of all rows.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from gritrag.model.attention import Attention, decoder_stack
from gritrag.model.module_forward import ModuleForward
from gritrag.model.rotation import Rotation
from gritrag.model.state import CacheShape, PlacedCache, RecordingCache
from gritrag.model.step import SPARE_COLUMNS, STEP_TOKENS, Step

logger = logging.getLogger(__name__)

Name = Literal["bidirectional", "move", "continue", "step"]
Outcome = Literal["works", "falls back", "refused"]

NAMES: tuple[Name, ...] = ("bidirectional", "move", "continue", "step")

TOKENS = 8
SHIFT = 5


@dataclass(frozen=True)
class Probe:
    """What was proved. `detail` says what happens instead where it does not work."""

    name: Name
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Probed:
    """The probes of one model and what they found: how to read bidirectionally, how to rotate, the shape of its caches.

    `attention` is ``"view"``, ``"mask"`` or ``""`` (cannot); `rotation` is None where keys cannot be moved; `shape` is
    None where states cannot be used at all; `step` is None where the model's own forward has to be used.
    """

    probes: tuple[Probe, ...]
    attention: str
    rotation: Rotation | None
    shape: CacheShape | None
    step: Step | None = None
    is_causal: bool = True

    def require_shape(self) -> CacheShape:
        """The shape of the model's caches.

        Raises:
            ValueError: its states cannot be used.
        """
        if self.shape is None:
            raise ValueError(f"this model has no states to reuse: {self.probes[2].detail}")
        return self.shape


@torch.no_grad()
def probe(lm: PreTrainedModel) -> Probed:
    """Run all four probes. Costs about twenty forwards over eight tokens."""
    if getattr(lm, "_is_stateful", False):
        why = f"{lm.config.model_type} keeps a running state, not keys and values per token: it has no state to store"
        return Probed(tuple(Probe(name, "refused", why) for name in NAMES), "", None, None)
    decoder = decoder_stack(lm)
    ids = _ids(lm)
    is_causal = not any(_sees_future(Attention(decoder, "causal"), ids, padding) for padding in (0, 3))
    bidirectional, attention = _probe_bidirectional(decoder, ids, is_causal)
    move, rotation = _probe_move(decoder, ids)
    goes_on, shape = _probe_continue(lm, decoder, ids)
    own, step = _probe_step(lm, ids, shape)
    if step is None:
        logger.warning("%s: slow forward: %s", lm.config.model_type, own.detail)
    return Probed((bidirectional, move, goes_on, own), attention, rotation, shape, step, is_causal)


def _ids(lm: PreTrainedModel) -> torch.Tensor:
    """Two rows of tokens that are no specials, `[2, T]`, the same at every load."""
    generator = torch.Generator().manual_seed(0)
    size = int(lm.config.get_text_config().vocab_size)
    return torch.randint(size // 4, size, (2, TOKENS), generator=generator).to(lm.device)


def _tolerance(dtype: torch.dtype) -> float:
    """Relative to the largest value; a wrong attention or a wrong rotation is off by a hundred times as much."""
    return 1e-4 if dtype == torch.float32 else 4e-2


def _differ(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value of `b`."""
    scale = b.float().abs().max().clamp_min(1e-12)
    return float((a.float() - b.float()).abs().max() / scale)


def _sees_future(attention: Attention, ids: torch.Tensor, padding: int) -> bool:
    """Does the first position react when only the last token changes?"""
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    mask = torch.ones(2, TOKENS + padding, dtype=torch.bool, device=ids.device)
    mask[:, TOKENS:] = False
    pad = ids.new_zeros(2, padding)
    first, second = (attention(torch.cat([x, pad], dim=1), mask)[:, 0] for x in (ids, other))
    return _differ(first, second) > 1e-6


def _probe_bidirectional(decoder: PreTrainedModel, ids: torch.Tensor, is_causal: bool) -> tuple[Probe, str]:
    if not is_causal:
        return Probe("bidirectional", "refused", "this model is not causal to begin with: it cannot generate"), ""
    details = {"view": "a view of its own config", "mask": "its config flag is ignored: an explicit 4D mask is used"}
    for kind, detail in details.items():
        seen = [_sees_future(Attention(decoder, kind), ids, padding) for padding in (0, 3)]
        if all(seen):
            return Probe("bidirectional", "works" if kind == "view" else "falls back", detail), kind
    return Probe("bidirectional", "refused", "stays causal whatever is asked of it; read causally instead"), ""


def _record(decoder: PreTrainedModel, ids: torch.Tensor, start: int) -> RecordingCache:
    cache = RecordingCache()
    Attention(decoder, "causal")(ids, torch.ones_like(ids, dtype=torch.bool), cache, start)
    return cache


def _probe_move(decoder: PreTrainedModel, ids: torch.Tensor) -> tuple[Probe, Rotation | None]:
    fallback = "a state is reused only where it was read, at the start of a context; later documents are read again"
    try:
        rotation = Rotation(decoder)
    except ValueError as error:
        return Probe("move", "falls back", f"{error}; {fallback}"), None
    with _layers_alike(decoder) as again:
        here, _ = _record(decoder, ids, 0).unrotated(rotation)
        moved = rotation.rotate(here, torch.arange(SHIFT, SHIFT + TOKENS, device=ids.device))
        again()
        there = torch.stack([keys for keys, _ in _record(decoder, ids, SHIFT).recorded])
    off = _differ(moved, there)
    if off > _tolerance(here.dtype):
        return Probe("move", "falls back", f"moved keys are off by {off:.1e}; {fallback}"), None
    return Probe("move", "works", f"moved keys equal computed ones to {off:.0e}"), rotation


@contextmanager
def _layers_alike(decoder: PreTrainedModel) -> Iterator[Callable[[], None]]:
    """In 16 bits: once `again` has been called, every layer is given what it was given before.

    Through a whole model, what is rounded otherwise at other positions grows apart further than a wrong rotation does:
    a trained checkpoint was off by 0.2. In float32 nothing grows apart, and the whole is compared, as it is where a
    decoder keeps its layers under another name.
    """
    given: list[torch.Tensor] = []
    replayed: list[torch.Tensor] = []

    def hook(layer: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = args[0] if args else named["hidden_states"]
        if replayed:
            hidden = replayed.pop(0)
        else:
            given.append(hidden)
        return ((hidden, *args[1:]), named) if args else (args, {**named, "hidden_states": hidden})

    layers = getattr(decoder, "layers", ()) if decoder.dtype != torch.float32 else ()
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield lambda: replayed.extend(given)
    finally:
        for handle in handles:
            handle.remove()


def _probe_continue(
    lm: PreTrainedModel, decoder: PreTrainedModel, ids: torch.Tensor
) -> tuple[Probe, CacheShape | None]:
    """States at position 0 need no rotation, so this is asked of models that cannot move keys as well."""
    recorded = _record(decoder, ids[:, :SHIFT], 0).recorded
    first, _ = recorded[0]
    if any(tensor.shape != first.shape for pair in recorded for tensor in pair):
        return Probe("continue", "refused", "its layers differ in heads or head dim: no single state shape"), None
    shape = CacheShape(len(recorded), first.shape[1], first.shape[3], first.dtype, first.device)
    cache = PlacedCache(*shape.empty(2, TOKENS), 0)
    for number, (keys, values) in enumerate(recorded):
        cache.update(keys, values, number)
    positions = torch.arange(SHIFT, TOKENS, device=ids.device)[None].expand(2, -1)
    tail = lm(input_ids=ids[:, SHIFT:], position_ids=positions, past_key_values=cache, use_cache=True).logits
    whole = lm(input_ids=ids).logits[:, SHIFT:]
    off = _differ(tail, whole)
    if off > _tolerance(shape.dtype):
        return Probe("continue", "refused", f"logits after a state are off by {off:.1e}: states cannot be used"), None
    return Probe("continue", "works", f"logits after a state equal one long forward to {off:.0e}"), shape


def _probe_step(lm: PreTrainedModel, ids: torch.Tensor, shape: CacheShape | None) -> tuple[Probe, Step | None]:
    """Asked near the start and near the end of what the model takes, where some models compute otherwise.

    Each layer is compared by itself, on what the model's own layers hand on: through a whole model in 16 bits, two
    ways of rounding grow apart further than a wrong layer does. Embeddings, every layer, the last norm and the head
    make the forward. In float32 nothing grows apart, and the whole is compared too.
    """
    fallback = "the forward of transformers is used, which is slower"
    if shape is None:
        return Probe("step", "falls back", f"its states cannot be used; {fallback}"), None
    try:
        step = Step(lm)
    except (ValueError, AttributeError) as error:
        return Probe("step", "falls back", f"{error}; {fallback}"), None
    longest = int(getattr(lm.config.get_text_config(), "max_position_embeddings", TOKENS))
    starts = sorted({0, max(0, longest - TOKENS)})
    off = max(layer_differs(lm, step, ids, shape, start) for start in starts)
    if off > LAYER_TOLERANCE[shape.dtype]:
        return Probe("step", "falls back", f"a layer of our own step is off by {off:.1e}; {fallback}"), None
    if shape.dtype == torch.float32:
        whole = max(_step_differs(lm, step, ids, shape, start) for start in starts)
        if whole > _tolerance(shape.dtype):
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
    return _differ(own, models)
