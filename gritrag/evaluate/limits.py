"""What this machine allows: ceilings measured in the same run, and the first token that they would give.

`ceilings` measures; the other functions are arithmetic over its figures and those of the grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from gritrag.corpus import questions
from gritrag.evaluate.first_token import documents_of
from gritrag.evaluate.process import drop_from_page_cache, files_below
from gritrag.index.index import Index
from gritrag.model.attention import decoder_stack
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar

LONG = 512
"""Tokens of a forward that is as good as any: longer ones reach no more FLOP/s."""

MEMORY_BYTES = 1 << 28
REPETITIONS = 5
DOCUMENTS, TOKENS = 24, 250


def ceilings(model: GritModel, codec: str, scratch: Path) -> dict[str, Any]:
    """FLOP/s, memory and file bandwidth: each the best of a few, as a ceiling is; and what a token costs this model.

    Returns:
        ``matmul_flops``: FLOP/s of the model's own matrices, by the number of tokens they are applied to.
        ``flop_per_token``: of these matrices; ``flop_per_pair``: of attention, for each token and each one it sees.
        ``weight_bytes``: that a forward reads. ``memory_bytes_per_second``: reading.
        ``file_bytes_per_second``: of state files, ``warm`` and ``cold``.
    """
    config = model.lm.config.get_text_config()
    shape = model.decoder.shape
    embedding = model.lm.get_input_embeddings()
    weights = [p for p in decoder_stack(model.lm).parameters() if p.dim() == 2 and p is not embedding.weight]
    head = model.lm.get_output_embeddings().weight
    asked = sorted(len(model.prompts.question_ids(each.question, has_documents=True)) for each in questions())
    lengths = (asked[len(asked) // 2], LONG)
    query_heads = int(getattr(config, "num_attention_heads", shape.heads))
    measured = ProgressBar(lengths, desc="ceilings")
    return {
        "matmul_flops": {str(tokens): _matmul_flops(weights, tokens) for tokens in measured},
        "flop_per_token": 2 * sum(weight.numel() for weight in weights),
        "flop_per_pair": 4 * shape.layers * query_heads * shape.head_dim,
        "weight_bytes": sum(weight.nbytes for weight in weights) + head.nbytes,
        "memory_bytes_per_second": _memory_bandwidth(model.lm.device),
        "file_bytes_per_second": _file_bandwidth(model, codec, scratch),
    }


def _matmul_flops(weights: Sequence[torch.Tensor], tokens: int) -> float:
    inputs = {width: torch.randn(tokens, width).to(weights[0]) for width in {weight.shape[1] for weight in weights}}

    def work() -> None:
        with torch.inference_mode():
            for weight in weights:
                nn.functional.linear(inputs[weight.shape[1]], weight)

    return 2 * tokens * sum(weight.numel() for weight in weights) / _best(work, weights[0].device)


def _memory_bandwidth(device: torch.device) -> float:
    numbers = torch.ones(MEMORY_BYTES // 4, device=device)
    return numbers.nbytes / _best(numbers.sum, device)


def _file_bandwidth(model: GritModel, codec: str, scratch: Path) -> dict[str, float]:
    """Of state files as an index has them, read one after another."""
    with Index.create(scratch, model=model, states=codec) as index:
        index.add(documents_of(model, TOKENS, DOCUMENTS, seed=0))
    files = files_below(scratch / "states")
    size = sum(file.stat().st_size for file in files)
    buffer = bytearray(max(file.stat().st_size for file in files))

    def read() -> None:
        for file in files:
            with file.open("rb", buffering=0) as stream:
                stream.readinto(buffer)

    cold = []
    for _ in range(REPETITIONS):
        drop_from_page_cache(files)
        start = perf_counter()
        read()
        cold.append(perf_counter() - start)
    return {"warm": size / _best(read, torch.device("cpu")), "cold": size / min(cold)}


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few runs."""
    seconds = []
    for _ in range(1 + REPETITIONS):
        start = perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - start)
    return min(seconds[1:])


@dataclass(frozen=True)
class Limits:
    """Floors of one cell that answers from states, in seconds, and the greatest speed-up (anchors: n document tokens
    that are reused, q tokens that are read, f FLOP and b state bytes per token, C FLOP/s, W bytes/s).

    Args:
        compute: q tokens at the FLOP/s of a long forward, attention to all n included.
        weights: every weight read once from memory.
        load: the states read once from warm files.
        speedup: min((n + q) / q, f W / (b C)), the speed-up of the first token that reuse can give at most.
    """

    compute: float
    weights: float
    load: float
    speedup: float

    @property
    def forward(self) -> float:
        """No forward over the question is sooner."""
        return max(self.compute, self.weights)

    @classmethod
    def of(cls, ceilings: Mapping[str, Any], cached: float, fresh: float, state_bytes: float) -> "Limits":
        """For `cached` tokens whose states are `state_bytes` in all, and `fresh` ones that are read."""
        flops = ceilings["matmul_flops"][str(LONG)]
        bandwidth = ceilings["file_bytes_per_second"]["warm"]
        pair = ceilings["flop_per_pair"]
        # a token sees what is cached and, on average, half of those that are read with it
        compute = fresh * (ceilings["flop_per_token"] + pair * (cached + fresh / 2)) / flops
        per_cached = ceilings["flop_per_token"] + pair * cached / 2
        return cls(
            compute,
            ceilings["weight_bytes"] / ceilings["memory_bytes_per_second"],
            state_bytes / bandwidth,
            min((cached + fresh) / fresh, per_cached * bandwidth / (state_bytes / cached * flops)),
        )
