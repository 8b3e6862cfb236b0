"""Calibration of the codec `transform` for one model: what its states look like, and where its queries look.

Shape letters: `L` layers, `H` key/value heads, `S` heads of queries, `T` tokens, `K` head dim.
"""

import random
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from gritrag.model.grit import GritModel
from gritrag.quantisers.calibration import fit
from gritrag.quantisers.transform import PARTS, RUN, Transform
from gritrag.records import Document

BITS = (1.95, 2.15)
"""Of a number in keys and in values, on average: 2,950 bytes for a token of SmolLM2-135M."""

LAYERS = 3
"""Most that are packed together."""

LOOKED = 48
"""Documents that queries are looked at in; spread evenly over all."""

REACH = 2048
"""Tokens that a query is away from a key, at most."""


class Queries(TorchFunctionMode):
    """Within it, the rotated queries `[B, S, T, K]` of every attention are kept, layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            self.seen.append((args or tuple((kwargs or {}).values()))[0])
        return func(*args, **(kwargs or {}))


def calibrate(model: GritModel, documents: Sequence[str | Document], seed: int = 0) -> Transform:
    """Read documents, look where queries look, and fit.

    Args:
        model: its keys can be moved, and it attends through `scaled_dot_product_attention`.
        documents: such as will be indexed; ten thousand tokens or more.
        seed: of how far queries are away.

    Raises:
        ValueError: a model that this does not work for, or too little text.
    """
    states = [reading.state for reading in model.read_documents(documents, show_progress_bar=True)]
    columns = zip(*(state.token_ids[:RUN].tolist() for state in states), strict=False)
    common = len(list(takewhile(lambda ids: len(set(ids)) == 1, columns)))
    start = torch.stack(
        [torch.stack([state.keys[:, :, :common], state.values[:, :, :common]]).float() for state in states]
    ).mean(0)
    keys, values = (
        torch.cat([getattr(state, part)[:, :, common:].float() for state in states], dim=2) for part in PARTS
    )
    layers, heads, tokens, head_dim = keys.shape
    least = 4 * LAYERS * heads * head_dim
    if tokens < least:
        raise ValueError(f"{tokens} tokens are too few to calibrate on; give at least {least}")
    blocks = min(count for count in range(1, layers + 1) if layers % count == 0 and layers // count <= LAYERS)
    for_keys, for_values = (int(bits * (layers // blocks) * heads * head_dim / 8) for bits in BITS)
    moments = query_moments(model, documents[:: -(-len(documents) // LOOKED)], seed)
    return Transform(fit(keys, moments, for_keys, blocks), fit(values, None, for_values, blocks), start)


def query_moments(model: GritModel, documents: Sequence[str | Document], seed: int) -> torch.Tensor:
    """Mean outer products `[L, H, K, K]` of queries as un-rotated keys meet them, at random distances.

    The product of a rotated query at position p and a rotated key at t is that of the un-rotated key with the query
    turned back by t.

    Raises:
        ValueError: queries cannot be seen.
    """
    shape, rotation, draw = model.shape, model.rotation, random.Random(seed)
    if rotation is None:
        raise ValueError("keys of this model cannot be moved: how queries meet them is not known")
    moments = torch.zeros(shape.layers, shape.heads, shape.head_dim, shape.head_dim)
    for document in tqdm(documents, desc="looking", unit="document"):
        ids = torch.tensor([model.document_token_ids(document)], device=model.lm.device)
        with torch.inference_mode(), Queries() as queries:
            model.lm(input_ids=ids, use_cache=False, logits_to_keep=1)
        if len(queries.seen) != shape.layers:
            raise ValueError("this model does not attend through scaled_dot_product_attention; load it with sdpa")
        seen_LSTK = torch.stack([query[0].float() for query in queries.seen])
        distance = draw.sample(range(REACH), 1)[0]
        positions = torch.arange(ids.shape[1], device=ids.device) - distance
        turned = rotation.undo(seen_LSTK, positions).cpu()
        per_head = turned.unflatten(1, (shape.heads, -1)).flatten(2, 3)
        moments += per_head.mT @ per_head / per_head.shape[2]
    return moments / len(documents)
