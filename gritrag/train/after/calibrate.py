"""Calibration of the codec `transform` for one model: what its states look like, and what errors in them would cost.

An error `e` in a state changes the next token by a Kullback-Leibler divergence of about `e @ F @ e / 2`, where `F` is
the Fisher information: the mean outer product of gradients of the log-probability of a token that the model itself has
drawn. So documents are read again after states of themselves and of others, as a question is read after them, for the
gradients of these states (of keys as they are stored, before rotation). `F` has one scale in all layers, of keys and
of values; it is kept for each head by itself, and what it has between heads is left out (measured: with it no better).

Shape letters: `L` layers, `H` key/value heads, `T` tokens, `K` head dim, `A` tokens that are drawn, `V` vocabulary.
"""

import random
from collections.abc import Sequence
from itertools import takewhile

import torch

from gritrag.codecs.calibration import fit
from gritrag.codecs.transform import PARTS, RUN, Transform
from gritrag.model.grit import GritModel
from gritrag.model.state import DocumentState
from gritrag.progress import ProgressBar
from gritrag.records import Document
from gritrag.train.contexts import Contexts
from gritrag.train.data.steps import Prompted

BITS = 2.045
"""Of a number, on average: 2,945 bytes for a token of SmolLM2-135M."""

LAYERS = 1
"""Most that are packed together. Errors cost 20% less with two and 32% less with three, for the same bytes; but the
products of codes and bases, which are most of the time to load, take twice and three times as long."""

AGAIN = 112
"""Documents that are read again; spread evenly over all."""

OTHERS = 2
"""Further documents in every second context: states that what is read next is not about matter too, but less."""

REACH = 512
"""Positions that a context begins at, below."""


def calibrate(model: GritModel, documents: Sequence[str | Document], seed: int = 0) -> Transform:
    """Read documents, read some of them again after the states, and fit.

    Args:
        model: its keys can be moved.
        documents: such as will be indexed; ten thousand tokens or more.
        seed: of contexts, their positions, and the tokens that are drawn.

    Raises:
        ValueError: a model whose keys cannot be moved, or too little text.
    """
    if model.rotation is None:
        raise ValueError("keys of this model cannot be moved: what errors in them would cost is not known")
    states = [reading.state for reading in model.read_documents(documents, show_progress_bar=True)]
    columns = zip(*(state.token_ids[:RUN].tolist() for state in states), strict=False)
    common = len(list(takewhile(lambda ids: len(set(ids)) == 1, columns)))
    layers, heads, head_dim = model.decoder.shape[:3]
    tokens, least = sum(len(state) - common for state in states), 4 * LAYERS * heads * head_dim
    if tokens < least:
        raise ValueError(f"{tokens} tokens are too few to calibrate on; give at least {least}")
    moments = fisher(model, states, common, seed)
    start = torch.stack(
        [torch.stack([state.keys[:, :, :common], state.values[:, :, :common]]).float() for state in states]
    ).mean(0)
    numbers = [torch.cat([getattr(state, part)[:, :, common:].float() for state in states], dim=2) for part in PARTS]
    blocks = min(count for count in range(1, layers + 1) if layers % count == 0 and layers // count <= LAYERS)
    keys, values = fit(numbers, moments, int(BITS * 2 * layers * heads * head_dim / 8), blocks)
    return Transform(keys, values, start)


def fisher(model: GritModel, states: Sequence[DocumentState], common: int, seed: int) -> list[torch.Tensor]:
    """Fisher information `[L, H, K, K]` about keys, and about values, of a token in a context.

    It sums up all tokens that are read after the context, and is the mean over tokens of the context.

    Args:
        states: of which those are read again that are at most half as long as what the model can read.
        common: tokens that all of them begin with, whose gradients are not wanted.
        seed: see `calibrate`.

    Raises:
        ValueError: none can be read again.
    """
    readable = [state for state in states if max(1, common) < len(state) <= model.context_length // 2]
    if not readable:
        raise ValueError(
            f"no document can be read again after itself; give some of {max(1, common) + 1} to "
            f"{model.context_length // 2} tokens"
        )
    draw, labels = random.Random(seed), torch.Generator().manual_seed(seed)
    sums, tokens = [torch.zeros(()) for _ in PARTS], 0
    again = readable[:: -(-len(readable) // AGAIN)]
    for number, state in enumerate(ProgressBar(again, desc="reading again", unit="document")):
        others = draw.sample(readable, min(OTHERS, len(readable))) if number % 2 else []
        while sum(map(len, [state, state, *others])) > model.context_length:
            others.pop()
        context = draw.sample([state, *others], 1 + len(others))
        room = model.context_length - len(state) - sum(map(len, context))
        gradients = _gradients(model, context, state.token_ids.tolist(), draw.randint(0, min(REACH, room)), labels)
        for part, of_states in enumerate(gradients):
            for gradient_LHTK in of_states:
                own_LHTK = gradient_LHTK[:, :, common:].float().cpu()
                sums[part] = sums[part] + own_LHTK.mT @ own_LHTK
        tokens += sum(len(each) - common for each in context)
    return [total / tokens for total in sums]


def _gradients(
    model: GritModel, context: Sequence[DocumentState], ids: list[int], start: int, labels: torch.Generator
) -> list[tuple[torch.Tensor, ...]]:
    """Of the log-probabilities of tokens that the model draws along `ids`: `[L, H, T, K]` for the keys of each state of
    the context, which begins at position `start`, and for their values."""
    device = model.lm.device
    leaves = [
        state.with_tensors(*(t.to(device).detach().clone().requires_grad_() for t in (state.keys, state.values)))
        for state in context
    ]
    with torch.enable_grad():
        answer = Prompted(ids[:1], ids[1:], tuple(range(len(context))), start)
        logits_AV, _ = Contexts(model).placed(leaves, [answer])
        logs_AV = logits_AV.float().log_softmax(-1)
        drawn_A = torch.multinomial(logs_AV.detach().exp().cpu(), 1, generator=labels).to(device)
        chosen = logs_AV.gather(1, drawn_A).sum()
    found = torch.autograd.grad(chosen, [*(leaf.keys for leaf in leaves), *(leaf.values for leaf in leaves)])
    return [found[: len(context)], found[len(context) :]]
