"""A tiny model on disk, a few rows of every kind, and recipes over them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make_lm
from transformers import PreTrainedTokenizerFast

from gritrag.train.config import TrainConfig

FACTS = [
    ("Varn lighthouse was built in 1871.", "When was it built?", "1871"),
    ("Osk harbour freezes for three months.", "How long does it freeze?", "three months"),
    ("Tamsin Reed painted the ceiling.", "Who painted it?", "Tamsin Reed"),
    ("The ferry carries ninety people.", "How many does it carry?", "ninety"),
    ("Rye bread is sold on market days.", "Which bread is sold?", "Rye bread"),
    ("The clock tower leans to the north.", "Where does it lean?", "the north"),
    ("Gulls nest on the customs house.", "Where do gulls nest?", "the customs house"),
    ("The well is twelve metres deep.", "How deep is the well?", "twelve metres"),
]

Recipe = Callable[..., TrainConfig]


def question_rows() -> list[dict[str, Any]]:
    return [
        {"id": str(n), "question": question, "passage": passage, "answers": [answer], "title": "Osk"}
        for n, (passage, question, answer) in enumerate(FACTS)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More threads make tiny models slower, and far slower where the processor is shared."""
    torch.set_num_threads(1)


@pytest.fixture
def write() -> Callable[[Path, list[dict[str, Any]]], Path]:
    return write_rows


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder of a random three-layer Llama with grouped key/value heads."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer.save_pretrained(folder)
    make_lm("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "questions.jsonl", question_rows())
    chat = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for _, q, a in FACTS]
    write_rows(folder / "chat.jsonl", chat)
    return folder


@pytest.fixture
def recipe(tiny_base: Path, data_dir: Path, tmp_path: Path) -> Recipe:
    """`recipe(steps=3, generative={"p_full": 0})`: a recipe for the tiny model; groups are merged into the defaults."""

    def make(**changes: Any) -> TrainConfig:
        fields: dict[str, Any] = {
            "name": "run",
            "base": str(tiny_base),
            "runs_dir": str(tmp_path / "runs"),
            "device": "cpu",
            "steps": 6,
            "lr": 1e-3,
            "warmup_steps": 1,
            "instruction": "Find it",
            "data": {
                "data_dir": str(data_dir),
                "sources": [{"path": "questions.jsonl"}],
                "chat": [{"path": "chat.jsonl"}],
                "tokens_per_step": 200,
            },
        }
        for key, value in changes.items():
            fields[key] = {**fields.get(key, {}), **value} if isinstance(value, dict) else value
        return TrainConfig.model_validate(fields)

    return make
