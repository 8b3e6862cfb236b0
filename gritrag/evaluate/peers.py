"""Beside peers, same weights and same tokens: llama.cpp, `generate` of transformers with a prefix cache, and
sentence-transformers.

A prefix cache holds one set of documents in one order; states hold any. So the peers' cached figures are of a prefix
that they have just read, and ours of documents that come in a new combination and order in every round. llama.cpp's
times are those that its server tells of itself: the way to it is not counted.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig

from gritrag.answer import RAG
from gritrag.evaluate import decoding
from gritrag.evaluate.decoding import Setting
from gritrag.evaluate.first_token import QUESTION
from gritrag.evaluate.llama_cpp import Server, find_server, serving, write_gguf
from gritrag.evaluate.machine import machine_of
from gritrag.evaluate.report import Section, Table, losing
from gritrag.evaluate.statistics import Spread
from gritrag.evaluate.suite import Result, Results, Row, rounds, run
from gritrag.evaluate.workload import Subject, documents_of
from gritrag.export import to_sentence_transformers
from gritrag.index.index import Index
from gritrag.model.cache_names import given_cache
from gritrag.model.grit import GritModel
from gritrag.records import Document, Hit

try:
    from sentence_transformers import SentenceTransformer
except ModuleNotFoundError:
    SentenceTransformer = None  # type: ignore[assignment,misc]

COMMAND = "bench peers"
FIRST, DECODING, ENCODING = "first token", "decoding", "encoding"
UNITS = {FIRST: "ms", DECODING: "tokens/s", ENCODING: "tokens/s"}
TASKS = tuple(UNITS)
OURS = {FIRST: "gritrag, states", DECODING: "gritrag", ENCODING: "gritrag, encode_document"}
"""Of each task the way that others are compared with."""

SAVED = "prefix.bin"
BATCHES = (1, 8, 32)
SHORTEST, LONGEST, PASSAGES = 60, 260, 24
SPARE = 64
"""Positions of llama.cpp beside what is asked for."""

Way = Callable[[int], float]
"""Of a round: seconds to a first token, or tokens per second."""


@dataclass(frozen=True)
class Workload:
    """Documents in a new order in each round, and one prefix that stays."""

    model: GritModel
    rounds: dict[int, list[Document]]

    @classmethod
    def of(cls, model: GritModel, setting: Setting) -> "Workload":
        pool = documents_of(model, setting.tokens, 2 * setting.documents, setting.seed)
        draw = random.Random(setting.seed)
        return cls(model, {n: draw.sample(pool, setting.documents) for n in range(-1, setting.repetitions)})

    @property
    def question(self) -> list[int]:
        return self.model.prompts.question_ids(QUESTION, has_documents=True)

    def prefix(self, number: int) -> list[int]:
        """Tokens of a round's documents."""
        return [i for document in self.rounds[number] for i in self.model.document_token_ids(document)]

    @property
    def fixed(self) -> list[int]:
        """What prefix caches hold."""
        return self.prefix(-1)


# --- ways to a first token --------------------------------------------------------------------------------------------


def our_first_tokens(work: Workload, folder: Path, stack: ExitStack) -> dict[str, Way]:
    """From states that were never placed together, and from text."""
    every = {document.id: document for chosen in work.rounds.values() for document in chosen}
    with Index.create(folder, model=work.model, states="bf16") as writer:
        writer.add(list(every.values()), show_progress_bar=True)
    index = stack.enter_context(Index.open(folder, model=work.model, mode="r"))

    def way(mode: str) -> Way:
        rag = RAG(index, mode=mode, k=len(work.rounds[-1]))

        def first_token(number: int) -> float:
            hits = [Hit(document, 1 / rank, rank) for rank, document in enumerate(work.rounds[number], start=1)]
            return rag.ask(QUESTION, hits=hits, max_new_tokens=1).timings.first_token

        return first_token

    return {OURS[FIRST]: way("doc-cache"), "gritrag, text": way("doc-query")}


