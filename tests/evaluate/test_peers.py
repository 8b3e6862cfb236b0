"""Peers: our weights in their files, the server's client, and a table that says where we lose."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from repository import TINY
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from gritrag.cli import app
from gritrag.evaluate import peers
from gritrag.evaluate.llama_cpp import find_server, serving, write_gguf
from gritrag.evaluate.peers import DECODING, ENCODING, FIRST, OURS, Setting, main, sections
from gritrag.evaluate.workload import Subject, random_model
from gritrag.model.grit import GritModel

SMALL = Setting(documents=2, tokens=40, new_tokens=4, repetitions=2)

STAND_IN = '''#!{python}
"""Answers as llama-server does, and keeps what it was asked."""
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if Path(options["-m"]).stat().st_size < 1000:
    sys.exit("these are no weights")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({{"status": "ok"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (Path({folder!r}) / "asked.jsonl").open("a") as file:
            file.write(json.dumps({{"path": self.path, **body}}) + "\\n")
        self.answer({{"timings": {{"prompt_ms": 2.0, "predicted_per_second": 1e6, "restore_ms": 1.0}}, "tokens": [1]}})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass


HTTPServer(("127.0.0.1", int(options["--port"])), Handler).serve_forever()
'''


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A folder whose `llama-server` is a stand-in: it knows the interface, and computes nothing."""
    folder = tmp_path / "build"
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "llama-server"
    program.write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path)), "utf-8")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_gguf_file_of_our_weights_is_the_same_model(
    make_model: Callable[..., GritModel], tmp_path: Path, architecture: str
) -> None:
    model = make_model(architecture)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.copy_(parameter.bfloat16())
    write_gguf(model, tmp_path / "weights.gguf")
    # transformers takes 128 for the head dimension of any Qwen3 in a GGUF file, whatever the file says
    back = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="weights.gguf", dtype=torch.float32, config=model.lm.config
    )
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(back(ids).logits, model.lm(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (torch.bfloat16, GGMLQuantizationType.BF16),
        (torch.float16, GGMLQuantizationType.F16),
        (torch.float32, GGMLQuantizationType.F32),
    ],
)
def test_a_gguf_file_holds_our_weights_exactly_in_as_few_bits(
    make_model: Callable[..., GritModel], tmp_path: Path, kind: torch.dtype, number: GGMLQuantizationType
) -> None:
    model = make_model("llama")
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.copy_(parameter.to(kind))
    if kind == torch.bfloat16:
        model.lm.to(torch.bfloat16)
    write_gguf(model, tmp_path / "weights.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "weights.gguf").tensors}
    assert {tensor.tensor_type for tensor in tensors.values() if len(tensor.shape) == 2} == {number}
    assert tensors["output_norm.weight"].tensor_type == GGMLQuantizationType.F32
    written = tensors["blk.0.ffn_up.weight"]
    back = torch.from_numpy(dequantize(written.data, written.tensor_type).copy())
    assert torch.equal(back, model.lm.model.layers[0].mlp.up_proj.weight.float())


def test_a_gguf_file_knows_our_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRITRAG_CACHE", str(tmp_path / "cache"))
    model = random_model("tiny", "float32", "cpu")
    write_gguf(model, tmp_path / "weights.gguf")
    back = GritModel.from_pretrained(tmp_path / "weights.gguf", dtype="float32")
    for text in ("Owls click. The clock leans!", "What is 12 degrees?"):
        assert back.prompts.encoder.content_ids(text) == model.prompts.encoder.content_ids(text)


def test_other_architectures_and_folders_without_a_server_are_refused(
    make_model: Callable[..., GritModel], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="gpt2 is not written as GGUF here; there are: llama, mistral, qwen3"):
        write_gguf(make_model("gpt2"), tmp_path / "x.gguf")
    with pytest.raises(ValueError, match=r"no llama-server in .*; build llama.cpp for this machine"):
        main(Subject("no-such-model"), llama_cpp=tmp_path)


def test_every_peer_has_its_rows_and_those_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    result = main(Subject(TINY, "float32"), SMALL)
    ways = {(row["cell"]["task"], row["cell"]["way"]) for row in result.rows if row["kind"] == "peers"}
    assert {(task, OURS[task]) for task in (FIRST, DECODING, ENCODING)} < ways
    assert {(FIRST, "transformers, prefix cached"), (ENCODING, "sentence-transformers, batches of 8")} < ways
    assert all(min(row["values"]) > 0 for row in result.rows if row["kind"] == "peers")
    assert "llama.cpp was skipped: give the folder of a build" in " ".join(result.show().split())
    monkeypatch.setattr(peers, "SentenceTransformer", None)
    assert "sentence-transformers was skipped: it is not installed" in " ".join(
        main(Subject(TINY, "float32"), SMALL).show().split()
    )


def test_single_tasks_can_be_measured() -> None:
    options = ["--documents", "2", "--tokens", "40", "--new-tokens", "4", "--repetitions", "1", "--dtype", "float32"]
    command = ["bench", "peers", "--model", TINY, *options, "--json", "--task"]
    told = CliRunner().invoke(app, [*command, "first-token"])
    assert told.exit_code == 0, told.output
    assert {row["cell"]["task"] for row in json.loads(told.stdout)["rows"] if row["kind"] == "peers"} == {FIRST}
    refused = CliRunner().invoke(app, [*command, "singing"])
    assert refused.exit_code != 0
    assert "no task 'singing'; there are: first token, decoding, encoding" in " ".join(refused.output.split())


def test_llama_cpp_is_asked_for_the_same_tokens(build: Path, tmp_path: Path) -> None:
    options = ["--documents", "2", "--tokens", "40", "--new-tokens", "4", "--repetitions", "1", "--dtype", "float32"]
    told = CliRunner().invoke(app, ["bench", "peers", "--model", TINY, "--llama-cpp", str(build), *options, "--json"])
    assert told.exit_code == 0, told.output
    ways = {row["cell"]["way"]: row["values"] for row in json.loads(told.stdout)["rows"] if "way" in row["cell"]}
    assert ways["llama.cpp, prefix cached"] == [0.002]
    assert ways["llama.cpp, slot restored"] == [0.003]
    assert ways["llama.cpp"] == [1e6]
    asked = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    prompts = [each for each in asked if each["path"] == "/completion"]
    first = next(each for each in prompts if each["n_predict"] == 1)["prompt"]
    assert len(first) == 2 * 40
    behind = [each["prompt"] for each in prompts if each["prompt"][:80] == first and len(each["prompt"]) > 80]
    assert behind, "the question comes behind the prefix that the slot holds"
    assert {each["cache_prompt"] for each in prompts} == {True, False}
    assert any("action=restore" in each["path"] for each in asked)


def test_a_server_that_does_not_start_costs_nobody_else_his_row(build: Path) -> None:
    (build / "bin" / "llama-server").write_text("#!/bin/sh\necho out of order\nexit 1\n")
    result = main(Subject(TINY, "float32"), SMALL, llama_cpp=build)
    (skipped,) = [row["why"] for row in result.rows if row["kind"] == "skipped"]
    assert skipped.endswith("llama-server did not start: out of order")
    assert "transformers, prefix cached" in {row["cell"].get("way") for row in result.rows}


def test_a_server_that_does_not_start_says_why(build: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"")
    (tmp_path / "slots").mkdir()
    with (
        pytest.raises(ValueError, match="did not start: these are no weights"),
        serving(find_server(build), tmp_path / "weights.gguf", 10, 1, tmp_path / "slots", False),
    ):
        pass


def test_the_table_says_where_a_peer_is_ahead() -> None:
    def row(task: str, way: str, values: list[float]) -> dict[str, object]:
        return {"kind": "peers", "cell": {"task": task, "context": "c", "way": way}, "values": values}

    rows = [
        row(FIRST, OURS[FIRST], [0.1, 0.2]),
        row(FIRST, "llama.cpp", [0.2, 0.4]),
        row(DECODING, OURS[DECODING], [10.0, 10.0]),
        row(DECODING, "llama.cpp", [20.0, 20.0]),
        row(DECODING, "gritrag, no lookup", [30.0, 30.0]),
    ]
    table, lost = sections({"settings": {"repetitions": 2}}, rows)
    assert [line[3:] for line in table.tables[0].rows][:2] == [
        ["150.0 [125.0, 175.0] ms", ""],
        ["300.0 [250.0, 350.0] ms", "2.00 [2.00, 2.00]"],
    ]
    assert lost.tables[0].rows == [["decoding, c: llama.cpp, 2.00 times as fast as we are"]]
