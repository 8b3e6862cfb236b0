"""Probe, never assume: on a tiny input, prove of this very model what GritRAG relies on.

Four probes: (a) the bidirectional view sees the future, unpadded and padded, while the causal stack does not; (b) keys
moved by rotation equal keys computed at the new position; (c) going on from a state equals one long forward; (d) our
own step computes what the model's layers do.

Shape letters: `B` batch, `T` tokens.
"""

import logging
from collections.abc import Sequence
from contextlib import closing
from itertools import product
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicIndexedLayer, LinearAttentionCacheLayerMixin

from gritrag.model.attention import Attention, decoder_stack
from gritrag.model.cache_names import cache_name, given_cache
from gritrag.model.caches import CacheShape, PlacedCache, RecordingCache
from gritrag.model.inner_errors import INNER_ERRORS, told
from gritrag.model.mask_probe import probe_masks
from gritrag.model.native_forward import NativeCache, NativeForward
from gritrag.model.probed import SHIFT, TOKENS, Masks, Probe, Probed, differ, probe_ids, tolerance
from gritrag.model.rotation import ALL, Rotation
from gritrag.model.step_probe import probe_step

logger = logging.getLogger(__name__)

OF_LAYER = 0.1
"""How far what a layer adds may be off, see `_Layers.off`: rounding takes it to 0.04, a wrong state beyond 0.2."""


@torch.no_grad()
def probe(lm: PreTrainedModel) -> Probed:
    """Run all four probes. Costs about twenty forwards over eight tokens.

    Raises:
        ValueError: the model cannot be read at all, or it is no causal language model; the message names it.
    """
    decoder, ids = decoder_stack(lm), probe_ids(lm)
    _check_causal(lm, decoder, ids)
    bidirectional, attention = _probe_bidirectional(decoder, ids)
    shape, why = _states(lm, decoder, ids)
    if shape is None:
        return _without_states(lm, ids, why, bidirectional, attention)
    move, rotation = _probe_move(decoder, ids)
    own, step = probe_step(lm, ids, shape)
    if step is None:
        logger.warning("%s: slow forward: %s", lm.config.model_type, own.detail)
    goes_on = Probe("continue", "works", why)
    masks = Masks() if step is not None else probe_masks(lm, ids, shape)
    return Probed((bidirectional, move, goes_on, own), attention, rotation, shape, step, masks=masks)


def _check_causal(lm: PreTrainedModel, decoder: PreTrainedModel, ids: torch.Tensor) -> None:
    name = lm.config.model_type
    try:
        is_causal = not any(_sees_future(Attention(decoder, "causal"), ids, padding) for padding in (0, 3))
        lm(input_ids=ids)
        width = Attention(decoder, "causal")(ids, torch.ones_like(ids, dtype=torch.bool)).shape[-1]
    except torch.OutOfMemoryError:
        raise
    except INNER_ERRORS as error:
        raise ValueError(
            f"{name} cannot be read: its forward in transformers fails over {TOKENS} tokens ({told(error)}). It may "
            "need inputs beside text, or settings that its config lacks"
        ) from error
    if width != lm.config.get_text_config().hidden_size:
        raise ValueError(
            f"{name} cannot be embedded: its last hidden states have {width} numbers, and its config says "
            f"{lm.config.get_text_config().hidden_size}"
        )
    if not is_causal:
        raise ValueError(
            f"{name} is no causal language model: its tokens see those behind them, so it cannot generate. An encoder "
            "with a head for language modelling is causal where its config says is_decoder=True"
        )


def _without_states(lm: PreTrainedModel, ids: torch.Tensor, why: str, bidirectional: Probe, attention: str) -> Probed:
    """What is left of a model whose states cannot be used: its own forward, which reads every text from its start."""
    native = _native(lm, ids)
    if native is None:
        raise ValueError(f"{lm.config.model_type} can neither reuse states nor generate: {why}")
    again = "by its own forward" if native.kept_as else "again for each new token: slow"
    detail = f"{why}; documents are read {again}"
    logger.warning("%s has no states: %s", lm.config.model_type, detail)
    probes = (
        bidirectional,
        Probe("move", "refused", why),
        Probe("continue", "falls back", detail),
        Probe("step", "falls back", "the forward of transformers is used, which is slower"),
    )
    return Probed(probes, attention, None, None, native=native)


