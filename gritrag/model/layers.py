"""Layers of a Llama-like decoder as `gritrag.model.step` computes them: over the weights of the model's own modules.

Query heads that share a key head become rows of one product, and so do projections of one input. What a module must be
made of is checked when its layer is made.

Shape letters: `B` batch, `T` tokens, `D` hidden, `H` key/value heads, `G` query heads per key head, `K` head dim, `C`
columns of the cache, `R` rows of a product (query heads of one key head, and tokens).
"""

import math
from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import pad, rms_norm, scaled_dot_product_attention, silu, softmax
from transformers import Cache
from transformers.activations import ACT2FN

from gritrag.model.caches import CacheShape
from gritrag.model.gemm_layout import GemmLayout
from gritrag.model.masks import added
from gritrag.model.packed import Packed

SILU = (nn.SiLU, type(ACT2FN["silu"]))
"""Modules that are called as a function: over a few tokens the call takes longer than what it computes."""

CAUSAL_BLOCK = 128
"""Tokens of a text that attend together: to all before them, and to no column that none of them sees."""

GROUPED_ROWS = 256
"""Up to so many rows per key head, query heads are grouped; a long prompt is better left to the causal kernel."""


class Rotary(NamedTuple):
    """Rotary embedding of one forward: cosines, and sines with the sign of the half that they are added to."""

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def of(cls, cos_BTK: torch.Tensor, sin_BTK: torch.Tensor) -> "Rotary":
        first, second = sin_BTK.chunk(2, dim=-1)
        return cls(cos_BTK[:, :, None], torch.cat([-first, second], dim=-1)[:, :, None])

    def __call__(self, x_BTHK: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x_BTHK * self.cos, x_BTHK.roll(x_BTHK.shape[-1] // 2, -1), self.sin)


class AttentionMask(NamedTuple):
    """Which columns each token of one forward sees.

    Args:
        is_causal: the columns are the tokens, and each sees itself and those before.
        bias: `[1 or B, 1, T, C]`, added to the scores; None where there is nothing to hide, and where `is_causal`.
        grouped: the same for the query heads of one key head, `[1 or B, 1, R, C]`.
        in_blocks: where `is_causal`, blocks of tokens attend each by itself, if that is faster. It is for texts that
            are read whole: one that is read in several parts comes out otherwise in the last bits.
    """

    is_causal: bool
    bias: torch.Tensor | None = None
    grouped: torch.Tensor | None = None
    in_blocks: bool = False

    @classmethod
    def of(
        cls,
        mask: torch.Tensor | None,
        tokens: int,
        end: int,
        like: torch.Tensor,
        bias_BC: torch.Tensor | None,
        groups: int,
    ) -> "AttentionMask":
        if mask is None and bias_BC is None and tokens in (1, end):
            return cls(tokens > 1)
        bias = added(mask, tokens, end, like, bias_BC)
        return cls(False, bias, bias.repeat(1, 1, groups, 1) if groups * tokens <= GROUPED_ROWS else None)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """`[B, T, H * G * K]`, from queries `[B, T, H * G, K]`, keys and values `[B, H, C, K]`."""
        (rows, tokens, _, size), heads = query.shape, key.shape[1]
        groups = query.shape[2] // heads
        if self.is_causal and self.in_blocks and needs_dense(query):
            return _causal_products(query, key, value, scale)
        if self.is_causal or groups * tokens > GROUPED_ROWS:
            mixed = scaled_dot_product_attention(
                query.transpose(1, 2), key, value, self.bias, is_causal=self.is_causal, scale=scale, enable_gqa=True
            )
            return mixed.transpose(1, 2).reshape(rows, tokens, -1)
        grouped = query.reshape(rows, tokens, heads, groups, size).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [B, H, R, K]
        if needs_dense(query):
            mixed = _products(grouped, key, value, self.grouped, scale)
        else:
            mixed = scaled_dot_product_attention(grouped, key, value, self.grouped, scale=scale)
        return mixed.view(rows, heads, groups, tokens, size).permute(0, 3, 1, 2, 4).reshape(rows, tokens, -1)


def needs_dense(like: torch.Tensor | CacheShape) -> bool:
    """Whether products of such numbers copy whatever is not dense, as oneDNN's do: half of their time over a cache."""
    return like.dtype == torch.bfloat16 and like.device.type == "cpu"


def _products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention `[B, H, R, K]` as two products, which oneDNN computes faster in bfloat16 than the fused kernel of torch
    does. Scores are rounded once, with their bias, as in "eager" attention. Keys that are not dense are the first
    factor: for 3 rows over 640 columns that takes half the time of queries first, and gives the same numbers."""
    batch, is_biased = query.shape[:2], int(bias is not None)
    rows, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    first = query.new_zeros(()) if bias is None else bias
    if key.is_contiguous():
        scores = torch.baddbmm(_of_batch(first, batch), rows, key.transpose(1, 2), beta=is_biased, alpha=scale)
    else:
        first = first.transpose(2, 3) if is_biased else first
        transposed = torch.baddbmm(_of_batch(first, batch), key, rows.transpose(1, 2), beta=is_biased, alpha=scale)
        scores = transposed.transpose(1, 2)
    # in this shape, those who watch attention see it
    attention = softmax(scores.view(*batch, *scores.shape[1:]), dim=-1)
    return torch.bmm(attention.flatten(0, 1), value).view(*batch, rows.shape[1], -1)


def _causal_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of texts to themselves, `[B, T, H * G * K]`, in products as those of `_products`: over some
    hundred tokens they take about half the time of torch's fused kernel. Each block of tokens has its own."""
    (batch, tokens, _, size), heads = query.shape, key.shape[1]
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    grouped = query.reshape(batch, tokens, heads, -1, size).permute(0, 2, 3, 1, 4)  # [B, H, G, T, K]
    groups, mixed = grouped.shape[2], []
    later = query.new_full((min(tokens, CAUSAL_BLOCK),) * 2, -math.inf).triu(1)
    for start in range(0, tokens, CAUSAL_BLOCK):
        end = min(start + CAUSAL_BLOCK, tokens)
        length = end - start
        bias = pad(later[:length, :length], (start, 0)).repeat(groups, 1)
        rows = grouped[:, :, :, start:end].reshape(batch * heads, groups * length, size)
        scores = torch.baddbmm(bias, rows, keys[:, :end].transpose(1, 2), alpha=scale)
        mixed.append(torch.bmm(softmax(scores, dim=-1), values[:, :end]).view(batch, heads, groups, length, size))
    return torch.cat(mixed, dim=3).permute(0, 3, 1, 2, 4).reshape(batch, tokens, -1)


def _of_batch(bias: torch.Tensor, batch: Sequence[int]) -> torch.Tensor:
    """What is added to scores of a batch, in its shape `[B * H, R, C]` or one that is broadcast to it."""
    if bias.dim() < 4:
        return bias
    return bias[0] if len(bias) == 1 else bias.expand(*batch, -1, -1).flatten(0, 1)


class Frame(NamedTuple):
    """What all layers of one forward share."""

    rotary: Rotary
    mask: AttentionMask


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


class Products:
    """How products of few rows with the weights of one model are computed.

    Args:
        layout: of products with weights that are not packed.
        packs: whether weights are packed.
    """

    def __init__(self, layout: GemmLayout, packs: bool) -> None:
        self.layout, self.packs = layout, packs
        self.packed: list[Packed] = []

    def pack(self, weights: Sequence[torch.Tensor]) -> Packed | None:
        if not self.packs:
            return None
        packed = Packed(weights)
        self.packed.append(packed)  # several threads do: the last one may be another's
        return packed


class Projection(NamedTuple):
    """One or several linear layers over one input, whose outputs stand one behind the other.

    Args:
        weights, biases: of each layer, its own.
        packed: all weights together, where they are packed.
        sizes: numbers of each output.
        has_bias: whether any layer adds one.
    """

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor | None, ...]
    layout: GemmLayout
    packed: Packed | None
    sizes: list[int]
    has_bias: bool

    @classmethod
    def of(cls, modules: Sequence[Any], products: Products) -> "Projection":
        for module in modules:
            if type(module) is not nn.Linear:
                raise ValueError(f"{type(module).__name__} is no plain linear layer")
        weights = tuple(module.weight for module in modules)
        biases = tuple(module.bias for module in modules)
        has_bias = any(bias is not None for bias in biases)
        return cls(weights, biases, products.layout, products.pack(weights), list(map(len, weights)), has_bias)

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The output of each layer."""
        if self.packed is None or x.shape[:-1].numel() > self.packed.most_rows:
            pairs = zip(self.weights, self.biases, strict=True)
            return tuple(self.layout(x, weight, bias) for weight, bias in pairs)
        products = self.packed(x)
        if len(self.weights) == 1:
            outputs: tuple[torch.Tensor, ...] = (products,)
        else:
            # not Tensor.split, whose Python takes longer than the split
            outputs = torch.split_with_sizes(products, self.sizes, -1)
        if not self.has_bias:
            return outputs
        return tuple(y if bias is None else y + bias for y, bias in zip(outputs, self.biases, strict=True))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The output of the only layer."""
        (y,) = self.parts(x)
        return y

    def is_joined(self, x: torch.Tensor) -> bool:
        """Whether one product gives the outputs of all layers over `x`."""
        return self.packed is not None and not self.has_bias and x.shape[:-1].numel() <= self.packed.most_rows

    def joined(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs of all layers one behind the other, where `is_joined`."""
        assert self.packed is not None, "nothing is joined"
        return self.packed(x)

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The output of the only layer, added to `residual`."""
        if self.packed is None or not self.is_joined(x):
            return residual + self(x)
        return self.packed.plus(x, residual)


class Layer(NamedTuple):
    """What one decoder layer computes with."""

    before_attention: Norm
    inputs: Projection
    norms: tuple[Norm, Norm] | None
    head_dim: int
    groups: int
    scale: float
    out: Projection
    before_mlp: Norm
    gate_up: Projection
    down: Projection
    activation: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def of(cls, layer: Any, products: Products) -> "Layer":
        attention, mlp = layer.self_attn, layer.mlp
        expect(layer, {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
        expect(attention, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"})
        expect(mlp, {"gate_proj", "up_proj", "down_proj", "act_fn"})
        has_norms = hasattr(attention, "q_norm") and hasattr(attention, "k_norm")
        return cls(
            Norm.of(layer.input_layernorm),
            Projection.of([attention.q_proj, attention.k_proj, attention.v_proj], products),
            (Norm.of(attention.q_norm), Norm.of(attention.k_norm)) if has_norms else None,
            attention.head_dim,
            len(attention.q_proj.weight) // len(attention.k_proj.weight),
            attention.scaling,
            Projection.of([attention.o_proj], products),
            Norm.of(layer.post_attention_layernorm),
            Projection.of([mlp.gate_proj, mlp.up_proj], products),
            Projection.of([mlp.down_proj], products),
            silu if isinstance(mlp.act_fn, SILU) else mlp.act_fn,
        )

    def project(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries `[B, T, H * G, K]`, keys and values `[B, T, H, K]`, not yet rotated."""
        shape = (*x_BTD.shape[:2], -1, self.head_dim)
        query, key, value = (part.view(shape) for part in self.inputs.parts(self.before_attention(x_BTD)))
        if self.norms is not None:
            query, key = self.norms[0](query), self.norms[1](key)
        return query, key, value

    def attend(
        self, x_BTD: torch.Tensor, rotary: Rotary, frame: Frame, cache: Cache | None, number: int
    ) -> torch.Tensor:
        """What the output projection of attention is given, for as many of the last tokens as `frame` is for; keys and
        values of all tokens are left in the cache, as those of layer `number`, rotated by `rotary`."""
        query, key, value = self.rotated(x_BTD, rotary, frame.rotary)
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, number)
        return frame.mask.attend(query, key, value, self.scale)

    def rotated(
        self, x_BTD: torch.Tensor, rotary: Rotary, last: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `project`, but queries are of the last tokens only, as many as `last` is for, and queries and keys are
        rotated: together, if one product made them, as a call takes longer than a few numbers."""
        if self.norms is not None or last is not rotary or not self.inputs.is_joined(x_BTD):
            query, key, value = self.project(x_BTD)
            return last(query[:, -last.cos.shape[1] :]), rotary(key), value
        heads = self.inputs.joined(self.before_attention(x_BTD)).view(*x_BTD.shape[:2], -1, self.head_dim)
        values = self.inputs.sizes[2] // self.head_dim
        both, value = torch.split_with_sizes(heads, [heads.shape[2] - values, values], 2)
        query, key = torch.split_with_sizes(rotary(both), [both.shape[2] - values, values], 2)
        return query, key, value

    def gated(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """What the last projection of the MLP is given."""
        gate, up = self.gate_up.parts(self.before_mlp(x_BTD))
        return self.activation(gate).mul_(up)


def expect(module: nn.Module, children: Set[str], optional: Set[str] = frozenset()) -> None:
    """Refuse a module that is made of anything else."""
    found = {name for name, _ in module.named_children()}
    if not children <= found <= children | optional:
        differing = ", ".join(sorted(children ^ found))
        raise ValueError(f"{type(module).__name__} is built otherwise than Llama's: {differing}")
