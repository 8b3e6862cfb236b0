"""Step: one forward of a Llama-like decoder over placed states: its own weights, and nothing around them.

A forward of transformers builds masks, repeats keys for every query head and runs some thirty modules per layer. For a
few tokens behind a long context that costs as much as the arithmetic. `Step` reads the placed keys where they lie; what
each of its layers computes stands in `gritrag.model.layers`.

In fewer bits than float32 a token is rounded otherwise in one product than in another of other shape. So `next_logits`
has one shape whatever it is given: rows are padded, and how many columns they see follows from where the text stands.
Then a token comes out the same whether it was guessed or read alone.

What it covers is told by the tree of modules, not by the name of a model, and is proved by a probe at load.

Shape letters: `B` batch, `T` tokens, `S` tokens that are kept, `V` vocabulary, `D` hidden.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, pad
from transformers import Cache, PreTrainedModel

from gritrag.model.attention import decoder_stack
from gritrag.model.caches import PlacedCache
from gritrag.model.gemm_layout import GemmLayout
from gritrag.model.layers import (
    GROUPED_ROWS,
    AttentionMask,
    Frame,
    Layer,
    Norm,
    Products,
    Projection,
    Rotary,
    expect,
    needs_dense,
)
from gritrag.model.module_forward import MOST_TOKENS, bias_of, log_probabilities_of, watched_of
from gritrag.model.packed import at_once, is_packable
from gritrag.model.turning import turning_point

MEASURED_LAYERS = 4
"""The GEMM layout is measured on the weights of so many layers."""

STEP_TOKENS = 4
"""Tokens of one step of decoding, guesses or padding. On an EPYC of 2 cores over 2,000 cached tokens, so many take as
long as one."""

COLUMN_BLOCK = 64
"""A step sees all columns up to the end of the next block but one; no step reaches over the end of its own block."""

SPARE_COLUMNS = 2 * COLUMN_BLOCK
"""How many more columns than tokens a cache needs for that."""


READ_BLOCK = 16
"""Prompts of many tokens are padded to a multiple of so many. For every number of rows oneDNN makes kernels of its own
and keeps them: 300 MB after 150 batches, of which no two had one shape."""

MANY_TOKENS = 256

SCORED_TOKENS = 64
"""The logits of so many tokens are there at a time where only the probability of one word each is wanted."""


LEFT_BY = "transformers.utils.output_capturing"
"""Where the hooks are defined that transformers leaves in a model that was once asked for its attention or its hidden
states. They do nothing but in a forward of transformers that is asked for them again."""


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
        if turning_point(lm) is not None:
            raise ValueError("its angles depend on the length of the text")
        expect(decoder, {"embed_tokens", "layers", "norm", "rotary_emb"})
        if any(_has_hooks(module) for module in lm.modules()):
            raise ValueError("it has hooks, which must be called")
        self._table = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        measured = [module.weight for module in decoder.layers[:MEASURED_LAYERS].modules() if type(module) is nn.Linear]
        products = Products(GemmLayout(measured), is_packable(lm))
        with at_once(lm.dtype) as threads:
            head = threads.submit(Projection.of, [lm.get_output_embeddings()], products)
            self.layers = list(threads.map(lambda layer: Layer.of(layer, products), decoder.layers))
            self.head = head.result()
        self.norm = Norm.of(decoder.norm)
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

    def _sees_all(self, cache: Cache) -> bool:
        """Whether attention is given all columns of a cache, for what is not dense would be copied."""
        return isinstance(cache, PlacedCache) and needs_dense(self._table) and cache.buffers[0].shape[1] == 1

    @staticmethod
    def _over_all(mask: torch.Tensor | None, tokens: int, cache: PlacedCache) -> torch.Tensor:
        """The mask of one row, over all columns of its cache: `[1, 1, T, C]`."""
        start, end = cache.length, cache.length + tokens
        seen = torch.ones(1, 1, tokens, end, dtype=torch.bool, device=cache.buffers[0].device).tril(start)
        if mask is not None:
            seen = mask if mask.dim() == 4 else seen & mask[:, None, None]
        return pad(seen, (0, cache.capacity - end))

    def logits(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        keep: int = 1,
    ) -> torch.Tensor:
        tokens = ids_BT.shape[1]
        is_first = mask is None and cache.get_seq_length() == 0
        if is_first or not self._sees_all(cache) or tokens * self.layers[0].groups > GROUPED_ROWS:
            return self.words(self.hidden(ids_BT, positions_BT, mask, cache, keep))
        assert isinstance(cache, PlacedCache), "which is what sees all"
        with cache.showing(cache.capacity):
            return self.words(self.hidden(ids_BT, positions_BT, self._over_all(mask, tokens, cache), cache, keep))

    def log_probabilities(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        targets_BS: torch.Tensor,
    ) -> torch.Tensor:
        hidden_BSD = self.hidden(ids_BT, positions_BT, mask, cache, targets_BS.shape[1])
        # the logits of all tokens at once would be read from memory again and again
        parts = zip(
            hidden_BSD.flatten(0, 1).split(SCORED_TOKENS), targets_BS.flatten().split(SCORED_TOKENS), strict=True
        )
        return torch.cat([log_probabilities_of(self.words(h), t) for h, t in parts]).view(targets_BS.shape)

    def most_tokens(self, cache: Cache) -> int:
        if not self.has_fixed_shape:
            return MOST_TOKENS
        if self._sees_all(cache):
            return STEP_TOKENS
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
        columns = cache.capacity if self._sees_all(cache) else (start // COLUMN_BLOCK + 2) * COLUMN_BLOCK
        mask = torch.ones(1, 1, STEP_TOKENS, columns, dtype=torch.bool, device=ids_BT.device).tril(start)
        with cache.showing(columns):
            found = self.words(self.hidden(ids_BT, positions_BT, mask, cache, STEP_TOKENS))
        cache.cut(start + tokens)
        return found[:, :tokens]

    def read(self, ids_BT: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Last hidden states `[B, T, D]` of prompts from position 0, padded on the right, read causally."""
        rows, tokens = ids_BT.shape
        if self.dtype == torch.bfloat16 and ids_BT.device.type == "cpu" and rows * tokens >= MANY_TOKENS:
            ids_BT = pad(ids_BT, (0, -tokens % READ_BLOCK))
        width = ids_BT.shape[1]
        positions_BT = torch.arange(width, device=ids_BT.device).expand(rows, -1)
        return self.hidden(ids_BT, positions_BT, None, cache, width)[:, :tokens]

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
        watched = watched_of(cache)
        for number, layer in enumerate(self.layers):
            if watched is not None:
                watched.see(number, x_BTD)
            frame = kept if layer is self.layers[-1] else whole
            mixed = layer.attend(x_BTD, whole.rotary, frame, cache, number)
            x_BTD = layer.out.plus(mixed, x_BTD[:, -mixed.shape[1] :])
            x_BTD = layer.down.plus(layer.gated(x_BTD), x_BTD)
        return self.norm(x_BTD)

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
    ) -> Frame:
        """What layers share of one forward, for the tokens at these positions, the last ones of `end` columns."""
        groups = self.layers[0].groups
        seen = AttentionMask.of(mask, positions_BT.shape[1], end, like, bias_of(cache), groups)
        seen = seen._replace(in_blocks=not isinstance(cache, PlacedCache))  # else tokens may follow
        return Frame(self.rotary(like, positions_BT), seen)

    def rotary(self, like: torch.Tensor, positions_BT: torch.Tensor) -> Rotary:
        """Of tokens at these positions."""
        return Rotary.of(*self._rotary(like, positions_BT))


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to be called."""
    called = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(getattr(hook, "__module__", "") != LEFT_BY for hook in called)
