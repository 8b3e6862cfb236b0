"""What reading costs: the read pass (vector and state) against the embedding pass, and that against a bare forward.

The three take turns on the same documents, of the lengths that real chunks have.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from gritrag.config import DEFAULT_MODEL
from gritrag.evaluate.facts import Spread, as_json, header, machine_of, table
from gritrag.evaluate.first_token import documents_of
from gritrag.model.attention import decoder_stack
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar


@dataclass(frozen=True)
class Setting:
    """`documents` of `shortest` to `longest` tokens, read `repetitions` times."""

    documents: int = 12
    shortest: int = 60
    longest: int = 260
    repetitions: int = 4
    seed: int = 0


def reading(model: GritModel, setting: Setting) -> dict[str, Any]:
    """Measure; what is in the result is what `show` prints."""
    draw = random.Random(setting.seed)
    lengths = [draw.randint(setting.shortest, setting.longest) for _ in range(setting.documents)]
    documents = [documents_of(model, tokens, 1, n)[0] for n, tokens in enumerate(lengths)]
    prompts = [torch.tensor([model.document_token_ids(d)], device=model.lm.device) for d in documents]
    decoder = decoder_stack(model.lm)

    def bare() -> None:
        """No batch, so no padding; no mask, no cache, no pooling."""
        with torch.inference_mode():
            for ids in prompts:
                decoder(input_ids=ids, use_cache=False)

    ways: dict[str, Callable[[], object]] = {
        "bare forward": bare,
        "encode_document": lambda: model.encode_document(documents),
        "read_documents": lambda: model.read_documents(documents),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in ProgressBar(range(-1, setting.repetitions), desc="measuring", unit="round"):
        for name, work in ways.items():
            start = perf_counter()
            work()
            if repetition >= 0:  # the first round warms up
                seconds[name].append(perf_counter() - start)
    pairs = {name: list(zip(seconds[name], seconds["encode_document"], strict=True)) for name in seconds}
    return {
        "machine": {**machine_of(model), **vars(setting)},
        "tokens": sum(lengths),
        "tokens_per_second": {name: Spread.of([sum(lengths) / s for s in spent]) for name, spent in seconds.items()},
        "read_over_encode": Spread.of([read / encode for read, encode in pairs["read_documents"]]),
        "encode_speed_over_bare": Spread.of([bare / encode for bare, encode in pairs["bare forward"]]),
    }


def show(result: dict[str, Any]) -> str:
    rows = [[name, spread.show(".0f")] for name, spread in result["tokens_per_second"].items()]
    return "\n".join(
        [
            header({**result["machine"], "tokens": result["tokens"]}),
            "",
            table(["pass", "tokens/s: median [quartiles]"], rows),
            "",
            f"the read pass takes {result['read_over_encode'].show('.2f')} times as long as the embedding pass",
            f"embedding reaches {result['encode_speed_over_bare'].show('.2f')} of the tokens/s of a bare forward",
        ]
    )


def main(model: str = DEFAULT_MODEL, dtype: str = "auto", device: str = "auto", as_json_text: bool = False) -> str:
    """Run and return what to print."""
    result = reading(GritModel.from_pretrained(model, dtype=dtype, device=device), Setting())
    result["machine"] = {"model": model, **result["machine"]}
    return json.dumps(as_json(result), indent=2) if as_json_text else show(result)
