"""Hidden states to one vector. Only content tokens are pooled: never padding, scaffold or instruction.

Shape letters: `B` batch, `T` tokens, `D` hidden, `R` latents, `H` heads, `K` head dim.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from gritrag.config import PartsConfig

Pooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`(hidden_BTD, pool_mask_BT) -> float32 [B, D]`; every row of the mask holds at least one true."""

LATENT_ATTENTION = "latent_attention"


def mean(hidden_BTD: torch.Tensor, pool_mask_BT: torch.Tensor) -> torch.Tensor:
    """Average over content (GritLM, section 2)."""
    return _weighted(hidden_BTD, pool_mask_BT.float())


def weighted_mean(hidden_BTD: torch.Tensor, pool_mask_BT: torch.Tensor) -> torch.Tensor:
    """Average with weights 1, 2, 3, ...: a causal token knows more the later it stands (SGPT, section 3)."""
    mask_BT = pool_mask_BT.float()
    return _weighted(hidden_BTD, mask_BT.cumsum(1) * mask_BT)


def last(hidden_BTD: torch.Tensor, pool_mask_BT: torch.Tensor) -> torch.Tensor:
    """The last content token, on whichever side the padding is (E5-Mistral)."""
    steps = torch.arange(1, pool_mask_BT.shape[1] + 1, device=pool_mask_BT.device)
    return _at(hidden_BTD, (pool_mask_BT * steps).argmax(1))


def first(hidden_BTD: torch.Tensor, pool_mask_BT: torch.Tensor) -> torch.Tensor:
    """The first content token: a contextual token where there is one; else of use under bidirectional reading only."""
    return _at(hidden_BTD, pool_mask_BT.int().argmax(1))


def _weighted(hidden_BTD: torch.Tensor, weight_BT: torch.Tensor) -> torch.Tensor:
    weight_BT = weight_BT / weight_BT.sum(1, keepdim=True)
    # where, not a product: a padded position may hold anything, infinities too
    hidden_BTD = torch.where(weight_BT[..., None] > 0, hidden_BTD.float(), 0.0)
    return torch.einsum("btd,bt->bd", hidden_BTD, weight_BT)


def _at(hidden_BTD: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
    return hidden_BTD[torch.arange(len(index_B), device=index_B.device), index_B].float()


POOLINGS: dict[str, Pooling] = {"mean": mean, "weighted_mean": weighted_mean, "last": last, "first": first}


class LatentAttention(nn.Module):
    """Every token asks an array of trained latents and is changed by what it hears (NV-Embed, section 3.1).

    Hidden states are the queries, latents are keys and values; a residual, a gated feed-forward layer, a residual. Both
    layers write nothing at first, so that training starts from plain mean pooling.

    Args:
        dim: of hidden states.
        latents: how many.
        heads: of the attention.

    Raises:
        ValueError: `dim` cannot be split into so many heads.
    """

    def __init__(self, dim: int, latents: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"latent_heads={heads} does not divide the {dim} dimensions of hidden states")
        self.heads = heads
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.norm, self.latent_norm, self.forward_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.widen = nn.Linear(dim, 8 * dim)
        self.narrow = nn.Linear(4 * dim, dim)
        for layer in (self.output, self.narrow):
            nn.init.zeros_(layer.weight)

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` of any dtype to float32 `[B, T, D]`; each token on its own, so padding touches no other."""
        hidden_BTD = hidden_BTD.float()
        keys_RD, values_RD = self.key_value(self.latent_norm(self.latents)).chunk(2, dim=-1)
        query_BHTK = self.query(self.norm(hidden_BTD)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys_HRK, values_HRK = (x.unflatten(-1, (self.heads, -1)).transpose(0, 1) for x in (keys_RD, values_RD))
        batch = query_BHTK.shape[0]
        heard_BHTK = scaled_dot_product_attention(
            query_BHTK, keys_HRK.expand(batch, -1, -1, -1), values_HRK.expand(batch, -1, -1, -1)
        )
        hidden_BTD = hidden_BTD + self.output(heard_BHTK.transpose(1, 2).flatten(2))
        value, gate = self.widen(self.forward_norm(hidden_BTD)).chunk(2, dim=-1)
        return hidden_BTD + self.narrow(value * gelu(gate))


class Pooler(nn.Module):
    """A pooling by its name, what it trains included.

    Args:
        name: ``mean``, ``weighted_mean``, ``last``, ``first``, ``latent_attention`` (followed by the mean), or several
            joined by ``+``, whose vectors are concatenated: ``first+last``.
        hidden: size of hidden states.
        parts: sizes of latent attention and of a last projection.

    Raises:
        ValueError: no such pooling.
    """

    def __init__(self, name: str, hidden: int, parts: PartsConfig) -> None:
        super().__init__()
        self._names = name.split("+")
        known = [*POOLINGS, LATENT_ATTENTION]
        for part in self._names:
            if part not in known:
                raise ValueError(f"no pooling {part!r}; there are: {', '.join(known)}, and several joined by +")
        self.dim = parts.projection or len(self._names) * hidden
        if LATENT_ATTENTION in self._names:
            self.latent_attention = LatentAttention(hidden, parts.latents, parts.latent_heads)
        if parts.projection:
            self.projection = nn.Linear(len(self._names) * hidden, parts.projection, bias=False)

    def forward(self, hidden_BTD: torch.Tensor, pool_mask_BT: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` and bool `[B, T]` to float32 `[B, dim]`, not normalised."""
        vectors_BD = torch.cat([self._pool(name, hidden_BTD, pool_mask_BT) for name in self._names], dim=-1)
        return self.projection(vectors_BD).float() if hasattr(self, "projection") else vectors_BD

    def _pool(self, name: str, hidden_BTD: torch.Tensor, pool_mask_BT: torch.Tensor) -> torch.Tensor:
        if name == LATENT_ATTENTION:
            # what stands at a padded position may be infinite, and 0 times infinity would reach the gradient
            clean_BTD = torch.where(pool_mask_BT[..., None], hidden_BTD, 0)
            return mean(self.latent_attention(clean_BTD), pool_mask_BT)
        return POOLINGS[name](hidden_BTD, pool_mask_BT)
