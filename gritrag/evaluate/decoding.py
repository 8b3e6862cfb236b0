"""Tokens per second of decoding, beside `generate` of transformers: same weights, dtype, context and tokens.

Every way starts from the same placed states and reads the same last tokens; the clock starts when the first token is
there. The ways take turns, so a ratio compares neighbours in time. Two texts: one that goes on quoting a document, and
one of its own words, where guessing from the context can only lose.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache, GenerationConfig, StaticCache
from transformers.generation.streamers import BaseStreamer

from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.facts import Spread, as_json, header, machine_of, table
from gritrag.evaluate.first_token import documents_of
from gritrag.model.context import Context
from gritrag.model.decode import Sampling
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar

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
            past_key_values=cache,
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


def decoding(model: GritModel, setting: Setting) -> dict[str, Any]:
    """Measure; what is in the result is what `show` prints."""
    given = contexts(model, setting)
    runs: dict[str, dict[str, list[Run]]] = {name: {way: [] for way in WAYS} for name in given}
    for repetition in ProgressBar(range(-1, setting.repetitions), desc="measuring", unit="round"):
        for name, context in given.items():
            for way, decode in WAYS.items():
                run = decode(model, context, setting.new_tokens)
                if repetition >= 0:  # the first round warms up
                    runs[name][way].append(run)
    return {
        "machine": {**machine_of(model), **vars(setting)},
        "step": model.probes[3].detail,
        "contexts": {name: {way: _row(found, by[BASELINE]) for way, found in by.items()} for name, by in runs.items()},
    }


def _row(runs: Sequence[Run], baseline: Sequence[Run]) -> dict[str, Any]:
    return {
        "tokens_per_second": Spread.of([run.speed for run in runs]),
        "ratio": Spread.of([run.speed / other.speed for run, other in zip(runs, baseline, strict=True)]),
        "tokens": len(runs[0].token_ids),
        "forwards": runs[0].forwards,
        "same_tokens": sum(run.token_ids == other.token_ids for run, other in zip(runs, baseline, strict=True)),
    }


def show(result: dict[str, Any]) -> str:
    columns = ["context", "decoded by", "tokens/s: median [quartiles]", f"ratio to {BASELINE}"]
    columns += ["tokens", "forwards", "same tokens"]
    rows = [
        [
            name,
            way,
            row["tokens_per_second"].show(".1f"),
            row["ratio"].show(".2f"),
            str(row["tokens"]),
            str(row["forwards"]),
            f"{row['same_tokens']} of {row['ratio'].n} runs",
        ]
        for name, ways in result["contexts"].items()
        for way, row in ways.items()
    ]
    return "\n".join([header({**result["machine"], "step": result["step"]}), "", table(columns, rows)])


def main(
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
    device: str = "auto",
    as_json_text: bool = False,
    setting: Setting | None = None,
) -> str:
    """Run and return what to print.

    Raises:
        ValueError: a model whose keys cannot be moved to where a document stands.
    """
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    if loaded.rotation is None:
        raise ValueError(f"{model} cannot be measured: {loaded.probes[1].detail}")
    result = decoding(loaded, setting or Setting())
    result["machine"] = {"model": model, **result["machine"]}
    return json.dumps(as_json(result), indent=2) if as_json_text else show(result)
