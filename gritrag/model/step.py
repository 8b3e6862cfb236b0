"""Step: one forward of a Llama-like decoder over placed states: its own weights, and nothing around them.

A forward of transformers builds masks, repeats keys for every query head and runs some thirty modules per layer. For a
few tokens behind a long context that costs as much as the arithmetic. `Step` reads the placed keys where they lie, and
the query heads that share a key head become rows of one product.

What it covers is told by the tree of modules, not by the name of a model, and is proved by a probe at load.

Shape letters: `B` batch, `T` tokens, `V` vocabulary, `D` hidden, `H` key/value heads, `G` query heads per key head,
`K` head dim, `C` columns of the cache.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.functional import embedding, rms_norm, scaled_dot_product_attention
from transformers import Cache, PreTrainedModel

from gritrag.model.attention import decoder_stack
from gritrag.model.context import added, additive
from gritrag.model.gemm_layout import Orders
from gritrag.model.packed import MOST_ROWS, Packed, pack
from gritrag.model.state import PlacedCache

GROUPED_ROWS = 256
"""Up to so many rows per key head, query heads are grouped; a long prompt is better left to the causal kernel."""

MEASURED_LAYERS = 4
"""The order of products is measured on the weights of so many layers."""


class Forward(Protocol):
    """Goes on from a cache: reads tokens, leaves their keys and values behind the others, and says what comes next."""

    def logits(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        keep: int = 1,
    ) -> torch.Tensor:
        """float32 `[B, keep, V]` of the last `keep` tokens. `mask` is that of `context.Inputs`."""


def bias_of(cache: Cache | None) -> torch.Tensor | None:
    """What is added to the attention scores of the first columns of a cache; None for nothing."""
    return cache.bias if isinstance(cache, PlacedCache) else None


class Row(NamedTuple):
    """One text of a ragged batch, with a cache of its own.

    Args:
        ids, positions: `[1, T]`, read now.
        cache: of one row; what is read is left behind what it holds.
        keep: of how many of the last tokens the outcome is wanted; 0 where more of the text is still to be read.
        mask: that of `context.Inputs`, where states stand behind tokens.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    cache: PlacedCache
    keep: int
    mask: torch.Tensor | None = None


