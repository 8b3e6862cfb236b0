"""Mined negatives: found by the index, never an answer, and rows that training takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from gritrag import GritModel
from gritrag.evaluate.rows import read_questions
from gritrag.mine import Mined, mine
from gritrag.train.data.config import SourceConfig
from gritrag.train.data.rows import read_source

ROWS = [
    {"id": "1", "question": "When does the ferry leave?", "passage": "The ferry leaves at noon.", "answers": ["noon"]},
    {"id": "2", "question": "Who eats moss?", "passage": "Goats eat the red moss.", "answers": ["goats"]},
    {"id": "3", "question": "What leaves late?", "passage": "The ferry is late; goats wait.", "answers": ["the ferry"]},
    {"id": "4", "question": "Where is it?", "passage": "A bridge leaves the gorge at noon.", "answers": []},
]


def write(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_negatives_hold_no_answer_and_training_reads_them(tiny_model: GritModel, tmp_path: Path) -> None:
    out = tmp_path / "mined.jsonl"
    report = mine(write(tmp_path), out, tiny_model, negatives=2, margin=0)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["question"] for row in rows] == [row["question"] for row in ROWS]
    for row, source in zip(rows, ROWS, strict=True):
        assert row["documents"][0]["text"] == source["passage"]
        texts = [document["text"] for document in row["documents"][1:]]
        assert len(texts) <= 2
        assert source["passage"] not in texts
        assert not any(answer in text.lower() for answer in source["answers"] for text in texts)
    assert "A bridge leaves the gorge at noon." not in [d["text"] for d in rows[0]["documents"]]
    counts = [len(row["documents"]) - 1 for row in rows]
    assert report == Mined(4, sum(counts), counts.count(0))
    assert sum(counts) > 0
    passages, _ = read_source(out, SourceConfig(path=out.name))
    assert sum(len(question.negatives) for passage in passages for question in passage.questions) == sum(counts)


def test_what_a_row_says_of_itself_is_kept(tiny_model: GritModel, tmp_path: Path) -> None:
    """All that is needed, what is known not to answer, and that nothing does; needed passages are never negatives."""
    halves = ["The ferry leaves the gorge.", "The ferry is red."]
    rows = [
        {"question": "Does the red ferry leave?", "documents": halves, "gold": [0, 1], "answers": ["by day"]},
        {"question": "Is the ferry red?", "documents": [halves[1], "Goats are red."], "answers": ["it is"]},
        {"question": "Why is the ferry late?", "passage": "The ferry is late.", "answers": [], "unanswerable": True},
    ]
    out = tmp_path / "mined.jsonl"
    mine(write(tmp_path, [*ROWS, *rows]), out, tiny_model, negatives=9, depth=9, margin=0)
    both, own, never = read_questions(out)[len(ROWS) :]
    assert [document.text for document in both.gold] == halves
    assert not {document.text for document in both.others} & set(halves)
    assert own.others[0].text == "Goats are red."
    assert len({document.id for document in own.others}) == len(own.others)
    assert never.is_unanswerable
    assert not never.others, "which passage answers it is not known"
    passages, _ = read_source(out, SourceConfig(path=out.name))
    asked = {question.text: question for passage in passages for question in passage.questions}
    assert asked["Does the red ferry leave?"].evidence == (halves[1],)
    assert asked["Why is the ferry late?"].is_unanswerable


def test_what_is_nearer_than_the_margin_allows_is_no_negative(tiny_model: GritModel, tmp_path: Path) -> None:
    source = write(tmp_path)
    found = {}
    for margin in (0.0, 0.2, 0.999):
        mine(source, tmp_path / "out.jsonl", tiny_model, negatives=3, margin=margin)
        found[margin] = [json.loads(line)["documents"] for line in (tmp_path / "out.jsonl").open(encoding="utf-8")]
        for row, documents in zip(ROWS, found[margin], strict=True):
            (query,) = tiny_model.encode_query([row["question"]])
            right, *others = tiny_model.similarity(query, tiny_model.encode_document([d["text"] for d in documents]))
            assert all(other <= (1 - margin) * right + 1e-6 for other in others)
    counts = [sum(len(documents) for documents in rows) for rows in found.values()]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


@pytest.mark.parametrize("options", [{"negatives": 0}, {"negatives": 5, "depth": 4}, {"margin": 1.0}])
def test_numbers_out_of_range_are_refused(tiny_model: GritModel, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="negatives >= 1"):
        mine(write(tmp_path), tmp_path / "out.jsonl", tiny_model, **options)


def test_the_file_of_questions_is_never_written_over(tiny_model: GritModel, tmp_path: Path) -> None:
    source = write(tmp_path)
    before = source.read_bytes()
    with pytest.raises(ValueError, match="name another"):
        mine(source, source, tiny_model)
    with pytest.raises(ValueError, match="line 2: broken row"):
        mine(write(tmp_path, [ROWS[0], {"question": "?"}]), tmp_path / "out.jsonl", tiny_model)
    assert write(tmp_path).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["questions.jsonl"]
