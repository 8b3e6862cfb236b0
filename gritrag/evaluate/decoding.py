"""Tokens per second of decoding, beside `generate` of transformers: same weights, dtype, context and tokens.

Every way starts from the same placed states and reads the same last tokens; the clock starts when the first token is
there. The ways take turns, so a ratio compares runs that are close in time. Two texts: one that goes on quoting a
document, and one of its own words, where guessing from the context can only lose.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache, GenerationConfig, StaticCache
from transformers.generation.streamers import BaseStreamer

from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.report import Section, Table, losing
from gritrag.evaluate.statistics import Spread
from gritrag.evaluate.suite import Result, Results, Row, rounds, run
from gritrag.evaluate.workload import Subject, documents_of
from gritrag.model.cache_names import given_cache
from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.model.sampling import Sampling

COMMAND = "bench decoding"
BASELINE = "transformers, dynamic cache"
OWN_WORDS = "Once upon a time, in a village that no road led to, there lived"


@dataclass(frozen=True)
class Setting:
    """What is measured: `documents` per context, `tokens` per document, tokens that are decoded, `repetitions`."""

    documents: int = 10
    tokens: int = 200
    new_tokens: int = 32
    repetitions: int = 5
    seed: int = 0


class Run(NamedTuple):
    """What was decoded, the seconds from the first token to the last, and the forwards, the first included."""

    token_ids: list[int]
    seconds: float
    forwards: int

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return (len(self.token_ids) - 1) / self.seconds


class _Stopwatch(BaseStreamer):
    """Notes when each token came. `generate` gives it the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        """Nothing is left."""


def contexts(model: GritModel, setting: Setting) -> dict[str, Context]:
    """Names and contexts: with documents and without, to be gone on with by quoting and in the model's own words."""
    pool = documents_of(model, setting.tokens, setting.documents, setting.seed)
    readings = model.read_documents(random.Random(setting.seed).sample(pool, len(pool)))
    states = [reading.state for reading in readings]
    quoted, own = model.prompts.encoder.content_ids(pool[0].text), model.prompts.encoder.content_ids(OWN_WORDS)
    start = quoted[: len(quoted) // 2]
    places = f"{setting.documents} x {setting.tokens} tokens"
    return {
        f"{places}, quoting": Context.of(*states, start),
        f"{places}, own words": Context.of(*states, own),
        "no documents, quoting": Context.of([*quoted, *start]),
        "no documents, own words": Context.of(own),
    }


def ours(model: GritModel, context: Context, new_tokens: int, lookup: bool) -> Run:
    """Decoded by this package."""
    decoding = model.decoder.decode([context], Sampling(max_new_tokens=new_tokens, lookup=lookup))
    times = [perf_counter() for _ in decoding]
    return Run(decoding.completions[0].token_ids, times[-1] - times[0], len(times))


def transformers_generate(model: GritModel, context: Context, new_tokens: int, is_static: bool) -> Run:
    """Decoded by `generate`, from the same placed states in a cache of its own kind."""
    sampling = Sampling(max_new_tokens=new_tokens)
    placed = model.decoder.place([context], sampling)
    config = model.lm.config
    cache: Cache = StaticCache(config, max_cache_len=len(context) + new_tokens) if is_static else DynamicCache()
    if placed.length:
        for number, (keys, values) in enumerate(zip(*placed.buffers, strict=True)):
            cache.update(keys[:, :, : placed.length].clone(), values[:, :, : placed.length].clone(), number)
    ids = torch.tensor([context.token_ids], device=model.lm.device)
    stopwatch = _Stopwatch()
    greedy = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, disable_compile=True)
    with torch.inference_mode():
        output = model.lm.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            **given_cache(model.lm, cache),
            generation_config=greedy,
            streamer=stopwatch,
        )
    times = stopwatch.times[1:]
    return Run(output[0, ids.shape[1] :].tolist(), times[-1] - times[0], len(times))


WAYS: dict[str, Callable[[GritModel, Context, int], Run]] = {
    BASELINE: lambda model, context, n: transformers_generate(model, context, n, is_static=False),
    "transformers, static cache": lambda model, context, n: transformers_generate(model, context, n, is_static=True),
    "gritrag, no lookup": lambda model, context, n: ours(model, context, n, lookup=False),
    "gritrag": lambda model, context, n: ours(model, context, n, lookup=True),
}


def measure(model: GritModel, setting: Setting, results: Results) -> None:
    """A case is a context; one row per way to decode it."""
    for name, context in contexts(model, setting).items():
        if all(results.has("decoding", {"context": name, "way": way}) for way in WAYS):
            continue
        runs = rounds(_decoders(model, context, setting.new_tokens), setting.repetitions, name)
        results.write(
            "decoding", [({"context": name, "way": way}, _figures(runs[way], runs[BASELINE])) for way in WAYS]
        )


def _decoders(model: GritModel, context: Context, new_tokens: int) -> dict[str, Callable[[int], Run]]:
    def decoder(way: str) -> Callable[[int], Run]:
        return lambda number: WAYS[way](model, context, new_tokens)

    return {way: decoder(way) for way in WAYS}


def _figures(runs: Sequence[Run], baseline: Sequence[Run]) -> dict[str, Any]:
    return {
        "tokens_per_second": [run.speed for run in runs],
        "tokens": len(runs[0].token_ids),
        "forwards": runs[0].forwards,
        "same_tokens": sum(run.token_ids == other.token_ids for run, other in zip(runs, baseline, strict=True)),
    }


def sections(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """Tokens per second, and the ratio to `generate` in the same rounds."""
    base = {row["cell"]["context"]: row["tokens_per_second"] for row in rows if row["cell"]["way"] == BASELINE}
    lines, lost = [], []
    for row in rows:
        name, way, speeds = row["cell"]["context"], row["cell"]["way"], row["tokens_per_second"]
        ratio = Spread.of_ratios(speeds, base[name])
        same = f"{row['same_tokens']} of {len(speeds)} runs"
        speed = Spread.of(speeds).show(".1f")
        lines.append([name, way, speed, ratio.show(".2f"), str(row["tokens"]), str(row["forwards"]), same])
        if way.startswith("gritrag") and ratio.median < 1:
            lost.append(f"{name}, {way}: {ratio.show('.2f')} of {BASELINE}")
        if way.startswith("gritrag") and row["same_tokens"] < len(speeds):
            lost.append(f"{name}, {way}: other tokens than {BASELINE} in {len(speeds) - row['same_tokens']} runs")
    columns = ["context", "decoded by", "tokens/s", f"ratio to {BASELINE}", "tokens", "forwards", "same tokens"]
    text = f"Median [quartiles] of {facts['settings']['repetitions']} rounds in which all ways took turns."
    return [
        Section("Decoding", text, (), [Table(columns, lines)]),
        losing(lost, f"Slower than {BASELINE}, or other tokens."),
    ]


def main(subject: Subject, setting: Setting | None = None) -> Result:
    """Measure a model, or random weights of a geometry.

    Raises:
        ValueError: a model whose keys cannot be moved to where a document stands.
    """
    setting = setting or Setting()
    loaded = subject.load_movable()
    facts = {"model": subject.name, **machine_of(loaded), "step": loaded.probes[3].detail}
    return run(COMMAND, asdict(setting), facts, lambda results: measure(loaded, setting, results))