def transformers_first_tokens(work: Workload) -> dict[str, Way]:
    """`generate`, behind a prefix that stands in its cache, and with everything read again."""
    lm, device = work.model.lm, work.model.lm.device
    cache, prefix = DynamicCache(), work.fixed
    with torch.inference_mode():
        lm(input_ids=torch.tensor([prefix], device=device), **given_cache(lm, cache), logits_to_keep=1)

    def generate(ids: Sequence[int], past: DynamicCache | None) -> float:
        given = torch.tensor([list(ids)], device=device)
        greedy = GenerationConfig(max_new_tokens=1, do_sample=False)
        start = perf_counter()
        with torch.inference_mode():
            output = lm.generate(  # type: ignore[operator]
                given, attention_mask=torch.ones_like(given), **given_cache(lm, past), generation_config=greedy
            )
        output[0, -1].item()
        return perf_counter() - start

    def cached(number: int) -> float:
        seconds = generate([*prefix, *work.question], cache)
        cache.crop(len(prefix) - cache.get_seq_length())  # what the question left is taken out again, off the clock
        return seconds

    return {
        "transformers, prefix cached": cached,
        "transformers, text": lambda number: generate([*work.prefix(number), *work.question], None),
    }


def llama_first_tokens(work: Workload, server: Server) -> dict[str, Way]:
    """`llama-server`, behind a prefix in its slot, behind one that is restored from a file, and from nothing."""
    prefix, question = work.fixed, work.question
    server.complete(prefix, 1)
    server.save(SAVED)

    def asked(ids: Sequence[int], with_cache: bool = True) -> float:
        return float(server.complete(ids, 1, with_cache)["timings"]["prompt_ms"]) / 1e3

    def cached(number: int) -> float:
        server.restore(SAVED)  # off the clock: the slot holds the prefix and nothing else
        return asked([*prefix, *question])

    def restored(number: int) -> float:
        return server.restore(SAVED) / 1e3 + asked([*prefix, *question])

    return {
        "llama.cpp, prefix cached": cached,
        "llama.cpp, slot restored": restored,
        "llama.cpp, text": lambda number: asked([*work.prefix(number), *question], with_cache=False),
    }


# --- ways to decode and to encode -------------------------------------------------------------------------------------


def decoding_ways(model: GritModel, setting: Setting, server: Server | None) -> Iterator[tuple[str, dict[str, Way]]]:
    """By context, tokens per second of every way."""
    for name, context in decoding.contexts(model, setting).items():
        ways: dict[str, Way] = {
            way: lambda number, way=way, context=context: decoding.WAYS[way](model, context, setting.new_tokens).speed  # type: ignore[misc]
            for way in (OURS[DECODING], "gritrag, no lookup", decoding.BASELINE)
        }
        if server is not None:
            ids = context.token_ids
            # the first of them is part of the prompt's time, theirs and ours
            ways["llama.cpp"] = lambda number, ids=ids: float(  # type: ignore[misc]
                server.complete(ids, setting.new_tokens)["timings"]["predicted_per_second"]
            )
        yield name, ways


def encoding_ways(model: GritModel, setting: Setting, folder: Path) -> dict[str, Way]:
    """Tokens per second of `encode_document`, and of sentence-transformers at several sizes of batches."""
    draw = random.Random(setting.seed)
    documents = [documents_of(model, draw.randint(SHORTEST, LONGEST), 1, n)[0] for n in range(PASSAGES)]
    tokens = sum(len(model.document_token_ids(document)) for document in documents)

    def speed(encode: Callable[[], object]) -> float:
        start = perf_counter()
        encode()
        return tokens / (perf_counter() - start)

    ways: dict[str, Way] = {OURS[ENCODING]: lambda number: speed(lambda: model.encode_document(documents))}
    if SentenceTransformer is not None:
        theirs = SentenceTransformer(
            str(to_sentence_transformers(model, folder)),
            device=str(model.lm.device),
            model_kwargs={"dtype": model.lm.dtype},
        )
        texts = [document.text for document in documents]
        for batch in BATCHES:
            ways[f"sentence-transformers, batches of {batch}"] = lambda number, batch=batch: speed(  # type: ignore[misc]
                lambda: theirs.encode_document(texts, batch_size=batch)
            )
    return ways


# --- the suite --------------------------------------------------------------------------------------------------------


