"""What reading costs: the read pass (vector and state) against the embedding pass, and that against a bare forward.

The three take turns on the same documents, of the lengths that real chunks have.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch

from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.report import Section, Table, losing
from gritrag.evaluate.statistics import Spread
from gritrag.evaluate.suite import Result, Results, Row, rounds, run
from gritrag.evaluate.workload import Subject, documents_of
from gritrag.model.attention import decoder_stack
from gritrag.model.grit import GritModel

COMMAND = "bench reading"
BARE, ENCODE, READ = "bare forward", "encode_document", "read_documents"
TOLERANCE = 1.05
"""A read pass may take so many times as long as an embedding pass."""


@dataclass(frozen=True)
class Setting:
    """`documents` of `shortest` to `longest` tokens, read `repetitions` times."""

    documents: int = 12
    shortest: int = 60
    longest: int = 260
    repetitions: int = 4
    seed: int = 0


def measure(model: GritModel, setting: Setting, results: Results) -> None:
    """One row per way to read."""
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
        if model.lm.device.type == "cuda":
            torch.cuda.synchronize(model.lm.device)

    ways = {
        BARE: _timed(bare),
        ENCODE: _timed(lambda: model.encode_document(documents)),
        READ: _timed(lambda: model.read_documents(documents)),
    }
    seconds = rounds(ways, setting.repetitions, "measuring")
    results.write("reading", [({"pass": name}, {"seconds": seconds[name], "tokens": sum(lengths)}) for name in ways])


def _timed(work: Callable[[], object]) -> Callable[[int], float]:
    """Seconds of a pass, in any round."""

    def seconds(number: int) -> float:
        start = perf_counter()
        work()
        return perf_counter() - start

    return seconds


def sections(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """Tokens per second, and two ratios."""
    of = {row["cell"]["pass"]: row for row in rows}
    tokens, seconds = rows[0]["tokens"], {name: row["seconds"] for name, row in of.items()}
    read, speed = Spread.of_ratios(seconds[READ], seconds[ENCODE]), Spread.of_ratios(seconds[BARE], seconds[ENCODE])
    text = (
        f"{tokens} tokens, median [quartiles] of {read.n} rounds. The read pass takes {read.show('.2f')} times as long "
        f"as the embedding pass, and embedding reaches {speed.show('.2f')} of the tokens/s of a bare forward."
    )
    table = [[name, Spread.of([tokens / s for s in spent]).show(".0f")] for name, spent in seconds.items()]
    lost = [f"read_documents takes {read.show('.2f')} times as long"] if read.median > TOLERANCE else []
    lost += [f"encode_document reaches {speed.show('.2f')} of a bare forward"] if speed.median < 1 else []
    what = f"A read pass of more than {TOLERANCE} embedding passes; embedding slower than a bare forward."
    return [Section("Reading", text, (), [Table(["pass", "tokens/s"], table)]), losing(lost, what)]


def main(subject: Subject, setting: Setting | None = None) -> Result:
    """Measure a model, or random weights of a geometry."""
    setting = setting or Setting()
    loaded = subject.load()
    facts = {"model": subject.name, **machine_of(loaded)}
    return run(COMMAND, asdict(setting), facts, lambda results: measure(loaded, setting, results))
