"""Load on a server: what many clients at once gain, what they cost each other, and how it goes on for long.

    python -m experiments.serve_load together --clients 16
    python -m experiments.serve_load embedding --seconds 30
    python -m experiments.serve_load combinations --requests 10000
    python -m experiments.serve_load engines --llama-cpp llama.cpp/build

Each starts `gritrag serve` over an index that it makes, and drives it over loopback. `together` compares clients at
once with one after the other, and their texts. `embedding` gives latency of chat with and without others that embed.
`combinations` asks about documents in ever new sets and orders. `engines` asks llama-server too, with the same weights
and tokens; without `--llama-cpp` only ours is measured, and a line says so.
"""

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from experiments.script import run
from experiments.serving import (
    DOCUMENTS,
    RECORDS,
    Served,
    Timed,
    abreast,
    client_of,
    completion,
    free_port,
    make_index,
    orders,
    ours,
    percentile,
    process,
    question_about,
    rag,
    resident_bytes,
)
from gritrag import GritModel, Index
from gritrag.cli.options import Dtype, Model
from gritrag.config import DEFAULT_MODEL
from gritrag.corpus import documents, questions
from gritrag.evaluate.llama_cpp import find_server, write_gguf
from gritrag.progress import ProgressBar

WARM = 20
"""Requests before those that are counted."""

# --- measurements -----------------------------------------------------------------------------------------------------


async def together(served: Served, clients: int, tokens: int, each: int = 1) -> dict[str, Any]:
    """Questions of the demo, one after the other and by so many clients at once, each of whom asks several."""
    asked = [question.question for question in questions()][: clients * each]
    with ours(served) as url:
        async with client_of(url) as client:

            def job(text: str) -> Callable[[], Awaitable[Timed]]:
                return lambda: rag(client, question=text, k=DOCUMENTS, max_new_tokens=tokens)

            jobs = [job(text) for text in asked]
            await abreast(jobs[:clients], clients)  # everything has been loaded once
            serial, serial_seconds = await abreast(jobs, 1)
            parallel, parallel_seconds = await abreast(jobs, clients)
    return {
        "clients": clients,
        "requests": len(jobs),
        "one_after_the_other_s": serial_seconds,
        "at_once_s": parallel_seconds,
        "times_sooner": serial_seconds / parallel_seconds,
        "identical": sum(a.text == b.text for a, b in zip(serial, parallel, strict=True)),
        "first_token_p95_s": percentile([timed.first for timed in parallel], 0.95),
    }


async def embedding(served: Served, seconds: float, clients: int) -> dict[str, Any]:
    """Chat's latency in turns without and with others that embed all the time."""
    texts = [document.text for document in documents()]
    asked = [question.question for question in questions()]
    plain: list[Timed] = []
    loaded: list[Timed] = []
    embedded = 0

    async def chats(client: httpx.AsyncClient, found: list[Timed], end: float, number: int) -> None:
        draw = random.Random(number)
        while time.perf_counter() < end:
            found.append(await rag(client, question=draw.choice(asked), k=2, max_new_tokens=24))

    async def embeds(client: httpx.AsyncClient, end: float) -> None:
        nonlocal embedded
        while time.perf_counter() < end:
            response = await client.post("/v1/embeddings", json={"input": texts[:16]})
            embedded += response.json()["usage"]["total_tokens"]

    with ours(served) as url:
        async with client_of(url) as client:
            await chats(client, [], time.perf_counter() + 2, 0)
            for turn in range(6):
                end = time.perf_counter() + seconds / 6
                found = loaded if turn % 2 else plain
                others = [embeds(client, end) for _ in range(2)] if turn % 2 else []
                await asyncio.gather(*(chats(client, found, end, n) for n in range(clients)), *others)
    p95 = [percentile([timed.total for timed in found], 0.95) for found in (plain, loaded)]
    first = [percentile([timed.first for timed in found], 0.95) for found in (plain, loaded)]
    return {
        "chats": [len(plain), len(loaded)],
        "p95_s": p95,
        "p95_more": p95[1] / p95[0] - 1,
        "first_token_p95_s": first,
        "first_token_p95_more": first[1] / first[0] - 1,
        "median_s": [percentile([timed.total for timed in found], 0.5) for found in (plain, loaded)],
        "embedded_tokens_per_s": embedded / (seconds / 2),
    }