class ModuleForward:
    """The forward of transformers, for any architecture."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self._lm = lm
        self._is_eager = lm.config.get_text_config()._attn_implementation == "eager"

    def logits(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        keep: int = 1,
    ) -> torch.Tensor:
        bias = bias_of(cache)
        if bias is not None:
            tokens = ids_BT.shape[1]
            mask = added(mask, tokens, cache.get_seq_length() + tokens, bias.to(self._lm.dtype), bias)
        output = self._lm(
            input_ids=ids_BT,
            attention_mask=additive(mask, self._lm.dtype) if self._is_eager else mask,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return output.logits.float()


class Step:
    """The forward of a Llama-like model, over the weights of its own modules.

    Raises:
        ValueError: the model is not like Llama; the message says where.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        decoder: Any = decoder_stack(lm)
        config = decoder.config.get_text_config()
        window = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        if set(getattr(config, "layer_types", None) or [window]) != {"full_attention"}:
            raise ValueError("some of its layers see only a part of the context")
        _expect(decoder, {"embed_tokens", "layers", "norm", "rotary_emb"})
        if any(module._forward_hooks or module._forward_pre_hooks for module in lm.modules()):
            raise ValueError("it has hooks, which must be called")
        self._table = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        measured = [module.weight for module in decoder.layers[:MEASURED_LAYERS].modules() if type(module) is nn.Linear]
        self.packed = pack(lm)
        products = Products(Orders(measured), self.packed)
        self._layers = [Layer.of(layer, products) for layer in decoder.layers]
        self._norm = Norm.of(decoder.norm)
        self._head = Linear.of(lm.get_output_embeddings(), products)
        self._made_of = [
            (parts, name, part)
            for module in lm.modules()
            for parts in (module._modules, module._parameters)
            for name, part in parts.items()
        ]

    @property
    def is_current(self) -> bool:
        """Whether the model still is what it was: no adapter around a layer, and no packed weight trained since."""
        return all(parts.get(name) is part for parts, name, part in self._made_of) and all(
            packed.is_current for packed in self.packed.values()
        )

    def logits(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        keep: int = 1,
    ) -> torch.Tensor:
        return self._head(self.hidden(ids_BT, positions_BT, mask, cache, keep)).float()

    def read(self, ids_BT: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Last hidden states `[B, T, D]` of prompts from position 0, padded on the right, read causally."""
        rows, tokens = ids_BT.shape
        positions_BT = torch.arange(tokens, device=ids_BT.device).expand(rows, -1)
        return self.hidden(ids_BT, positions_BT, None, cache, tokens)

    def hidden(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache | None,
        keep: int,
    ) -> torch.Tensor:
        """Last hidden states `[B, keep, D]`: the last layer computes no more than are kept."""
        x_BTD = embedding(ids_BT, self._table)
        turn = Turn.of(self._rotary, x_BTD, positions_BT)
        tokens = ids_BT.shape[1]
        end = tokens + (0 if cache is None else cache.get_seq_length())
        bias = bias_of(cache)
        seen = Seen.of(mask, tokens, end, x_BTD, bias)
        for number, layer in enumerate(self._layers):
            query, key, value = layer.project(layer.before_attention(x_BTD))
            key, value = turn(key).transpose(1, 2), value.transpose(1, 2)
            if cache is not None:
                key, value = cache.update(key, value, number)
            if keep < tokens and layer is self._layers[-1]:
                x_BTD, query, turn = x_BTD[:, -keep:], query[:, -keep:], turn.last(keep)
                seen = Seen.of(mask, keep, end, x_BTD, bias)
            x_BTD = x_BTD + layer.out(seen.attend(turn(query), key, value, layer.scale))
            x_BTD += layer.mlp(layer.before_mlp(x_BTD))
        return self._norm(x_BTD)

    def ragged(self, rows: Sequence[Row]) -> torch.Tensor:
        """Last hidden states `[S, D]` of the tokens that are kept, row behind row.

        All tokens of all rows go through projections together; each row attends to its own cache. So rows of any
        lengths, some that begin and some that go on, share the reading of the weights, and none is padded.
        """
        x_BTD = embedding(torch.cat([row.ids for row in rows], dim=1), self._table)
        turn = Turn.of(self._rotary, x_BTD, torch.cat([row.positions for row in rows], dim=1))
        lengths, kept = [row.ids.shape[1] for row in rows], [row.keep for row in rows]
        parts = [slice(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)]
        ends = [row.cache.length + length for row, length in zip(rows, lengths, strict=True)]

        def columns(tokens: list[int]) -> "list[Seen]":
            shapes = zip(rows, tokens, ends, strict=True)
            return [Seen.of(row.mask, count, end, x_BTD, row.cache.bias) for row, count, end in shapes]

        seen = columns(lengths)
        for number, layer in enumerate(self._layers):
            query, key, value = layer.project(layer.before_attention(x_BTD))
            query, key, value = turn(query), turn(key).transpose(1, 2), value.transpose(1, 2)
            pairs = [row.cache.update(key[:, :, p], value[:, :, p], number) for row, p in zip(rows, parts, strict=True)]
            if layer is self._layers[-1] and kept != lengths:
                seen = columns(kept)
                parts = [slice(part.stop - keep, part.stop) for part, keep in zip(parts, kept, strict=True)]
                x_BTD = torch.cat([x_BTD[:, part] for part in parts], dim=1)
            mixed = [
                look.attend(query[:, part], *pair, layer.scale)
                for look, part, pair in zip(seen, parts, pairs, strict=True)
                if part.stop > part.start
            ]
            if not mixed:
                break
            x_BTD = x_BTD + layer.out(torch.cat(mixed, dim=1))
            x_BTD += layer.mlp(layer.before_mlp(x_BTD))
        return self._norm(x_BTD)[0]

    def words(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits `[..., V]` of last hidden states `[..., D]`."""
        return self._head(hidden).float()


class Turn(NamedTuple):
    """Rotary embedding of one forward: cosines, and sines with the sign of the half that they are added to."""

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def of(cls, rotary: nn.Module, x_BTD: torch.Tensor, positions_BT: torch.Tensor) -> "Turn":
        cos, sin = rotary(x_BTD, positions_BT)
        first, second = sin.chunk(2, dim=-1)
        return cls(cos[:, :, None], torch.cat([-first, second], dim=-1)[:, :, None])

    def last(self, tokens: int) -> "Turn":
        return Turn(self.cos[:, -tokens:], self.sin[:, -tokens:])

    def __call__(self, x_BTHK: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x_BTHK * self.cos, x_BTHK.roll(x_BTHK.shape[-1] // 2, -1), self.sin)


class Seen(NamedTuple):
    """Which columns each token of one forward sees.

    Args:
        is_causal: the columns are the tokens, and each sees itself and those before.
        bias: `[1 or B, 1, T, C]`, added to the scores; None where there is nothing to hide, and where `is_causal`.
    """

    is_causal: bool
    bias: torch.Tensor | None

    @classmethod
    def of(
        cls,
        mask: torch.Tensor | None,
        tokens: int,
        end: int,
        like: torch.Tensor,
        bias_BC: torch.Tensor | None = None,
    ) -> "Seen":
        if mask is None and bias_BC is None and tokens in (1, end):
            return cls(tokens > 1, None)
        return cls(False, added(mask, tokens, end, like, bias_BC))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """`[B, T, H * G * K]`, from queries `[B, T, H * G, K]`, keys and values `[B, H, C, K]`."""
        (rows, tokens, _, size), heads = query.shape, key.shape[1]
        grouped = query.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [B, H, G * T, K]
        if self.is_causal or grouped.shape[2] > GROUPED_ROWS:
            mixed = scaled_dot_product_attention(
                query.transpose(1, 2), key, value, self.bias, is_causal=self.is_causal, scale=scale, enable_gqa=True
            )
            return mixed.transpose(1, 2).reshape(rows, tokens, -1)
        groups = grouped.shape[2] // tokens
        bias = None if self.bias is None else self.bias.repeat(1, 1, groups, 1)
        mixed = scaled_dot_product_attention(grouped, key, value, bias, scale=scale)
        return mixed.view(rows, heads, groups, tokens, size).permute(0, 3, 1, 2, 4).reshape(rows, tokens, -1)


class Norm(NamedTuple):
    """Root mean square normalisation."""

    weight: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> "Norm":
        if [name for name, _ in module.named_parameters()] != ["weight"] or not hasattr(module, "variance_epsilon"):
            raise ValueError(f"{type(module).__name__} is no plain RMSNorm")
        return cls(module.weight, module.variance_epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Products(NamedTuple):
    """How products of few rows with the weights of one model are computed."""

    orders: Orders
    packed: Mapping[int, Packed]


class Linear(NamedTuple):
    """A projection."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    orders: Orders
    packed: Packed | None

    @classmethod
    def of(cls, module: Any, products: Products) -> "Linear":
        if type(module) is not nn.Linear:
            raise ValueError(f"{type(module).__name__} is no plain linear layer")
        return cls(module.weight, module.bias, products.orders, products.packed.get(id(module.weight)))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed is None or x.shape[:-1].numel() > MOST_ROWS:
            return self.orders(x, self.weight, self.bias)
        return self.packed(x) if self.bias is None else self.packed(x) + self.bias


class Layer(NamedTuple):
    """What one decoder layer computes with."""

    before_attention: Norm
    query: Linear
    key: Linear
    value: Linear
    norms: tuple[Norm, Norm] | None
    head_dim: int
    scale: float
    out: Linear
    before_mlp: Norm
    gate: Linear
    up: Linear
    down: Linear
    activation: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def of(cls, layer: Any, products: Products) -> "Layer":
        attention, mlp = layer.self_attn, layer.mlp
        _expect(layer, {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
        _expect(attention, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"})
        _expect(mlp, {"gate_proj", "up_proj", "down_proj", "act_fn"})
        has_norms = hasattr(attention, "q_norm") and hasattr(attention, "k_norm")
        return cls(
            Norm.of(layer.input_layernorm),
            Linear.of(attention.q_proj, products),
            Linear.of(attention.k_proj, products),
            Linear.of(attention.v_proj, products),
            (Norm.of(attention.q_norm), Norm.of(attention.k_norm)) if has_norms else None,
            attention.head_dim,
            attention.scaling,
            Linear.of(attention.o_proj, products),
            Norm.of(layer.post_attention_layernorm),
            Linear.of(mlp.gate_proj, products),
            Linear.of(mlp.up_proj, products),
            Linear.of(mlp.down_proj, products),
            mlp.act_fn,
        )

    def project(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries `[B, T, H * G, K]`, keys and values `[B, T, H, K]`, not yet rotated."""
        shape = (*x_BTD.shape[:2], -1, self.head_dim)
        query, key, value = (projection(x_BTD).view(shape) for projection in (self.query, self.key, self.value))
        if self.norms is not None:
            query, key = self.norms[0](query), self.norms[1](key)
        return query, key, value

    def mlp(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.gate(x_BTD)).mul_(self.up(x_BTD)))


def _expect(module: nn.Module, children: set[str], optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Refuse a module that is made of anything else."""
    found = {name for name, _ in module.named_children()}
    if not children <= found <= children | optional:
        differing = ", ".join(sorted(children ^ found))
        raise ValueError(f"{type(module).__name__} is built otherwise than Llama's: {differing}")
