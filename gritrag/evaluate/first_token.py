"""Seconds to the first token, from states and from text, on documents of an exact length.

The two modes take turns on the same documents in the same order, so a ratio compares neighbours in time; every
repetition draws another combination and another order of documents.
"""

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritrag.answer import RAG
from gritrag.config import DEFAULT_MODEL
from gritrag.corpus import documents
from gritrag.evaluate.facts import Spread, as_json, header, machine_of, table
from gritrag.index.index import Index
from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar
from gritrag.records import Document, Hit, Timings

FILLERS = (" a", "a", ".", "7")
"""Some tokenizer makes two tokens of each of these, or joins it to what stands before, but none does so with all."""

QUESTION = "Which of these places can be reached by ferry in winter?"


@dataclass(frozen=True)
class Setting:
    """What is measured: `documents` per context, `tokens` per document, `codec` of the states, `repetitions`."""

    documents: int = 10
    tokens: int = 200
    codec: str = "bf16"
    repetitions: int = 9
    seed: int = 0


def documents_of(model: GritModel, tokens: int, count: int, seed: int) -> list[Document]:
    """`count` different documents of real text, each exactly `tokens` tokens with its scaffold.

    Raises:
        ValueError: fewer tokens than the scaffold of a document needs, or more documents than there are words.
    """
    words = " ".join(document.content for document in documents()).split()
    starts = random.Random(seed).sample(range(len(words)), count)
    return [_exactly(model, tokens, words, start, f"d{n}") for n, start in enumerate(starts)]


def _exactly(model: GritModel, tokens: int, words: Sequence[str], start: int, id: str) -> Document:
    """Words are added while they fit, then single characters: a document of a given length in tokens."""
    text, number = words[start], start
    if len(model.document_token_ids(text)) > tokens:
        raise ValueError(f"a document of {tokens} tokens has no room for text beside its scaffold")
    while len(model.document_token_ids(longer := f"{text} {words[(number + 1) % len(words)]}")) <= tokens:
        text, number = longer, number + 1
    while (length := len(model.document_token_ids(text))) < tokens:
        text += next(filler for filler in FILLERS if length < len(model.document_token_ids(text + filler)) <= tokens)
    return Document(text, id=id)


def first_token(model: GritModel, setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure in a new index in `folder`; what is in the result is what `show` prints."""
    pool = documents_of(model, setting.tokens, 2 * setting.documents, setting.seed)
    draw = random.Random(setting.seed)
    with Index.create(folder, model=model, states=setting.codec) as index:
        index.add(pool, show_progress_bar=True)
        rags = {mode: RAG(index, mode=mode, k=setting.documents) for mode in ("doc-query", "doc-cache")}
        runs: dict[str, list[Timings]] = {f"{mode}{way}": [] for mode in rags for way in ("", ", with search")}
        for repetition in ProgressBar(range(-1, setting.repetitions), desc="measuring", unit="round"):
            chosen = draw.sample(pool, setting.documents)
            hits = [Hit(document, 1 / rank, rank) for rank, document in enumerate(chosen, start=1)]
            for name, ask in _ways(rags, hits).items():
                timings = ask()
                if repetition >= 0:  # the first round warms up
                    runs[name].append(timings)
        stored = index.stats()
    return {
        "machine": {**machine_of(model), **vars(setting)},
        "context_tokens": setting.documents * setting.tokens,
        "question_tokens": len(model.prompts.question_ids(QUESTION, has_documents=True)),
        "state_bytes_per_token": stored["state_bytes_per_token"],
        "rows": {name: _parts(timings) for name, timings in runs.items()},
        "speedup": _ratio(runs["doc-query"], runs["doc-cache"]),
        "speedup_with_search": _ratio(runs["doc-query, with search"], runs["doc-cache, with search"]),
    }


def _ways(rags: dict[str, RAG], hits: Sequence[Hit]) -> dict[str, Callable[[], Timings]]:
    """Every mode from the same hits, and with embedding and searching as part of it."""

    def run(rag: RAG, given: Sequence[Hit] | None) -> Timings:
        return rag.ask(QUESTION, hits=given, max_new_tokens=1).timings

    ways: dict[str, Callable[[], Timings]] = {}
    for mode, rag in rags.items():
        ways[mode] = lambda rag=rag: run(rag, hits)  # type: ignore[misc]
        ways[f"{mode}, with search"] = lambda rag=rag: run(rag, None)  # type: ignore[misc]
    return ways


def _parts(timings: Sequence[Timings]) -> dict[str, Spread]:
    parts = {part: [getattr(t, part) for t in timings] for part in ("retrieve", "load", "place", "first_token")}
    parts["forward"] = [t.first_token - t.retrieve - t.load - t.place for t in timings]
    return {part: Spread.of(values) for part, values in parts.items()}


def _ratio(slow: Sequence[Timings], fast: Sequence[Timings]) -> Spread:
    return Spread.of([a.first_token / b.first_token for a, b in zip(slow, fast, strict=True)])


def show(result: dict[str, Any]) -> str:
    columns = ["first token, ms: median [quartiles]", "retrieve", "load", "place", "forward", "first token"]
    rows = [
        [name, *(_ms(parts[part]) for part in ("retrieve", "load", "place", "forward", "first_token"))]
        for name, parts in result["rows"].items()
    ]
    facts = {**result["machine"], **{k: result[k] for k in ("context_tokens", "question_tokens")}}
    return "\n".join(
        [
            header(facts),
            "",
            table(columns, rows),
            "",
            f"from hits to first token, doc-cache is {result['speedup'].show('.1f')} times sooner than doc-query",
            f"with embedding and search, {result['speedup_with_search'].show('.1f')} times sooner",
        ]
    )


def _ms(spread: Spread) -> str:
    return Spread(1e3 * spread.median, 1e3 * spread.low, 1e3 * spread.high, spread.n).show(".1f")


def main(
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
    device: str = "auto",
    as_json_text: bool = False,
    setting: Setting | None = None,
) -> str:
    """Run and return what to print."""
    loaded = GritModel.from_pretrained(model, dtype=dtype, device=device)
    with tempfile.TemporaryDirectory(prefix="gritrag-bench-") as folder:
        result = first_token(loaded, setting or Setting(), Path(folder) / "index")
    result["machine"] = {"model": model, **result["machine"]}
    return json.dumps(as_json(result), indent=2) if as_json_text else show(result)
