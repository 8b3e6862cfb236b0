"""How much sooner do two actors of Ray read than one, each with one thread?

    python -m experiments.actors

The same texts are indexed anew for each number of actors. What is compared is how many batches a second are staged
after the first of each actor, so that starting processes and loading models does not count.
"""

import json
import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.scale_sample import real_texts
from experiments.script import run
from gritrag import GritModel, Index
from gritrag.chunks import Cutting
from gritrag.index.staging import Staging

BATCH = 8


def staged(engine: Any, folder: Path, model: GritModel, files: Path, actors: int) -> list[float]:
    """When each batch was staged, in seconds since the first, where so many actors read."""
    times: list[float] = []
    clear = Staging.clear

    def note(staging: Staging) -> None:
        times.extend(sorted(part.stat().st_mtime for part in Path(staging._base, "parts").iterdir()))
        clear(staging)

    Staging.clear = note  # type: ignore[assignment, method-assign]
    try:
        with Index.create(folder, model=model, states="bf16") as index:
            engine.add_files(index, engine.list_places([files]), Cutting(256), engine.Cluster(actors=actors))
    finally:
        Staging.clear = clear  # type: ignore[method-assign]
    return [time - times[0] for time in times]


def command(
    texts: Annotated[int, typer.Option(help="Real texts to read, each of one chunk or a few.", min=32)] = 192,
    actors: Annotated[str, typer.Option(help="Numbers of actors.")] = "1,2",
    model: Annotated[str, typer.Option("--model", "-m", help="What reads.")] = "gritrag-smollm2-135m",
) -> None:
    """Index with each number of actors, and print a line of JSON for each."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray gives its workers way to everybody else
    try:
        engine: Any = import_module("gritrag.index.ray")
    except ModuleNotFoundError as error:
        raise ValueError(f"this needs {error.name}: pip install 'gritrag[ray]'") from error
    engine.BATCH = BATCH
    loaded = GritModel.from_pretrained(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = folder / "rows.jsonl"
        rows = [json.dumps({"id": f"r{number}", "text": text}) for number, text in enumerate(real_texts(None, texts))]
        files.write_text("\n".join(rows))
        first: dict[str, Any] | None = None
        for count in map(int, actors.split(",")):
            times = staged(engine, folder / f"index-{count}", loaded, files, count)
            found: dict[str, Any] = {
                "actors": count,
                "batches": len(times),
                "dtype": str(loaded.dtype),
                "seconds": times[-1],
            }
            found["batches_per_second"] = (len(times) - count) / (times[-1] - times[count - 1])
            first = first or found
            found["times_the_first"] = found["batches_per_second"] / first["batches_per_second"]
            typer.echo(json.dumps(found))


if __name__ == "__main__":
    run(command)
