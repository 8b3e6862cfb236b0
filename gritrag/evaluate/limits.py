"""What this machine allows: ceilings measured in the same run, and the first token that they would give.

`ceilings` measures; the other functions are arithmetic over its figures and those of the grid.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from gritrag.corpus import questions
from gritrag.evaluate.machine import drop_from_page_cache, files_below
from gritrag.evaluate.report import Section, Table, ms
from gritrag.evaluate.speed import BARE, BASELINE, Grid, context, from_hits
from gritrag.evaluate.statistics import Spread
from gritrag.evaluate.suite import Row
from gritrag.evaluate.workload import documents_of
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


def section(grid: Grid, indexes: Sequence[Row], ceilings: Row) -> Section:
    file = ceilings["file_bytes_per_second"]
    told = [
        [f"matrices over {tokens} tokens, GFLOP/s", f"{flops / 1e9:.1f}"]
        for tokens, flops in ceilings["matmul_flops"].items()
    ]
    told += [
        ["memory, GB/s read", f"{ceilings['memory_bytes_per_second'] / 1e9:.1f}"],
        ["state files, warm, GB/s", f"{file['warm'] / 1e9:.2f}"],
        ["state files, cold, GB/s", f"{file['cold'] / 1e9:.2f}"],
        ["weights read by a forward, MB", f"{ceilings['weight_bytes'] / 1e6:.3g}"],
        ["MFLOP per token, attention not counted", f"{ceilings['flop_per_token'] / 1e6:.3g}"],
    ]
    per_token = {
        (row["cell"]["tokens"], row["cell"]["codec"]): row["bytes"]["states"] / sum(row["tokens_read"])
        for row in indexes
    }
    same = "Dropping files from the page cache had no effect here: cold figures are warm ones."
    return Section(
        "Limits",
        f"Ceilings of this machine, measured in this run: each is the best of a few. The forward's floor is the "
        f"greater of its arithmetic at the FLOP/s of {LONG} tokens and of reading every weight once; the load's floor "
        f"reads the states once. A bare forward over the question alone took turns with the modes; it is shown "
        f"beside those that read the same tokens. The most that reuse can give is min((n + q) / q, f W / (b C)) for n "
        f"reused and q read tokens, f FLOP and b bytes of state per token, C FLOP/s and W bytes/s of warm files. "
        f"{same if file['cold'] > 0.8 * file['warm'] else ''}",
        (),
        [Table(["ceiling", "measured"], told), _distances(grid, per_token, ceilings)],
    )


def _distances(grid: Grid, bytes_per_token: Mapping[tuple[int, str], float], ceilings: Row) -> Table:
    rows = []
    for row in grid.rows:
        cell, bare, base = row["cell"], grid.beside(row, BARE), grid.beside(row, BASELINE)
        per_token = bytes_per_token.get((cell["tokens"], cell["codec"]))
        if cell["cache"] != "warm" or bare is None or per_token is None:
            continue
        cached = Spread.of([each["cached_tokens"] for each in row["rounds"]]).median
        fresh = Spread.of([each["prompt_tokens"] - each["cached_tokens"] for each in row["rounds"]]).median
        limits = Limits.of(ceilings, cached, fresh, per_token * cached)
        same = [a["prompt_tokens"] - a["cached_tokens"] == b["prompt_tokens"] for a, b in _pairs(row, bare)]
        beside = [
            ms([each["first_token"] for each in bare["rounds"]]),
            Spread.of([each["first_token"] / limits.forward for each in bare["rounds"]]).show(".2f"),
            Spread.of([from_hits(a) / b["first_token"] for a, b in _pairs(row, bare)]).show(".2f"),
        ]
        sooner = [from_hits(a) / from_hits(b) for a, b in _pairs(base, row)] if base else []
        rows.append(
            [
                *(context(cell), cell["mode"], cell["codec"], f"{cached:.0f} + {fresh:.0f}"),
                *(f"{1e3 * seconds:.1f}" for seconds in (limits.compute, limits.weights, limits.load)),
                ms([from_hits(each) for each in row["rounds"]]),
                *(beside if all(same) else ["-"] * len(beside)),
                Spread.of(sooner).show(".1f") if sooner else "-",
                f"{limits.speedup:.0f}",
            ]
        )
    columns = ["documents x tokens", "mode", "codec", "tokens reused + read"]
    columns += [f"floor: {part}, ms" for part in ("arithmetic", "weights", "load")]
    columns += ["from hits, ms", "bare forward, ms", "bare over its floor", "from hits over bare"]
    return Table([*columns, "times sooner, from hits", "at most"], rows)


def _pairs(a: Row, b: Row) -> Iterator[tuple[Any, Any]]:
    """Samples of the same rounds."""
    return zip(a["rounds"], b["rounds"], strict=True)
