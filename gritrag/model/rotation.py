"""Rotary embedding of keys, done and undone in float32 outside the model, so that a state can be given any position.

The tables come from the model's own rotary module, which knows of scaling, partial rotation and layer types.

Shape letters: `T` tokens, `L` layers, `H` heads, `K` head dim, `R` rotated part of the head dim.
"""

import inspect

import torch
from transformers import PreTrainedModel

ALL = slice(None)

FREQUENCIES_THAT_DEPEND_ON_LENGTH = ("dynamic", "longrope")


class Rotation:
    """The rotary embedding of one model.

    Args:
        decoder: the causal stack.

    Raises:
        ValueError: the model has no rotary module, or one whose angles depend on the length of the context: its keys
            cannot be moved.
    """

    def __init__(self, decoder: PreTrainedModel) -> None:
        config = decoder.config.get_text_config()
        rotary = getattr(decoder, "rotary_emb", None)
        if rotary is None:
            raise ValueError(f"{config.model_type} has no rotary embedding: its keys hold their absolute positions")
        kinds = [kind for kind in FREQUENCIES_THAT_DEPEND_ON_LENGTH if f"'{kind}'" in str(config.rope_parameters)]
        if kinds:
            raise ValueError(f"{config.model_type} scales its angles with the context ({kinds[0]}): keys cannot move")
        self._rotary = rotary
        self._is_per_type = "layer_type" in inspect.signature(rotary.forward).parameters
        self._layer_types: list[str] = list(config.layer_types) if self._is_per_type else []
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
        if self._is_per_type:
            cos, sin = cos[layers], sin[layers]
        half, rotated = cos.shape[-1] // 2, cos.shape[-1]
        if out.dtype == torch.float32:
            result, source = out, keys.float()
        else:
            source = keys.float()
            result = torch.empty_like(source)
        first, second = source[..., :half], source[..., half:rotated]
        torch.mul(source[..., :rotated], cos, out=result[..., :rotated])
        result[..., :half].addcmul_(second, sin[..., :half], value=-1)
        result[..., half:rotated].addcmul_(first, sin[..., half:])
        if rotated < keys.shape[-1]:
            result[..., rotated:] = source[..., rotated:]
        if result is not out:
            out.copy_(result)
        return out

    def rotate(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """As `apply`, but differentiable and for any positions: keys `[L, ..., T, K]`, positions `[T]` or `[B, T]`."""
        cos, sin = self._compute(positions)
        return self._turn(keys, cos, sin)

    def undo(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotated keys `[L, ..., T, K]` at `positions` back to un-rotated ones. Differentiable."""
        cos, sin = self._compute(positions)
        scale = cos.square() + sin.square()  # 1, but for scaled rotary embeddings
        return self._turn(keys, cos / scale, -sin / scale)

    @staticmethod
    def _turn(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        if keys.dim() == 5:  # [L, B, H, T, K]
            cos, sin = cos[:, :, None], sin[:, :, None]
        rotated, half = cos.shape[-1], cos.shape[-1] // 2
        source = keys.float()
        turned = torch.cat([-source[..., half:rotated], source[..., :half]], dim=-1)
        result = source[..., :rotated] * cos + turned * sin
        return torch.cat([result, source[..., rotated:]], dim=-1).to(keys.dtype)

    def _compute(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 `[L or 1, 1 or B, T, R]`."""
        position_ids = positions if positions.dim() == 2 else positions[None]
        probe = torch.empty(0, dtype=torch.float32, device=positions.device)
        if not self._is_per_type:
            cos, sin = self._rotary(probe, position_ids)
            return cos[None], sin[None]
        by_type = {kind: self._rotary(probe, position_ids, kind) for kind in set(self._layer_types)}
        stacked = [torch.stack([by_type[kind][part] for kind in self._layer_types]) for part in (0, 1)]
        return stacked[0], stacked[1]
