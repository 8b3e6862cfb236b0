"""Rotary embedding of keys, done and undone in float32 outside the model, so that a state can be given any position.

The tables come from the model's own rotary module, which knows of scaling, partial rotation and layer types.

Shape letters: `T` tokens, `L` layers, `H` heads, `K` head dim, `R` rotated part of the head dim.
"""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

ALL = slice(None)

RUN = 1 << 17
"""Numbers that are rotated at a time where they have to be rounded; a GPU rotates all at once."""

FREQUENCIES_THAT_DEPEND_ON_LENGTH = ("dynamic", "longrope")


class Rotation:
    """The rotary embedding of one model.

    Args:
        decoder: the causal stack.

    Attributes:
        is_per_type: whether layers of some types have angles of their own.

    Raises:
        ValueError: the model has no rotary module, or one whose angles depend on the length of the context: its keys
            cannot be moved.
    """

    def __init__(self, decoder: PreTrainedModel) -> None:
        config = decoder.config.get_text_config()
        # a model that takes images too keeps its text model inside
        models = [m for m in decoder.modules() if isinstance(m, PreTrainedModel)]
        texts = [m for m in models if m.config.model_type in (decoder.config.model_type, config.model_type)]
        rotary: Any = next((m.rotary_emb for m in texts if hasattr(m, "rotary_emb")), None)
        if rotary is None:
            raise ValueError(f"{config.model_type} has no rotary embedding: its keys hold their absolute positions")
        scaled = [
            kind
            for kind in FREQUENCIES_THAT_DEPEND_ON_LENGTH
            if f"'{kind}'" in str(getattr(config, "rope_parameters", ""))
        ]
        if scaled:
            raise ValueError(f"{config.model_type} scales its angles with the context ({scaled[0]}): keys cannot move")
        self._rotary = rotary
        self.is_per_type = "layer_type" in inspect.signature(rotary.forward).parameters
        kinds = config.layer_types if self.is_per_type else ()
        shared = getattr(config, "num_kv_shared_layers", None) or 0  # the last ones use keys of others (Gemma 3n)
        self._layer_types: list[str] = list(kinds[: len(kinds) - shared])
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def tables(self, start: int, end: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of positions `[start, end)`: float32 `[L or 1, 1, T, R]`, kept for the next call."""
        tables = self._tables
        if tables is None or tables[0].shape[2] < end or tables[0].device != device:
            length = max(512, 1 << (end - 1).bit_length())
            self._tables = tables = self._compute(torch.arange(length, device=device))
        return tables[0][:, :, start:end], tables[1][:, :, start:end]

    def apply(
        self, keys: torch.Tensor, start: int, out: torch.Tensor | None = None, layers: slice = ALL
    ) -> torch.Tensor:
        """Rotate un-rotated keys `[L, H, T, K]` to positions `start, start + 1, ...`; into `out` where given.

        `layers` says which ones of the model's they are.
        """
        out = torch.empty_like(keys) if out is None else out
        cos, sin = self.tables(start, start + keys.shape[2], keys.device)
        if self.is_per_type:
            cos, sin = cos[layers], sin[layers]
        if out.dtype == torch.float32:
            return _rotate_into(out, keys.float(), cos, sin)
        # a few layers at a time: they stay in the processor's cache, and no memory is touched that is not needed
        per_run = max(1, RUN // keys[0].numel()) if keys.device.type == "cpu" else len(keys)
        scratch = torch.empty((2, min(per_run, len(keys)), *keys.shape[1:]), dtype=torch.float32, device=keys.device)
        for start_layer in range(0, len(keys), per_run):
            run = slice(start_layer, start_layer + per_run)
            source, rotated = scratch[:, : len(keys[run])]
            table = run if len(cos) > 1 else ALL
            out[run] = _rotate_into(rotated, source.copy_(keys[run]), cos[table], sin[table])
        return out

    def gradient(self, of_rotated: torch.Tensor, start: int) -> torch.Tensor:
        """What `apply` at `start` hands back to its keys for a gradient `[L, H, T, K]` of what it gave."""
        cos, sin = self.tables(start, start + of_rotated.shape[2], of_rotated.device)
        given = of_rotated.float()
        back = _rotate_into(torch.empty_like(given), given, cos, -sin.roll(sin.shape[-1] // 2, -1))
        return back.to(of_rotated.dtype)

    def rotate(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """As `apply`, but differentiable and for any positions: keys `[L, ..., T, K]`, positions `[T]` or `[B, T]`."""
        cos, sin = self._compute(positions)
        return self._rotated(keys, cos, sin)

    def undo(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotated keys `[L, ..., T, K]` at `positions` back to un-rotated ones. Differentiable."""
        cos, sin = self._compute(positions)
        scale = cos.square() + sin.square()  # 1, but for scaled rotary embeddings
        return self._rotated(keys, cos / scale, -sin / scale)

    @staticmethod
    def _rotated(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        if keys.dim() == 5:  # [L, B, H, T, K]
            cos, sin = cos[:, :, None], sin[:, :, None]
        rotated: torch.Tensor = _Rotate.apply(keys.float(), cos, sin)
        return rotated.to(keys.dtype)

    def _compute(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 `[L or 1, 1 or B, T, R]`."""
        position_ids = positions if positions.dim() == 2 else positions[None]
        probe = torch.empty(0, dtype=torch.float32, device=positions.device)
        if not self.is_per_type:
            cos, sin = self._rotary(probe, position_ids)
            return cos[None], sin[None]
        by_type = {kind: self._rotary(probe, position_ids, kind) for kind in set(self._layer_types)}
        stacked = [torch.stack([by_type[kind][part] for kind in self._layer_types]) for part in (0, 1)]
        return stacked[0], stacked[1]


def _rotate_into(out: torch.Tensor, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`keys` rotated, in `out`, both float32: ``x * cos + [-x2, x1] * sin`` of the two halves of what is rotated."""
    rotated, half = cos.shape[-1], cos.shape[-1] // 2
    torch.mul(keys[..., :rotated], cos, out=out[..., :rotated])
    out[..., :half].addcmul_(keys[..., half:rotated], sin[..., :half], value=-1)
    out[..., half:rotated].addcmul_(keys[..., :half], sin[..., half:])
    if rotated < keys.shape[-1]:
        out[..., rotated:] = keys[..., rotated:]
    return out


class _Rotate(torch.autograd.Function):
    """`_rotate_into` with gradients, which are rotated back: by the sines of the other half, negated."""

    @staticmethod
    def forward(ctx: Any, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate_into(torch.empty_like(keys), keys, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        return _rotate_into(torch.empty_like(gradient), gradient, cos, -sin.roll(sin.shape[-1] // 2, -1)), None, None