def _sees_future(attention: Attention, ids: torch.Tensor, padding: int) -> bool:
    """Does the first position react when only the last token changes, by more than rounding? Experts that are given
    other tokens round otherwise.
    """
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    mask = torch.ones(2, TOKENS + padding, dtype=torch.bool, device=ids.device)
    mask[:, TOKENS:] = False
    pad = ids.new_zeros(2, padding)
    first, second = (attention(torch.cat([x, pad], dim=1), mask)[:, 0] for x in (ids, other))
    return differ(first, second) > tolerance(first.dtype)


def _probe_bidirectional(decoder: PreTrainedModel, ids: torch.Tensor) -> tuple[Probe, str]:
    details = {"view": "a view of its own config", "mask": "its config flag is ignored: an explicit 4D mask is used"}
    for kind, detail in details.items():
        try:
            seen = [_sees_future(Attention(decoder, kind), ids, padding) for padding in (0, 3)]
        except INNER_ERRORS:  # it takes no such mask
            continue
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
    try:
        off = _moved_differ(decoder, rotation, ids)
    except torch.OutOfMemoryError:
        raise
    except INNER_ERRORS as error:
        why = f"{decoder.config.model_type} has a rotary embedding of another form ({told(error)})"
        return Probe("move", "falls back", f"{why}; {fallback}"), None
    if off > tolerance(decoder.dtype):
        why = "its layers do not all rotate the halves of a key (some rotate neighbouring pairs, or nothing)"
        return Probe("move", "falls back", f"moved keys are off by {off:.1e}: {why}; {fallback}"), None
    return Probe("move", "works", f"moved keys equal computed ones to {off:.0e}"), rotation


def _moved_differ(decoder: PreTrainedModel, rotation: Rotation, ids: torch.Tensor) -> float:
    """How far keys that were moved are off those computed where they stand now."""
    with closing(_Layers(decoder)) as layers:
        here, _ = _record(decoder, ids, 0).unrotated(rotation)
        moved = rotation.rotate(here, torch.arange(SHIFT, SHIFT + TOKENS, device=ids.device))
        layers.again()
        there = torch.stack([keys for keys, _ in _record(decoder, ids, SHIFT).recorded])
    return differ(moved, there)