def measure(model: GritModel, setting: Setting, build: Path | None, results: Results, tasks: Sequence[str]) -> None:
    """A row for each way of each of the `tasks`; a peer that is not there is a row that says so."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gritrag-bench-")))
        server = None
        try:
            server = _started(model, setting, build, folder, stack)
        except ValueError as error:
            _skip(results, "llama.cpp", str(error))
        if FIRST in tasks:
            work = Workload.of(model, setting)
            ways = {**our_first_tokens(work, folder / "index", stack), **transformers_first_tokens(work)}
            if server is not None:
                ways |= llama_first_tokens(work, server)
            _turns(results, FIRST, f"{setting.documents} x {setting.tokens} tokens", ways, setting)
        if DECODING in tasks:
            for name, decoders in decoding_ways(model, setting, server):
                _turns(results, DECODING, name, decoders, setting)
        if ENCODING in tasks:
            _encoding(model, setting, folder / "exported", results)


def _encoding(model: GritModel, setting: Setting, folder: Path, results: Results) -> None:
    if SentenceTransformer is None:
        _skip(results, "sentence-transformers", "it is not installed; run: pip install 'gritrag[mteb]'")
    try:
        encoders = encoding_ways(model, setting, folder)
    except ValueError as error:
        _skip(results, "sentence-transformers", str(error))
    else:
        _turns(results, ENCODING, f"{PASSAGES} documents of {SHORTEST} to {LONGEST} tokens", encoders, setting)


def _started(model: GritModel, setting: Setting, build: Path | None, folder: Path, stack: ExitStack) -> Server:
    if build is None:
        raise ValueError("give the folder of a build of llama.cpp for this machine: --llama-cpp FOLDER")
    program, weights, slots = find_server(build), folder / "weights.gguf", folder / "slots"
    write_gguf(model, weights)
    slots.mkdir()
    positions = setting.documents * setting.tokens + setting.new_tokens + 2 * setting.tokens + SPARE
    on_gpu = model.lm.device.type == "cuda"
    return stack.enter_context(serving(program, weights, positions, torch.get_num_threads(), slots, on_gpu))


def _skip(results: Results, peer: str, why: str) -> None:
    results.write("skipped", [({"peer": peer}, {"why": why})])


def _turns(results: Results, task: str, context: str, ways: Mapping[str, Way], setting: Setting) -> None:
    found = rounds(ways, setting.repetitions, f"{task}, {context}")
    results.write(
        "peers", [({"task": task, "context": context, "way": way}, {"values": v}) for way, v in found.items()]
    )


def sections(facts: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    """One table of all tasks; where a peer is ahead; and who was not there."""
    measured = [row for row in rows if row["kind"] == "peers"]
    ours = {
        (row["cell"]["task"], row["cell"]["context"]): row["values"]
        for row in measured
        if row["cell"]["way"] == OURS[row["cell"]["task"]]
    }
    lines, lost = [], []
    for row in measured:
        task, context, way = (row["cell"][key] for key in ("task", "context", "way"))
        own, values = ours[task, context], row["values"]
        faster = Spread.of_ratios(values, own) if task == FIRST else Spread.of_ratios(own, values)
        shown = Spread.of(values, 1e3 if task == FIRST else 1.0).show(".1f")
        lines.append([task, context, way, f"{shown} {UNITS[task]}", "" if values is own else faster.show(".2f")])
        if not way.startswith("gritrag") and faster.median < 1:
            lost.append(f"{task}, {context}: {way}, {1 / faster.median:.2f} times as fast as we are")
    skipped = [f"{row['cell']['peer']} was skipped: {row['why']}." for row in rows if row["kind"] == "skipped"]
    text = (
        f"Same weights, same tokens, median [quartiles] of {facts['settings']['repetitions']} rounds in which all ways "
        "took turns. Peers' caches hold one set of documents in one order; ours come in a new one in every round. "
    )
    columns = ["task", "context", "way", "median [quartiles]", "times that we are faster"]
    return [
        Section("Beside peers", text + " ".join(skipped), (), [Table(columns, lines)]),
        losing(lost, "Tasks in which a peer is faster, by the median of rounds."),
    ]


def main(
    subject: Subject, setting: Setting | None = None, llama_cpp: Path | None = None, tasks: Sequence[str] = TASKS
) -> Result:
    """Measure a model, or random weights of a geometry.

    Args:
        subject, setting: see there.
        llama_cpp: folder of a build with `llama-server`; None where there is none.
        tasks: some of `TASKS`.

    Raises:
        ValueError: no such model, build or task, or a model whose keys cannot be moved.
    """
    setting = setting or Setting()
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"no task {task!r}; there are: {', '.join(TASKS)}")
    if llama_cpp is not None:
        find_server(llama_cpp)
    loaded = subject.load_movable()
    facts = {"model": subject.name, **machine_of(loaded), "llama_cpp": llama_cpp is not None}
    return run(COMMAND, asdict(setting), facts, lambda results: measure(loaded, setting, llama_cpp, results, tasks))
