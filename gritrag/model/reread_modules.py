"""Reading over placed states by the forward of transformers, for any architecture; see `gritrag.model.recompute`.

Shape letters: `B` batch, `T` tokens, `H` heads, `K` head dim, `C` columns of the cache.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention, softmax
from torch.overrides import TorchFunctionMode
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from gritrag.model.caches import PlacedCache
from gritrag.model.inputs import Inputs
from gritrag.model.module_forward import Forward
from gritrag.model.recompute import Again, choosing_layers


class AttentionObserver(TorchFunctionMode):
    """Sums the attention that each of the first columns gets, by call of torch's attention while it is entered.

    It sees the calls of its own thread and changes none of them. Models that compute attention in pieces ("eager") are
    seen by their softmax.

    Args:
        columns: so many are counted.

    Attributes:
        calls: of each, float32 `[C]`; a layer makes one.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._columns = columns
        self.calls: list[torch.Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function is scaled_dot_product_attention:
            self._add(attention_of(*args, **kwargs))
        elif function is softmax and result.dim() == 4:
            self._add(result)
        return result

    def _add(self, attention_BHTC: torch.Tensor) -> None:
        self.calls.append(attention_BHTC[..., : self._columns].float().sum(dim=(0, 1, 2)))


def attention_of(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The probabilities `[B, H, T, C]` that `scaled_dot_product_attention` weighs values by; arguments as there."""
    grouped = query.reshape(
        query.shape[0], key.shape[1], -1, query.shape[-1]
    )  # heads that share keys: rows of a product
    scores = (grouped @ key.mT).reshape(*query.shape[:3], -1).float()
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        hides = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if hides else scores + attn_mask.float()
    return scores.softmax(-1)


class OverwritingLayer(CacheLayerMixin):
    """One layer of a context, of whose columns some are written anew.

    Args:
        keys, values: `[1, H, C, K]`.
        columns: int64 `[T]`, for the tokens that will be read.
    """

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, columns: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self._columns = keys, values, columns
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The columns are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Overwrite the columns; all keys and values, as they are now."""
        self.keys[:, :, self._columns], self.values[:, :, self._columns] = key_states, value_states
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a query sees, and where they begin."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Tokens beside those that are read."""
        return self.keys.shape[2] - len(self._columns)

    def get_max_length(self) -> int:
        """Tokens that there is room for."""
        return self.keys.shape[2]


class ModuleRereader:
    """See `gritrag.model.recompute.Rereader`.

    Args:
        forward: that of transformers.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    def attention(self, given: Inputs, cache: PlacedCache) -> torch.Tensor:
        columns = cache.length
        with AttentionObserver(columns) as observer:
            self._forward.logits(given.ids, given.positions, given.mask, cache)
        cache.cut(columns)
        assert observer.calls, "this model computes attention in a way of its own"
        return torch.stack([observer.calls[number] for number in choosing_layers(len(observer.calls))]).sum(0)

    def overwrite(self, again: Again, cache: PlacedCache) -> None:
        columns_T = again.columns.to(again.ids.device)
        keys, values = (buffer[..., : cache.length, :] for buffer in cache.buffers)
        seen_TC = torch.arange(cache.length, device=columns_T.device) <= columns_T[:, None]
        layers: list[Any] = [OverwritingLayer(k, v, columns_T) for k, v in zip(keys, values, strict=True)]
        self._forward.logits(again.ids, again.positions, seen_TC[None, None], Cache(layers=layers))