class _Layers:
    """In 16 bits: once `again` has been called, every layer of a decoder is given what it was given before.

    Through a whole model, what is rounded otherwise grows apart further than a wrong rotation or a forgotten token
    takes it: keys of a trained checkpoint that had been moved were off by 0.2, logits of eight billion weights on a GPU
    by 0.05. In float32 nothing grows apart, and the whole is compared, as it is where a decoder keeps its layers under
    another name.
    """

    def __init__(self, decoder: PreTrainedModel) -> None:
        layers = getattr(decoder, "layers", ()) if decoder.dtype != torch.float32 else ()
        self._given: list[torch.Tensor] = []
        self._replayed: list[torch.Tensor] = []
        self._heard: list[torch.Tensor] = []
        self._handles = [layer.register_forward_pre_hook(self._enter, with_kwargs=True) for layer in layers]

    def _enter(
        self, layer: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else named["hidden_states"]
        if self._replayed:
            self._heard.append(hidden)
            hidden = self._replayed.pop(0)
        else:
            self._given.append(hidden)
        return ((hidden, *args[1:]), named) if args else (args, {**named, "hidden_states": hidden})

    def again(self, tokens: slice = ALL) -> None:
        """From now on; layers are given only these tokens of what they were given."""
        self._given = [hidden[..., tokens, :] for hidden in self._given]  # Gemma 3n has four streams before the batch
        self._replayed = list(self._given)

    @property
    def off(self) -> float:
        """How far any layer but the last was off what it had added before, at any token; 0 where the whole is compared.

        Relative to what it added there, or to all tokens on average, or an eighth of what was there, whichever is most:
        16 bits round the sum.
        """
        pairs = zip(self._given, self._given[1:], self._heard[1:], strict=False)
        return max((_added_differ(given, left, heard) for given, left, heard in pairs), default=0.0)

    def close(self) -> None:
        """Leave the decoder as it was."""
        for handle in self._handles:
            handle.remove()


def _added_differ(given_BTD: torch.Tensor, left_BTD: torch.Tensor, heard_BTD: torch.Tensor) -> float:
    given, left, heard = given_BTD.float(), left_BTD.float(), heard_BTD.float()
    added_BT = (left - given).norm(dim=-1)
    scale_BT = torch.maximum(added_BT, left.norm(dim=-1) / 8).clamp_min(float(added_BT.mean()) + 1e-12)
    off = ((heard - left).norm(dim=-1) / scale_BT).max()
    return float(off) if bool(off.isfinite()) else float("inf")


def _states(lm: PreTrainedModel, decoder: PreTrainedModel, ids: torch.Tensor) -> tuple[CacheShape | None, str]:
    """The shape of the model's caches and how well it goes on from them; or None, and why states cannot be used.

    States at position 0 need no rotation, so this is asked of models that cannot move keys as well.
    """
    name = lm.config.model_type
    other = _other_than_keys(lm)
    if other:
        return None, other
    try:
        recorded = _record(decoder, ids[:, :SHIFT], 0).recorded
        shapes = sorted({(tensor.shape[1], *tensor.shape[3:]) for pair in recorded for tensor in pair})
        if not shapes:
            return None, f"{name} hands no keys and values to a cache: they cannot be kept"
        if len(shapes) > 1 or len(shapes[0]) != 2:
            found = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
            return (
                None,
                f"{name} keeps keys and values of several shapes (heads x numbers: {found}), and a state has one",
            )
        off, of_layers, shape = _continue(lm, ids, recorded)
    except torch.OutOfMemoryError:
        raise
    except INNER_ERRORS as error:
        return None, f"{name} asks more of a cache than keys and values per token ({told(error)})"
    wrong = f"{name} does not go on from keys and values as from the text"
    if off > tolerance(shape.dtype):
        return None, f"{wrong}: logits are off by {off:.1e}"
    if of_layers > OF_LAYER:
        return None, f"{wrong}: a layer is off by {of_layers:.1e}"
    return shape, f"logits after a state equal one long forward to {off:.0e}"


def _other_than_keys(lm: PreTrainedModel) -> str:
    """Why keys and values are not all that a model keeps of a text; empty where they may be.

    Some hybrids do not mark themselves as stateful, so the layers of the model's own cache are asked as well.
    """
    name = lm.config.model_type
    try:
        layers = DynamicCache(config=lm.config).layers
    except INNER_ERRORS:
        layers = []
    running = sum(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    if running or getattr(lm, "_is_stateful", False):
        where = f" in {running} of its {len(layers)} layers" if 0 < running < len(layers) else ""
        return (
            f"{name} keeps a running state{where}, not keys and values per token: it is the end of a recurrence over "
            "all that was read, and cannot be moved or joined with that of another document"
        )
    if any(isinstance(layer, DynamicIndexedLayer) for layer in layers):
        return f"{name} chooses tokens by the keys of an indexer, for which a state has no room"
    return ""


def _continue(
    lm: PreTrainedModel, ids: torch.Tensor, recorded: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[float, float, CacheShape]:
    """How far logits behind recorded keys and values, and any layer, are off those of one long forward, and the shape
    of caches."""
    first, _ = recorded[0]
    shape = CacheShape(len(recorded), first.shape[1], first.shape[3], first.dtype, first.device)
    cache = PlacedCache(*shape.empty(2, TOKENS), 0)
    for number, (keys, values) in enumerate(recorded):
        cache.update(keys, values, number)
    positions = torch.arange(SHIFT, TOKENS, device=ids.device)[None].expand(2, -1)
    with closing(_Layers(decoder_stack(lm))) as layers:
        whole = lm(input_ids=ids).logits[:, SHIFT:]
        layers.again(slice(SHIFT, None))
        tail = lm(input_ids=ids[:, SHIFT:], position_ids=positions, **given_cache(lm, cache), use_cache=True).logits
        return differ(tail, whole), layers.off, shape


def _native(lm: PreTrainedModel, ids: torch.Tensor) -> NativeForward | None:
    """The forward that goes on from what the model itself keeps; None where none gives what one long forward does."""
    whole = lm(input_ids=ids[:1]).logits[:, SHIFT - 1 :]
    runs = [slice(0, SHIFT), *(slice(number, number + 1) for number in range(SHIFT, TOKENS))]
    positions = torch.arange(TOKENS, device=ids.device)[None]
    for kept_as, gives_positions in product((cache_name(lm), ""), (True, False)):
        forward, cache = NativeForward(lm, kept_as, gives_positions), NativeCache()
        try:
            logits = [forward.logits(ids[:1, run], positions[:, run], None, cache) for run in runs]
        except INNER_ERRORS:  # it hands nothing out under this name, or cannot go on from it
            continue
        if differ(torch.cat(logits, dim=1), whole) <= tolerance(lm.dtype):
            return forward
    return None
