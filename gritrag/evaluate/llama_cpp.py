"""llama.cpp beside us: our weights as a GGUF file, and a `llama-server` of the user's own build that answers from it.

llama.cpp rotates halves of a head that lie interleaved where transformers splits them, so rows of query and key
weights of Llama models change their order on the way (`convert_hf_to_gguf.py` of llama.cpp, `LlamaModel.permute`).
"""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType

from gritrag.model.grit import GritModel

SERVER = "llama-server"
PERMUTED = {"llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA}
AS_THEY_ARE = {"qwen3": gguf.MODEL_ARCH.QWEN3}
ARCHITECTURES = {**PERMUTED, **AS_THEY_ARE}
"""By transformers' model type what llama.cpp calls it."""

START_SECONDS = 120
ANSWER_SECONDS = 600


def find_server(folder: Path) -> Path:
    """`llama-server` in a folder of a build, or in its `bin`.

    Raises:
        ValueError: there is none.
    """
    for path in (folder / SERVER, folder / "bin" / SERVER):
        if path.is_file():
            return path
    raise ValueError(
        f"no {SERVER} in {folder}; build llama.cpp for this machine (cmake -B build -DGGML_NATIVE=ON && cmake --build "
        f"build --target {SERVER}) and give the folder of the build"
    )


def write_gguf(model: GritModel, path: Path) -> None:
    """The model's weights and vocabulary: matrices as `number_of` says, norms in float32.

    Raises:
        ValueError: an architecture that is not written here, or weights that are not plain matrices any more.
    """
    kind = model.lm.config.model_type
    if kind not in ARCHITECTURES:
        raise ValueError(f"{kind} is not written as GGUF here; there are: {', '.join(ARCHITECTURES)}")
    config = model.lm.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[kind]])
    _write_shape(writer, config)
    _write_vocabulary(writer, model)
    names = gguf.get_tensor_name_map(ARCHITECTURES[kind], config.num_hidden_layers)
    weights = dict(model.lm.state_dict())
    expected = 2 + config.num_hidden_layers * (9 if kind in PERMUTED else 11)
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    else:
        expected += 1
    known = {name: names.get_name(name, try_suffixes=(".weight",)) for name in weights}
    if None in known.values() or len(known) != expected:
        raise ValueError(f"{kind} holds other weights than a GGUF file of it; load it with dtype bfloat16 or float32")
    for name, tensor in weights.items():
        if kind in PERMUTED and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = interleaved(tensor, heads)
        number, array = number_of(tensor), tensor.float().cpu().numpy()
        writer.add_tensor(str(known[name]), gguf.quants.quantize(array, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def number_of(tensor: torch.Tensor) -> GGMLQuantizationType:
    """The type that holds a matrix as we compute with it: bfloat16 as such, float32 in half precision where that holds
    every number, as packed weights are."""
    if tensor.dim() != 2 or tensor.dtype not in (torch.bfloat16, torch.float32):
        return GGMLQuantizationType.F32
    if tensor.dtype == torch.bfloat16:
        return GGMLQuantizationType.BF16
    return GGMLQuantizationType.F16 if torch.equal(tensor.half().float(), tensor) else GGMLQuantizationType.F32


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix in llama.cpp's order: of each head those of both halves in turn."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def _write_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_vocabulary(writer: gguf.GGUFWriter, model: GritModel) -> None:
    """Prompts are given as token ids, so this is only for llama.cpp to know its tokens by name."""
    backend = json.loads(model.tokenizer.backend_tokenizer.to_str())
    names = {number: token for token, number in model.tokenizer.get_vocab().items()}
    size = model.lm.config.vocab_size
    kinds = [gguf.TokenType.NORMAL if number in names else gguf.TokenType.UNUSED for number in range(size)]
    for number in model.tokenizer.all_special_ids:
        kinds[number] = gguf.TokenType.CONTROL
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in backend["model"].get("merges", [])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([names.get(number, f"[unused {number}]") for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(int(model.tokenizer.eos_token_id))
    writer.add_add_bos_token(False)


class Server:
    """A running `llama-server` with one slot."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def complete(self, token_ids: Sequence[int], new_tokens: int, with_cache: bool = True) -> dict[str, Any]:
        """Greedy tokens behind a prompt; the server's own times stand under `timings`, in milliseconds."""
        asked = {"prompt": list(token_ids), "n_predict": new_tokens, "temperature": 0, "cache_prompt": with_cache}
        return self._post("/completion", {**asked, "return_tokens": True, "ignore_eos": True, "top_k": 1})

    def save(self, name: str) -> None:
        """Write what the slot holds to a file."""
        self._post("/slots/0?action=save", {"filename": name})

    def restore(self, name: str) -> float:
        """Read it again; milliseconds."""
        return float(self._post("/slots/0?action=restore", {"filename": name})["timings"]["restore_ms"])

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return dict(json.loads(answer.read()))


@contextmanager
def serving(program: Path, weights: Path, positions: int, threads: int, slots: Path, on_gpu: bool) -> Iterator[Server]:
    """Start a server, and stop it.

    Args:
        program: see `find_server`.
        weights: GGUF file.
        positions: that a prompt and its answer need.
        threads: to compute with.
        slots: folder of saved prompts.
        on_gpu: all layers there, if the build can.

    Raises:
        ValueError: the server does not come up; the end of its log is told.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(program), "-m", str(weights), "-c", str(positions), "-t", str(threads), "-np", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--slot-save-path", str(slots), "--cache-ram", "0"]
    # flash attention makes a prompt behind a long cache several times slower on processors
    command += ["-fa", "on" if on_gpu else "off", "-ngl", "99" if on_gpu else "0", "--offline"]
    log = slots / "server.log"
    with log.open("w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT)
        try:
            server, deadline = Server(port), time.monotonic() + START_SECONDS
            while not server.is_up():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ValueError(f"{program} did not start: {log.read_text('utf-8', 'replace')[-300:].strip()}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait()
