"""Probe, never assume: on a tiny input, prove of this very model what GritRAG relies on.

Four probes: (a) the bidirectional view sees the future, unpadded and padded, while the causal stack does not; (b) keys
moved by rotation equal keys computed at the new position; (c) going on from a state equals one long forward; (d) our
own step computes what the model's layers do.

Shape letters: `B` batch, `T` tokens.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from gritrag.model.attention import Attention, decoder_stack
from gritrag.model.probed import NAMES, SHIFT, TOKENS, Probe, Probed, differ, probe_ids, tolerance
from gritrag.model.rotation import Rotation
from gritrag.model.state import CacheShape, PlacedCache, RecordingCache
from gritrag.model.step_probe import probe_step

logger = logging.getLogger(__name__)


@torch.no_grad()
def probe(lm: PreTrainedModel) -> Probed:
    """Run all four probes. Costs about twenty forwards over eight tokens."""
    if getattr(lm, "_is_stateful", False):
        why = f"{lm.config.model_type} keeps a running state, not keys and values per token: it has no state to store"
        return Probed(tuple(Probe(name, "refused", why) for name in NAMES), "", None, None)
    decoder = decoder_stack(lm)
    ids = probe_ids(lm)
    is_causal = not any(_sees_future(Attention(decoder, "causal"), ids, padding) for padding in (0, 3))
    bidirectional, attention = _probe_bidirectional(decoder, ids, is_causal)
    move, rotation = _probe_move(decoder, ids)
    goes_on, shape = _probe_continue(lm, decoder, ids)
    own, step = probe_step(lm, ids, shape)
    if step is None:
        logger.warning("%s: slow forward: %s", lm.config.model_type, own.detail)
    return Probed((bidirectional, move, goes_on, own), attention, rotation, shape, step, is_causal)


def _sees_future(attention: Attention, ids: torch.Tensor, padding: int) -> bool:
    """Does the first position react when only the last token changes?"""
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    mask = torch.ones(2, TOKENS + padding, dtype=torch.bool, device=ids.device)
    mask[:, TOKENS:] = False
    pad = ids.new_zeros(2, padding)
    first, second = (attention(torch.cat([x, pad], dim=1), mask)[:, 0] for x in (ids, other))
    return differ(first, second) > 1e-6


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
    off = differ(moved, there)
    if off > tolerance(here.dtype):
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
    off = differ(tail, whole)
    if off > tolerance(shape.dtype):
        return Probe("continue", "refused", f"logits after a state are off by {off:.1e}: states cannot be used"), None
    return Probe("continue", "works", f"logits after a state equal one long forward to {off:.0e}"), shape
