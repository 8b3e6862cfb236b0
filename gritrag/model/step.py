"""Step: one forward of a Llama-like decoder over placed states: its own weights, and nothing around them.

A forward of transformers builds masks, repeats keys for every query head and runs some thirty modules per layer. For a
few tokens behind a long context that costs as much as the arithmetic. `Step` reads the placed keys where they lie, the
query heads that share a key head become rows of one product, and so do projections of one input.

In fewer bits than float32 a token is rounded otherwise in one product than in another of other shape. So `next_logits`
has one shape whatever it is given: rows are padded, and how many columns they see follows from where the text stands.
Then a token comes out the same whether it was guessed or read alone.

What it covers is told by the tree of modules, not by the name of a model, and is proved by a probe at load.

Shape letters: `B` batch, `T` tokens, `V` vocabulary, `D` hidden, `H` key/value heads, `G` query heads per key head,
`K` head dim, `C` columns of the cache, `R` rows of a product (query heads of one key head, and tokens).
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.functional import embedding, pad, rms_norm, scaled_dot_product_attention, softmax
from transformers import Cache, PreTrainedModel

from gritrag.model.attention import decoder_stack
from gritrag.model.context import added, additive
from gritrag.model.gemm_layout import GemmLayout
from gritrag.model.packed import Packed, is_packable
from gritrag.model.state import PlacedCache

GROUPED_ROWS = 256
"""Up to so many rows per key head, query heads are grouped; a long prompt is better left to the causal kernel."""

MEASURED_LAYERS = 4
"""The GEMM layout is measured on the weights of so many layers."""

MOST_TOKENS = 11
"""Tokens of one step of decoding in float32, where guesses change no token though shapes differ."""

STEP_TOKENS = 4
"""Tokens of one step of decoding, guesses or padding. On an EPYC of 2 cores over 2,000 cached tokens, so many take as
long as one."""

COLUMN_BLOCK = 64
"""A step sees all columns up to the end of the next block but one; no step reaches over the end of its own block."""

SPARE_COLUMNS = 2 * COLUMN_BLOCK
"""How many more columns than tokens a cache needs for that."""


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

    @property
    def guesses_freely(self) -> bool:
        """Whether tokens that are guessed come out as those that are read one by one."""

    def most_tokens(self, cache: Cache) -> int:
        """How many tokens of one text `next_logits` may be given now."""

    def next_logits(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, is_real: torch.Tensor | None, cache: Cache
    ) -> torch.Tensor:
        """As `logits`, for a few tokens that were just chosen or guessed: float32 `[B, T, V]`."""


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

    @property
    def guesses_freely(self) -> bool:
        return self._lm.dtype == torch.float32

    def most_tokens(self, cache: Cache) -> int:
        return MOST_TOKENS

    def next_logits(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, is_real: torch.Tensor | None, cache: Cache
    ) -> torch.Tensor:
        return self.logits(ids_BT, positions_BT, is_real, cache, ids_BT.shape[1])


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
        products = Products(GemmLayout(measured), is_packable(lm))
        self.layers = [Layer.of(layer, products) for layer in decoder.layers]
        self.norm = Norm.of(decoder.norm)
        self.head = Projection.of([lm.get_output_embeddings()], products)
        self.packed = products.packed
        self.dtype: torch.dtype = lm.dtype
        self.guesses_freely = True  # until the probe finds out
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
            packed.is_current for packed in self.packed
        )

    @property
    def has_fixed_shape(self) -> bool:
        """Whether all steps of decoding have one shape."""
        return self.dtype != torch.float32

    def logits(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        keep: int = 1,
    ) -> torch.Tensor:
        return self.words(self.hidden(ids_BT, positions_BT, mask, cache, keep))

    def most_tokens(self, cache: Cache) -> int:
        if not self.has_fixed_shape:
            return MOST_TOKENS
        return min(STEP_TOKENS, COLUMN_BLOCK - cache.get_seq_length() % COLUMN_BLOCK)

    def next_logits(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, is_real: torch.Tensor | None, cache: Cache
    ) -> torch.Tensor:
        rows, tokens = ids_BT.shape
        if not self.has_fixed_shape or rows > 1 or is_real is not None:
            return self.logits(ids_BT, positions_BT, is_real, cache, tokens)
        assert isinstance(cache, PlacedCache), "states are placed"
        assert tokens <= self.most_tokens(cache), "a step that does not fit"
        start = cache.length
        ids_BT = pad(ids_BT, (0, STEP_TOKENS - tokens))
        positions_BT = positions_BT[:, :1] + torch.arange(STEP_TOKENS, device=ids_BT.device)
        columns = (start // COLUMN_BLOCK + 1) * COLUMN_BLOCK + COLUMN_BLOCK
        mask = torch.ones(1, 1, STEP_TOKENS, columns, dtype=torch.bool, device=ids_BT.device).tril(start)
        with cache.showing(columns):
            found = self.logits(ids_BT, positions_BT, mask, cache, STEP_TOKENS)
        cache.cut(start + tokens)
        return found[:, :tokens]

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
        x_BTD = self.embed(ids_BT)
        end = self.end(ids_BT.shape[1], cache)
        whole = self.frame(positions_BT, mask, end, cache, x_BTD)
        kept = whole if keep == ids_BT.shape[1] else self.frame(positions_BT[:, -keep:], mask, end, cache, x_BTD)
        for number, layer in enumerate(self.layers):
            frame = kept if layer is self.layers[-1] else whole
            mixed = layer.attend(x_BTD, whole.rotary, frame, cache, number)
            x_BTD = layer.out.plus(mixed, x_BTD[:, -mixed.shape[1] :])
            x_BTD = layer.down.plus(layer.gated(x_BTD), x_BTD)
        return self.norm(x_BTD)

    def ragged(self, rows: Sequence[Row]) -> torch.Tensor:
        """Last hidden states `[S, D]` of the tokens that are kept, row behind row.

        All tokens of all rows go through projections together; each row attends to its own cache. So rows of any
        lengths, some that begin and some that go on, share the reading of the weights, and none is padded.
        """
        x_BTD = self.embed(torch.cat([row.ids for row in rows], dim=1))
        rotary = Rotary.of(*self._rotary(x_BTD, torch.cat([row.positions for row in rows], dim=1)))
        lengths, kept = [row.ids.shape[1] for row in rows], [row.keep for row in rows]
        parts = [slice(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)]
        ends = [self.end(length, row.cache) for row, length in zip(rows, lengths, strict=True)]

        def columns(tokens: list[int]) -> list[AttentionMask]:
            shapes, groups = zip(rows, tokens, ends, strict=True), self.layers[0].groups
            return [AttentionMask.of(row.mask, count, end, x_BTD, row.cache.bias, groups) for row, count, end in shapes]

        masks = columns(lengths)
        for number, layer in enumerate(self.layers):
            query, key, value = layer.project(x_BTD)
            query, key, value = rotary(query), rotary(key).transpose(1, 2), value.transpose(1, 2)
            pairs = [row.cache.update(key[:, :, p], value[:, :, p], number) for row, p in zip(rows, parts, strict=True)]
            if layer is self.layers[-1] and kept != lengths:
                masks = columns(kept)
                parts = [slice(part.stop - keep, part.stop) for part, keep in zip(parts, kept, strict=True)]
                x_BTD = torch.cat([x_BTD[:, part] for part in parts], dim=1)
            mixed = [
                mask.attend(query[:, part], *pair, layer.scale)
                for mask, part, pair in zip(masks, parts, pairs, strict=True)
                if part.stop > part.start
            ]
            if not mixed:
                break
            x_BTD = layer.out.plus(torch.cat(mixed, dim=1), x_BTD)
            x_BTD = layer.down.plus(layer.gated(x_BTD), x_BTD)
        return self.norm(x_BTD)[0]

    def words(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits `[..., V]` of last hidden states `[..., D]`."""
        return self.head(hidden).float()

    def embed(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """What the first layer is given, `[B, T, D]`."""
        return embedding(ids_BT, self._table)

    @staticmethod
    def end(tokens: int, cache: Cache | None) -> int:
        """Columns that are given to attention when so many tokens more are in the cache."""
        shown = cache.shown if isinstance(cache, PlacedCache) else 0
        return max(shown, tokens + (0 if cache is None else cache.get_seq_length()))

    def frame(
        self, positions_BT: torch.Tensor, mask: torch.Tensor | None, end: int, cache: Cache | None, like: torch.Tensor
    ) -> "Frame":
        """What layers share of one forward, for the tokens at these positions, the last ones of `end` columns."""
        cos_BTK, sin_BTK = self._rotary(like, positions_BT)
        groups = self.layers[0].groups
        seen = AttentionMask.of(mask, positions_BT.shape[1], end, like, bias_of(cache), groups)
        return Frame(Rotary.of(cos_BTK, sin_BTK), seen)


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
    """

    is_causal: bool
    bias: torch.Tensor | None = None
    grouped: torch.Tensor | None = None

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
        if self.is_causal or groups * tokens > GROUPED_ROWS:
            mixed = scaled_dot_product_attention(
                query.transpose(1, 2), key, value, self.bias, is_causal=self.is_causal, scale=scale, enable_gqa=True
            )
            return mixed.transpose(1, 2).reshape(rows, tokens, -1)
        grouped = query.unflatten(2, (heads, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [B, H, R, K]
        if query.dtype == torch.bfloat16 and query.device.type == "cpu":
            mixed = _products(grouped, key, value, self.grouped, scale)
        else:
            mixed = scaled_dot_product_attention(grouped, key, value, self.grouped, scale=scale)
        return mixed.view(rows, heads, groups, tokens, size).permute(0, 3, 1, 2, 4).reshape(rows, tokens, -1)


def _products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention `[B, H, R, K]` as two products, which oneDNN computes faster in bfloat16 than the fused kernel of torch
    does: 0.65 of its time over 2,000 columns. Scores are rounded once, with their bias, as in "eager" attention."""
    batch = query.shape[:2]
    if bias is None:
        first = query.new_zeros(())
    else:
        first = bias[0] if len(bias) == 1 else bias.expand(*batch, -1, -1).flatten(0, 1)
    key_t = key.flatten(0, 1).transpose(1, 2)
    scores = torch.baddbmm(first, query.flatten(0, 1), key_t, beta=int(bias is not None), alpha=scale)
    attention = softmax(scores.unflatten(0, batch), dim=-1)  # in this shape, those who watch attention see it
    return torch.bmm(attention.flatten(0, 1), value.flatten(0, 1)).unflatten(0, batch)


class Frame(NamedTuple):
    """What all layers of one forward share."""

    rotary: Rotary
    mask: AttentionMask

    @property
    def tokens(self) -> int:
        return self.rotary.cos.shape[1]


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
        self.packed.append(Packed(weights))
        return self.packed[-1]


class Projection(NamedTuple):
    """One or several linear layers over one input, whose outputs stand one behind the other.

    Args:
        weights, biases: of each layer, its own.
        packed: all weights together, where they are packed.
    """

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor | None, ...]
    layout: GemmLayout
    packed: Packed | None

    @classmethod
    def of(cls, modules: Sequence[Any], products: Products) -> "Projection":
        for module in modules:
            if type(module) is not nn.Linear:
                raise ValueError(f"{type(module).__name__} is no plain linear layer")
        weights = tuple(module.weight for module in modules)
        biases = tuple(module.bias for module in modules)
        return cls(weights, biases, products.layout, products.pack(weights))

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The output of each layer."""
        if self.packed is None or x.shape[:-1].numel() > self.packed.most_rows:
            pairs = zip(self.weights, self.biases, strict=True)
            return tuple(self.layout(x, weight, bias) for weight, bias in pairs)
        products = self.packed(x)
        if len(self.weights) == 1:
            outputs: tuple[torch.Tensor, ...] = (products,)
        else:
            outputs = products.split([len(weight) for weight in self.weights], -1)
        return tuple(y if bias is None else y + bias for y, bias in zip(outputs, self.biases, strict=True))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The output of the only layer."""
        (y,) = self.parts(x)
        return y

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The output of the only layer, added to `residual`."""
        if self.packed is None or self.biases[0] is not None or x.shape[:-1].numel() > self.packed.most_rows:
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
        _expect(layer, {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
        _expect(attention, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"})
        _expect(mlp, {"gate_proj", "up_proj", "down_proj", "act_fn"})
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
            mlp.act_fn,
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
        query, key, value = self.project(x_BTD)
        key, value = rotary(key).transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, number)
        query = frame.rotary(query[:, -frame.tokens :])
        return frame.mask.attend(query, key, value, self.scale)

    def gated(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """What the last projection of the MLP is given."""
        gate, up = self.gate_up.parts(self.before_mlp(x_BTD))
        return self.activation(gate).mul_(up)


def _expect(module: nn.Module, children: set[str], optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Refuse a module that is made of anything else."""
    found = {name for name, _ in module.named_children()}
    if not children <= found <= children | optional:
        differing = ", ".join(sorted(children ^ found))
        raise ValueError(f"{type(module).__name__} is built otherwise than Llama's: {differing}")