async def combinations(served: Served, requests: int, clients: int) -> dict[str, Any]:
    """Hit tokens, and whether the last tenth of the requests takes longer, or more memory, than the first.

    A request that fails is counted, and stops no other.
    """
    window = max(1, requests // 10)
    done: list[Timed] = []
    failed: list[str] = []
    memory: list[int] = []
    with ours(served) as url, ProgressBar(total=requests, unit="request") as bar:
        async with client_of(url) as client:

            def job(chosen: list[int], counts: bool = True) -> Callable[[], Awaitable[Timed]]:
                async def ask() -> Timed:
                    where = {"number": {"$in": chosen}}
                    timed = Timed(0.0, 0.0, "")
                    try:
                        timed = await rag(client, question=question_about(chosen), where=where, max_new_tokens=1)
                        done.extend([timed] if counts else [])
                    except httpx.HTTPError as error:
                        failed.append(f"{type(error).__name__}: {error}")
                    bar.update(counts)
                    if counts and len(done) == window and not memory:
                        memory.append(await resident_bytes(client))
                    return timed

                return ask

            drawn = orders(requests + WARM, RECORDS)
            await abreast([job(chosen, counts=False) for chosen in drawn[:WARM]], clients)
            _, seconds = await abreast([job(chosen) for chosen in drawn[WARM:]], clients)
            memory.append(await resident_bytes(client))
    if not done:
        raise ValueError(f"no request was answered: {failed[:3]}")
    p95 = [percentile([timed.total for timed in part], 0.95) for part in (done[:window], done[-window:])]
    reused = sum(timed.cached_tokens for timed in done)
    return {
        "requests": len(done),
        "failed": len(failed),
        "first_failures": failed[:5],
        "requests_per_s": len(done) / seconds,
        "hit_tokens_share": reused / sum(timed.document_tokens for timed in done),
        "cached_share_of_prompt": reused / sum(timed.prompt_tokens for timed in done),
        "tokens_read_per_request": (sum(timed.prompt_tokens for timed in done) - reused) / len(done),
        "window": window,
        "p95_first_s": p95[0],
        "p95_last_s": p95[1],
        "p95_last_over_first": p95[1] / p95[0],
        "resident_after_first_bytes": memory[0],
        "resident_at_end_bytes": memory[-1],
    }


async def engines(served: Served, build: Path | None, tokens: int, requests: int) -> dict[str, Any]:
    """Requests per second and first tokens at 1, 4 and 16 clients, each with its documents in a new order."""
    results: dict[str, Any] = {"dtype": served.dtype, "new_tokens": tokens, "documents": DOCUMENTS}
    picks = orders(3 * requests, RECORDS)
    with ours(served) as url:
        async with client_of(url) as client:

            def job(numbers: list[int]) -> Callable[[], Awaitable[Timed]]:
                where = {"number": {"$in": numbers}}
                return lambda: rag(client, question=question_about(numbers), where=where, max_new_tokens=tokens)

            results["gritrag"] = await by_clients([job(each) for each in picks], requests)
    if build is None:
        typer.echo("llama-server: left out; give --llama-cpp, the folder of its build", err=True)
        return results
    model = GritModel.from_pretrained(served.model, dtype=served.dtype)
    with tempfile.TemporaryDirectory() as temporary, Index.open(served.folder, model=model, mode="r") as index:
        weights = Path(temporary) / "weights.gguf"
        write_gguf(model, weights)
        read = {n: model.document_token_ids(index.get([f"d{n}"])[0]) for n in range(RECORDS)}
        prompts = [
            [*(id for n in each for id in read[n]), *model.prompts.question_ids(question_about(each), True)]
            for each in picks
        ]
        port = free_port()
        command = [str(find_server(build)), "-m", str(weights), "--port", str(port), "-np", "16"]
        command += ["-c", str(16 * (max(map(len, prompts)) + tokens + 8)), "-t", "2", "-fa", "off", "--offline"]
        with process(command, f"http://127.0.0.1:{port}/health"):
            async with client_of(f"http://127.0.0.1:{port}") as client:

                def plain(prompt: list[int]) -> Callable[[], Awaitable[Timed]]:
                    return lambda: completion(client, prompt, tokens)

                results["llama-server"] = await by_clients([plain(prompt) for prompt in prompts], requests)
    return results


async def by_clients(jobs: Sequence[Callable[[], Awaitable[Timed]]], requests: int) -> dict[str, Any]:
    """At 1, 4 and 16 clients, so many requests each, a third of them for one client; no job is done twice."""
    await abreast(jobs[-2:], 1)
    found = {}
    for place, clients in enumerate((1, 4, 16)):
        part = jobs[requests * place :][: requests if clients > 1 else max(1, requests // 3)]
        done, seconds = await abreast(part, clients)
        found[f"{clients} clients"] = {
            "requests": len(part),
            "requests_per_s": len(part) / seconds,
            "first_token_p95_s": percentile([timed.first for timed in done], 0.95),
            "first_token_median_s": percentile([timed.first for timed in done], 0.5),
        }
    return found


def main(
    what: Annotated[str, typer.Argument(help="together, embedding, combinations or engines.")],
    clients: Annotated[int, typer.Option(help="Clients at once.", min=1)] = 16,
    requests: Annotated[
        int | None, typer.Option(help="10,000 in combinations; 36 for each number of clients in engines.", min=10)
    ] = None,
    each: Annotated[int, typer.Option(help="Questions of each client in together.", min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="Of embedding, in six turns without and with load.", min=1)] = 60,
    new_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 32,
    index: Annotated[Path | None, typer.Option(help="Folder of the index; made if it is not there.")] = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    llama_cpp: Annotated[Path | None, typer.Option(help="Folder of a build of llama.cpp with llama-server.")] = None,
) -> None:
    """Measure one thing and print it as JSON."""
    if what not in ("together", "embedding", "combinations", "engines"):
        raise ValueError(f"{what!r} is nothing to measure; give together, embedding, combinations or engines")
    with tempfile.TemporaryDirectory() as temporary:
        served = Served(index or Path(temporary) / "index", dtype, model)
        if not served.folder.exists():
            make_index(served, RECORDS if what in ("combinations", "engines") else 0)
        if what == "together":
            result = asyncio.run(together(served, clients, new_tokens, each))
        elif what == "embedding":
            result = asyncio.run(embedding(served, seconds, clients))
        elif what == "combinations":
            result = asyncio.run(combinations(served, requests or 10_000, clients))
        else:
            result = asyncio.run(engines(served, llama_cpp, new_tokens, requests or 36))
    typer.echo(json.dumps(result, indent=2))


if __name__ == "__main__":
    run(main)
