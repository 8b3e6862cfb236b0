"""The table of README: what answering from states saves and costs, on the corpus that comes with the package.

python docs/benchmarks/readme.py             # measures decoding, answers, search and size; writes readme.json
python docs/benchmarks/readme.py --render    # writes the table into README.md, from readme.json and first-token.json

First tokens are measured by first_token.py, beside this file.
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import GenerationConfig

from gritrag import RAG, Document, GritModel, Index
from gritrag.corpus import documents, questions
from gritrag.demo import is_right
from gritrag.evaluate.machine import machine_of

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->\n", "<!-- benchmarks:end -->"
K = 5
NEW_TOKENS = 64
CONTEXTS = (4, 16)
"""Documents of the first tokens that README shows."""

Row = dict[str, str]


def measure_speed(index: Index, model: GritModel, repetitions: int) -> Row:
    """New tokens per second behind the first, of GritRAG from states and of `generate` from as long a context."""
    rag, asked = RAG(index, k=K), questions()[: repetitions + 1]
    ours, theirs = [], []
    for number, question in enumerate(asked):
        answer = rag.ask(question.question, max_new_tokens=NEW_TOKENS)
        text = " ".join(hit.document.content for hit in answer.hits) + question.question
        ids = torch.tensor([model.tokenizer(text)["input_ids"]], device=model.lm.device)
        seconds = {count: generate(model, ids, count) for count in (1, NEW_TOKENS)}
        if number and answer.usage.generated_tokens > 1:  # the first one warms up
            spent = answer.timings.total - answer.timings.first_token
            ours.append((answer.usage.generated_tokens - 1) / spent)
            theirs.append((NEW_TOKENS - 1) / (seconds[NEW_TOKENS] - seconds[1]))
    return {
        "what": "new tokens per second after the first (median)",
        "GritRAG, from states": f"{median(ours):.0f}",
        "otherwise": f"{median(theirs):.0f}",
        "otherwise is": "transformers `generate`",
    }


def generate(model: GritModel, ids: torch.Tensor, count: int) -> float:
    """Seconds that transformers takes for exactly `count` tokens."""
    greedy = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False)
    start = perf_counter()
    with torch.inference_mode():
        model.lm.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
    return perf_counter() - start


def measure_answers(index: Index) -> Row:
    """How many of the corpus' questions are answered rightly."""
    right = {
        mode: sum(
            is_right(RAG(index, mode=mode, k=K).ask(each.question, max_new_tokens=32).text, each.answers)
            for each in questions()
        )
        for mode in ("doc-cache", "doc-query")
    }
    return {
        "what": f"right answers to {len(questions())} questions, {K} documents each",
        "GritRAG, from states": str(right["doc-cache"]),
        "otherwise": str(right["doc-query"]),
        "otherwise is": "the same model, reading the text again",
    }


def measure_search(index: Index) -> Row:
    """How many of the corpus' questions find their document first."""
    found = {
        mode: sum(index.search(each.question, 1, mode=mode)[0].document.id == each.document_id for each in questions())
        for mode in ("hybrid", "sparse")
    }
    return {
        "what": f"right document found first, of {len(questions())}",
        "GritRAG, from states": f"{found['hybrid']} (hybrid)",
        "otherwise": str(found["sparse"]),
        "otherwise is": "BM25 alone",
    }


def measure_size(model: GritModel, folder: Path) -> Row:
    """Bytes of state per token on disk, in two codecs."""
    size = {}
    text = Document(" ".join(document.content for document in documents()[:4]), id="long")
    for codec in ("bf16", "int4"):
        with Index.create(folder / codec, model=model, states=codec) as index:
            index.add([text])
            size[codec] = index.stats()["state_bytes_per_token"]
    return {
        "what": "bytes on disk per token of a document",
        "GritRAG, from states": f"{size['int4']:,.0f} (int4)",
        "otherwise": f"{size['bf16']:,.0f}",
        "otherwise is": "16 bits",
    }


def first_token_rows(record: dict[str, Any]) -> list[Row]:
    """Of two lengths of the context, beside `generate` of transformers."""
    rows = []
    for count in CONTEXTS:
        of = {row["system"]: row for row in record["rows"] if row["documents"] == count}
        ours, theirs = of["GritRAG, from states"], of["transformers generate"]
        rows.append(
            {
                "what": f"first token after {ours['context_tokens']} tokens of context, ms (median)",
                "GritRAG, from states": str(ours["median_ms"]),
                "otherwise": str(theirs["median_ms"]),
                "otherwise is": "transformers `generate`",
            }
        )
    return rows


def render(first: dict[str, Any], record: dict[str, Any]) -> str:
    """What stands between the marks in README."""
    rows = [*first_token_rows(first), *record["rows"]]
    columns = list(rows[0])
    lines = [f"| {' | '.join(['', *columns[1:]])} |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    facts = first["facts"]
    told = (
        f"Measured with `{facts['model']}` (135M parameters) on {facts['threads']} threads of an {facts['hardware']}, "
        f"{facts['dtype']}, at commit {facts['commit']}. Documents of the plot have {facts['document_tokens']} tokens. "
        "Questions and passages are those of the package."
    )
    plot = "![First token against the length of the context](docs/pictures/first_token.svg)"
    return "\n\n".join([plot, "\n".join(lines), told]) + "\n"


def rendered(readme: str, first: dict[str, Any], record: dict[str, Any]) -> str:
    """README with the part between the marks written anew."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + render(first, record) + END + rest.split(END)[1]


def load(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((HERE / name).read_text("utf-8"))
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--part", choices=("all", "times", "answers"), default="all", help="times want an idle machine")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "readme.json")
    given = parser.parse_args()
    if given.render:
        readme = rendered(README.read_text("utf-8"), load("first-token.json"), load("readme.json"))
        README.write_text(readme, "utf-8")
        return
    model = GritModel.from_pretrained("gritrag-smollm2-135m")
    with (
        tempfile.TemporaryDirectory() as folder,
        Index.create(Path(folder, "index"), model=model, states="bf16") as index,
    ):
        index.add(documents())
        rows = [measure_speed(index, model, given.repetitions)] if given.part != "answers" else []
        if given.part != "times":
            rows += [measure_answers(index), measure_search(index), measure_size(model, Path(folder))]
    facts = {"model": "gritrag-smollm2-135m", **machine_of(model)}
    save(given.out, shlex.join(["python", *sys.argv]), facts, rows)


def save(path: Path, command: str, facts: dict[str, Any], rows: list[Row]) -> None:
    """Write the file; of one that is there, rows of another part stay."""
    known = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    new = {row["what"] for row in rows}
    every = sorted(
        [*rows, *(row for row in known if row["what"] not in new)], key=lambda row: "second" not in row["what"]
    )
    path.write_text(json.dumps({"command": command, "facts": facts, "rows": every}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
