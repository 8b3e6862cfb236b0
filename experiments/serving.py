"""A server of ours over an index that is made for it, clients that ask it, and what they measure."""

import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from gritrag import Document, GritModel, Index
from gritrag.config import DEFAULT_MODEL
from gritrag.corpus import documents

START_SECONDS = 120
DOCUMENTS = 5
"""In the context of one answer."""

RECORDS, RECORD_TOKENS = 60, 200
"""Documents to draw from, where they are chosen by number."""


class Served(NamedTuple):
    """What a server is started over: the folder of an index, and the model of it."""

    folder: Path
    dtype: str = "auto"
    model: str = DEFAULT_MODEL


class Timed(NamedTuple):
    """One request: seconds until the first token and until the end, what was said, and its tokens.

    `document_tokens` of the prompt are documents, of which `cached_tokens` were not read again.
    """

    first: float
    total: float
    text: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    document_tokens: int = 0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies, the nearest that was measured."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: Sequence[str], health: str) -> Iterator[None]:
    """A server, once it answers, until the block is left."""
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_SECONDS
            while True:
                if server.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise ValueError(f"{command[0]} did not start: {log.read().decode(errors='replace')[-2000:]}")
                try:
                    if httpx.get(health).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            yield
        finally:
            server.terminate()
            server.wait()


@contextmanager
def ours(served: Served) -> Iterator[str]:
    """Our server over an index; gives its address."""
    port = free_port()
    command = [sys.executable, "-c", "from gritrag.cli import app; app()", "serve", f"docs={served.folder}"]
    command += ["--port", str(port), "--model", served.model, "--dtype", served.dtype, "--requests", "1024"]
    url = f"http://127.0.0.1:{port}"
    with process(command, f"{url}/ready"):
        yield url


def corpus(count: int, tokens: int, model: GritModel) -> list[Document]:
    """Documents of about so many tokens, from the texts of the demo, each with a number to choose it by."""
    texts = [document.text for document in documents()]
    made = []
    for number in range(count):
        text = f"Record {number}."
        position = number
        while model.count_tokens(text) < tokens:
            text += " " + texts[position % len(texts)]
            position += 7
        ids = model.prompts.encoder.content_ids(text)[:tokens]
        made.append(Document(str(model.tokenizer.decode(ids)), id=f"d{number}", metadata={"number": number}))
    return made


def make_index(served: Served, records: int) -> None:
    """An index of the demo's documents, or of so many of one length."""
    model = GritModel.from_pretrained(served.model, dtype=served.dtype)
    chosen = corpus(records, RECORD_TOKENS, model) if records else documents()
    states = "float32" if served.dtype == "float32" else "bf16"
    with Index.create(served.folder, model=model, states=states) as index:
        index.add(chosen)


async def rag(client: httpx.AsyncClient, **body: Any) -> Timed:
    """One streamed answer of ours."""
    began, first, answer = time.perf_counter(), 0.0, dict[str, Any]()
    async with client.stream("POST", "/v1/rag", json={**body, "stream": True}) as response:
        response.raise_for_status()
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                if name in ("text", "answer") and not first:
                    first = time.perf_counter() - began
                if name == "answer":
                    answer = json.loads(line.removeprefix("data: "))
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    cited = sum(citation["end"] - citation["start"] for citation in answer["citations"])
    return Timed(first, time.perf_counter() - began, answer["text"], usage["prompt_tokens"], cached, cited)


async def resident_bytes(client: httpx.AsyncClient) -> int:
    """Memory of the server's process, as its metrics tell it, mapped files included."""
    lines = (await client.get("/metrics")).text.splitlines()
    (line,) = [line for line in lines if line.startswith("process_resident_memory_bytes ")]
    return int(float(line.split()[1]))


async def completion(client: httpx.AsyncClient, prompt: list[int], tokens: int) -> Timed:
    """One streamed completion of llama-server."""
    began, first, text = time.perf_counter(), 0.0, ""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "cache_prompt": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                piece = choices[0]["text"] if choices else ""
                if piece and not first:
                    first = time.perf_counter() - began
                text += piece
    return Timed(first, time.perf_counter() - began, text)


async def abreast(jobs: Sequence[Callable[[], Awaitable[Timed]]], clients: int) -> tuple[list[Timed], float]:
    """All jobs by so many clients, each of which asks again as soon as it is answered; and the seconds of all."""
    gate = asyncio.Semaphore(clients)

    async def one(job: Callable[[], Awaitable[Timed]]) -> Timed:
        async with gate:
            return await job()

    began = time.perf_counter()
    found = await asyncio.gather(*map(one, jobs))
    return list(found), time.perf_counter() - began


def client_of(url: str) -> httpx.AsyncClient:
    # llama-server closes a connection that was idle for seconds, just when it is used again
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=600, limits=limits)


def orders(count: int, among: int) -> list[list[int]]:
    """So many sets of documents in an order, none of them twice."""
    draw, seen = random.Random(0), set[tuple[int, ...]]()
    while len(seen) < count:
        seen.add(tuple(draw.sample(range(among), DOCUMENTS)))
    return [list(each) for each in sorted(seen, key=lambda each: draw.random())]


def question_about(numbers: Sequence[int]) -> str:
    """Names records by their numbers, so that a search ranks them in another order each time."""
    return f"What do records {', '.join(map(str, numbers))} say?"
