"""Samples that are looked at while training: which questions search, and which documents answers stand behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.read_once import ReadOnce
from gritrag.train.validate import Validation

Recipe = Callable[..., TrainConfig]
Write = Callable[[Path, list[dict[str, Any]]], Path]

ROWS: list[dict[str, Any]] = [
    {"question": "one?", "passage": "First.", "answers": ["first"]},
    {"question": "both?", "documents": ["Left.", "Right.", "Far."], "gold": [0, 1], "answers": ["left and right"]},
    {"question": "never?", "passage": "Third.", "answers": [], "unanswerable": True},
]


def look(model: GritModel, recipe: Recipe, **data: Any) -> Validation:
    config = recipe(data=data, validation={"paths": ["held.jsonl"], "distractors": 1})
    return Validation(config, ReadOnce(model, config))


def test_an_answer_stands_behind_all_that_it_needs_and_only_queries_search(
    tmp_path: Path, write: Write, recipe: Recipe, tiny_model: GritModel
) -> None:
    write(tmp_path / "held.jsonl", ROWS)
    validation = look(tiny_model, recipe, data_dir=str(tmp_path))
    (sample,) = validation._samples
    texts = [tiny_model.tokenizer.decode(document.ids) for document in sample.documents]
    assert sum("Right." in text for text in texts) == 1
    (query,) = sample.queries
    assert "one?" in tiny_model.tokenizer.decode(query.ids)
    assert "First." in texts[sample.positives[0]]
    for answer in sample.answers:
        shown = "".join(texts[row] for row in answer.context)
        needed = ["Left.", "Right."] if "both?" in tiny_model.tokenizer.decode(answer.question_ids) else ["First."]
        assert all(text in shown for text in needed)
        assert len(answer.context) == len(needed) + 1
    assert len(sample.answers) == 2
    assert set(validation()) == {"held/recall@1", "held/placed", "held/full"}
    write(tmp_path / "held.jsonl", ROWS[1:])
    assert set(look(tiny_model, recipe, data_dir=str(tmp_path))()) == {"held/placed", "held/full"}


def test_a_file_without_a_question_to_look_at_is_refused_before_training(
    tmp_path: Path, write: Write, recipe: Recipe, tiny_model: GritModel
) -> None:
    write(tmp_path / "held.jsonl", [{"messages": [{"role": "assistant", "content": "hi"}]}])
    with pytest.raises(ValueError, match=r"held.jsonl holds chats; name files of questions"):
        look(tiny_model, recipe, data_dir=str(tmp_path))
    write(tmp_path / "held.jsonl", [{"question": "q?", "passage": "word " * 99, "answers": ["in own words"]}])
    with pytest.raises(ValueError, match=r"raise data.max_document_tokens"):
        look(tiny_model, recipe, data_dir=str(tmp_path), max_document_tokens=20)
