"""The public surface, frozen: what is here was promised. Change it on purpose, and tell the changelog."""

import subprocess
import sys
from typing import Any

import typer

import gritrag
from gritrag.cli import app

NAMES = [
    "RAG",
    "Answer",
    "Citation",
    "DamagedIndex",
    "Document",
    "Event",
    "Fingerprint",
    "FingerprintMismatch",
    "GritModel",
    "Hit",
    "Index",
    "Reading",
    "ReplacedIndex",
    "Sampling",
    "Timings",
    "Usage",
    "chunk_documents",
    "open_many",
]

MODEL = "--model -m --dtype --device"
COMMANDS = {
    "": "--debug --no-debug --version --install-completion --show-completion",
    "index": "paths --index -i --states --state-quota --states-at --vectors-at --chunk-size --chunk-overlap --encoding "
    f"--text-column --delimiter --root --strict --yes -y --engine --address --actors {MODEL} --json",
    "search": f"question --index -i -k --mode --rerank --where {MODEL} --json",
    "ask": "question --index -i --mode -k --relevance-bias --rerank --recompute --unanswerable-above --where "
    f"--max-new-tokens {MODEL} --json",
    "chat": f"--index -i --mode -k --relevance-bias --rerank --recompute --unanswerable-above --max-new-tokens {MODEL}",
    "estimate": f"paths --states --chunk-size --chunk-overlap {MODEL} --plan --json",
    "stats": "--index -i --json",
    "verify": "--index -i --repair --json",
    "list": "--index -i --where --limit --json",
    "delete": "ids --index -i --where --json",
    "compact": "--index -i --json",
    "copy": "target --index -i",
    "doctor": "--folder --model -m --json",
    "mcp": f"index --http --port --write --relevance-bias --unanswerable-above {MODEL}",
    "demo": f"--questions --index -i -k --relevance-bias {MODEL} --json",
    "train": "recipe --set",
    "calibrate": f"paths --out --chunk-size --chunk-overlap {MODEL}",
    "whiten": "paths --out --documents --power --model -m --device",
    "export": "model folder --dtype",
    "eval": "",
    "eval questions": "paths --index -i --questions --documents --distractors -k --states --max-new-tokens --seed "
    "--only --context --dense-weight --relevance-bias --rerank --recompute --unanswerable-above --compare --answers "
    f"--folder --out {MODEL} --json",
    "eval embedding": "paths --train --rows --documents --shots --clusterings --instruction --side --seed --compare "
    f"--out {MODEL} --json",
    "bench": "",
    "bench first-token": "--documents --tokens --states --repetitions --storage --recompute --rerank --seed "
    f"--geometry --out "
    f"{MODEL} --json",
    "bench reading": f"--seed --geometry --out {MODEL} --json",
    "mine": f"path out --negatives --depth --margin {MODEL} --json",
    "bench codecs": f"--questions-file --codec --questions --documents --repetitions --seed --out {MODEL} --json",
    "bench decoding": f"--documents --tokens --new-tokens --repetitions --seed --geometry --out {MODEL} --json",
    "bench peers": "--documents --tokens --new-tokens --repetitions --llama-cpp --task --seed --geometry --out "
    f"{MODEL} --json",
    "bench memory": f"--documents --tokens --states --repetitions --seed --geometry --out {MODEL} --json",
    "bench grid": "config --set --folder --out --json",
    "bench table7": f"file --questions -k --states --context --max-new-tokens --seed --folder --out {MODEL} --json",
    "bench steady": f"--requests --documents --tokens -k --mode --states --quota --window --seed --folder --out "
    f"{MODEL} --json",
    "bench report": "folder --out --json",
    "bench render": "path",
    "serve": "indexes --host --port --keys --read-only --data --rows --requests --trace --timeout "
    "--model -m --dtype --device",
}


def surface(command: Any, name: str = "") -> dict[str, str]:
    """Every command below `command`, with its arguments and options as they are typed."""
    typed = [word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)]
    found = {name: " ".join(word for word in typed if word != "--help")}
    for child, subcommand in getattr(command, "commands", {}).items():
        found |= surface(subcommand, f"{name} {child}".strip())
    return found


def test_names() -> None:
    assert sorted(gritrag.__all__) == sorted(NAMES)
    assert all(hasattr(gritrag, name) for name in NAMES)


def test_commands_and_their_options() -> None:
    assert surface(typer.main.get_command(app)) == COMMANDS


def test_help_and_import_load_no_torch() -> None:
    code = "import sys, gritrag, gritrag.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_only_some_need_is_not_imported_before_it_is_needed(model_folder: str) -> None:
    code = (
        "import sys; from gritrag import RAG, GritModel, Index; GritModel.from_pretrained(sys.argv[1]); "
        "sys.exit(', '.join({'peft', 'gguf', 'qdrant_client'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code, model_folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
