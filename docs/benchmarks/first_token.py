"""Seconds to the first token against the length of the context: from states, by reading again, and by transformers.

The three take turns on the same documents, so that neighbours in time are compared. The search is left out: it is the
same for all. Documents are passages of the package's corpus, joined to the length that is asked for.

python docs/benchmarks/first_token.py    # about two minutes on two cores; writes first-token.json beside this file
python docs/benchmarks/first_token.py --documents 16    # this length anew; the file's other rows stay
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from transformers import GenerationConfig

from gritrag import RAG, Document, GritModel, Hit, Index
from gritrag.corpus import documents
from gritrag.evaluate.machine import machine_of

QUESTION = "Which of these places can be reached by ferry in winter?"
DOCUMENT_TOKENS = 250
STATES, AGAIN, PEER = "GritRAG, from states", "GritRAG, reading again", "transformers generate"
Run = Callable[[], float]


def make_documents(model: GritModel, count: int, seed: int) -> list[Document]:
    """`count` different texts of at most, and nearly, `DOCUMENT_TOKENS` tokens."""
    words = " ".join(document.content for document in documents()).split()
    made = []
    for number, start in enumerate(random.Random(seed).sample(range(len(words)), count)):
        text = [words[(start + n) % len(words)] for n in range(DOCUMENT_TOKENS)]
        while len(model.document_token_ids(" ".join(text))) > DOCUMENT_TOKENS:
            text.pop()
        made.append(Document(" ".join(text), id=f"d{number}"))
    return made


def ways(index: Index, model: GritModel, chosen: list[Document]) -> tuple[dict[str, Run], int]:
    """How each system gets its first token for these documents, in seconds, and the tokens of their context."""
    hits = [Hit(document, 1 / rank, rank) for rank, document in enumerate(chosen, start=1)]

    def ours(mode: str) -> Run:
        def run() -> float:
            timings = RAG(index, mode=mode, k=len(hits)).ask(QUESTION, hits=hits, max_new_tokens=1).timings
            return timings.first_token - timings.retrieve

        return run

    length = RAG(index, k=len(hits)).ask(QUESTION, hits=hits, max_new_tokens=1).usage.prompt_tokens
    text = " ".join([*(document.text for document in chosen), QUESTION, *(document.text for document in chosen)])
    ids = torch.tensor([model.tokenizer(text)["input_ids"][:length]], device=model.lm.device)
    greedy = GenerationConfig(max_new_tokens=1, do_sample=False)

    def theirs() -> float:
        start = perf_counter()
        with torch.inference_mode():
            model.lm.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        return perf_counter() - start

    return {STATES: ours("doc-cache"), AGAIN: ours("doc-query"), PEER: theirs}, length


def measure(model: GritModel, counts: list[int], repetitions: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each number of documents and each system: median and quartiles in milliseconds."""
    pool = make_documents(model, max(counts), seed=0)
    draw = random.Random(0)
    rows = []
    with Index.create(folder, model=model, states="bf16") as index:
        index.add(pool, show_progress_bar=True)
        for count in counts:
            times: dict[str, list[float]] = {STATES: [], AGAIN: [], PEER: []}
            for repetition in range(-1, repetitions):  # the first round warms up
                systems, length = ways(index, model, draw.sample(pool, count))
                for name, run in systems.items():
                    seconds = run()
                    if repetition >= 0:
                        times[name].append(1e3 * seconds)
            rows += [
                {"documents": count, "context_tokens": length, "system": name, **spread(found)}
                for name, found in times.items()
            ]
    return rows


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return {"median_ms": round(median(values), 1), "low_ms": round(low, 1), "high_ms": round(high, 1), "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gritrag-smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--documents", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("first-token.json"))
    given = parser.parse_args()
    model = GritModel.from_pretrained(given.model, dtype=given.dtype)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(model, given.documents, given.repetitions, Path(folder) / "index")
    facts = {"model": given.model, **machine_of(model), "document_tokens": DOCUMENT_TOKENS, "states": "bf16"}
    known = json.loads(given.out.read_text("utf-8"))["rows"] if given.out.exists() else []
    rows += [row for row in known if row["documents"] not in given.documents]
    rows.sort(key=lambda row: row["documents"])
    record = {"command": shlex.join(["python", *sys.argv]), "facts": facts, "rows": rows}
    given.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
