"""Tiny random models for laws and shapes; the real 135M model for claims about answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from architectures import CONFIGS, make_lm, make_tokenizer
from transformers import PreTrainedTokenizerFast

from gritrag.config import CheckpointConfig
from gritrag.model.grit import GritModel

MODEL_FIXTURES = {"real_model", "real_model_bf16", "grit"}
"""Whatever asks for one of these loads the weights of the small model, and is marked `model`."""

SLOW = (
    "codecs/",
    "documents/",
    "evaluate/",
    "experiments/",
    "index/test_audit.py",
    "index/test_backends.py",
    "index/test_bad_input.py",
    "index/test_candidates.py",
    "index/test_codecs.py",
    "index/test_damage.py",
    "index/test_durability.py",
    "index/test_faults.py",
    "index/test_filters.py",
    "index/test_kill.py",
    "index/test_plain_model.py",
    "index/test_privacy.py",
    "index/test_qdrant.py",
    "index/test_ray.py",
    "index/test_ray_nodes.py",
    "index/test_remote_states.py",
    "index/test_shards.py",
    "index/test_sharing.py",
    "index/test_soak.py",
    "index/test_staging.py",
    "langchain/",
    "model/test_causal_lms.py",
    "model/test_gguf_file.py",
    "model/test_low_rank.py",
    "model/test_save.py",
    "model/test_soft_prompts.py",
    "serve/",
    "test_cli.py",
    "test_export.py",
    "test_mcp.py",
    "test_mine.py",
    "test_mteb.py",
    "test_real_model.py",
    "test_progress.py",
    "test_tracing.py",
    "train/",
)
"""Folders and modules that take more than a few seconds; their tests are marked `slow`."""

OTHERS = set(CONFIGS) - {"llama"}
"""Architectures that repeat what one has shown; their tests are marked `slow` too."""


def is_slow(path: Path) -> bool:
    """Whether a module, or all of a folder, is slow."""
    name = path.relative_to(Path(__file__).parent).as_posix()
    return f"{name}/".startswith(SLOW) or name.startswith(SLOW)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import nothing of what `make quick` leaves out: that alone takes seconds."""
    chosen = config.option.markexpr
    leaves_out = "not slow" in chosen and is_slow(collection_path)
    needs_ray = "not ray" in chosen and collection_path.name.startswith("test_ray")
    return True if leaves_out or needs_ray else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make quick` leaves out."""
    for item in items:
        if MODEL_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.model)
        given = getattr(item, "callspec", None)
        repeats = given is not None and any(
            value in OTHERS for value in given.params.values() if isinstance(value, str)
        )
        if repeats or is_slow(item.path):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and ChatML's control tokens."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., GritModel]:
    """`make_model("qwen3", reading="bidirectional")`: a tiny random model of that architecture."""

    def make(architecture: str = "llama", **config: str) -> GritModel:
        return GritModel(make_lm(architecture), tokenizer, CheckpointConfig(**config))

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., GritModel]) -> GritModel:
    return make_model()


@pytest.fixture(scope="session")
def model_folder(tiny_model: GritModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.lm.save_pretrained(folder)
    tiny_model.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 16384  # its tokens are bytes, and a long passage of the demo has 1,300
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="session")
def real_model() -> GritModel:
    """SmolLM2-135M-Instruct from its installed wheel, in float32."""
    return GritModel.from_pretrained("smollm2-135m", dtype="float32")


@pytest.fixture(scope="session")
def real_model_bf16() -> GritModel:
    """The same in bfloat16."""
    return GritModel.from_pretrained("smollm2-135m", dtype="bfloat16")
