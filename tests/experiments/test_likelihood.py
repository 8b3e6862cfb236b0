"""How probable right answers are: the same as whoever reads everything says, where nothing is reused out of place."""

import json
import math
from pathlib import Path

import pytest
import torch
from places import PLACES
from repository import TINY
from typer.testing import CliRunner

from experiments.likelihood import ROW, TEXT, WAYS, WEIGHED, command, likelihoods
from experiments.script import application
from gritrag.evaluate.quality import Asked
from gritrag.evaluate.question_rows import Question
from gritrag.model.grit import GritModel
from gritrag.records import Document, Hit, as_hits


def asked(documents: int) -> list[Asked]:
    found = []
    for number, place in enumerate(PLACES[:4]):
        own = Document(f"{place} has {number} owls.", id=f"{number}")
        others = [Document(f"{other} has no owls.", id=other) for other in PLACES if other != place]
        question = Question(str(number), f"How many owls has {place}?", (f"{number} owls", "other"), own)
        found.append(Asked(question, {"gold": as_hits([own, *others[: documents - 1]])}))
    return found


def by_hand(model: GritModel, hits: list[Hit], question: Question) -> float:
    """Everything read at once, all logits, and the mean over the answer's tokens."""
    ids = [i for hit in hits for i in model.prompts.document(hit.document.content).ids]
    ids += model.prompts.question_ids(question.text, has_documents=True)
    answer = model.prompts.answer_ids(question.answers[0])
    with torch.no_grad():
        logits_TV = model.lm(torch.tensor([ids + answer])).logits[0].float()
    log_p_TV = logits_TV.log_softmax(-1)
    return sum(log_p_TV[len(ids) - 1 + n, i].item() for n, i in enumerate(answer)) / len(answer)


def test_from_text_is_what_one_forward_says(tiny_model: GritModel) -> None:
    rows = asked(3)
    found = likelihoods(tiny_model, rows)
    assert set(found) == set(WAYS)
    for each, value in zip(rows, found[TEXT], strict=True):
        assert math.isclose(value, by_hand(tiny_model, each.contexts["gold"], each.question), abs_tol=1e-4)


def test_one_document_is_the_same_every_way(tiny_model: GritModel) -> None:
    found = likelihoods(tiny_model, asked(1))
    for way in (ROW, WEIGHED):
        assert found[way] == pytest.approx(found[TEXT], abs=1e-4)


def test_of_several_documents_each_way_is_its_own(tiny_model: GritModel) -> None:
    found = likelihoods(tiny_model, asked(3))
    for one, other in ((ROW, TEXT), (WEIGHED, ROW), (WEIGHED, TEXT)):
        assert all(abs(a - b) > 1e-6 for a, b in zip(found[one], found[other], strict=True)), (one, other)


def test_documents_that_far_outweigh_the_others_are_as_if_alone(
    tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bias beyond measure only the nearest document counts, at the place where it stands alone."""
    monkeypatch.setattr("experiments.likelihood.RELEVANCE_BIAS", 1e6)
    rows = asked(3)
    nearest = []
    for each in rows:
        hits = each.contexts["gold"]
        vector = tiny_model.encode_query([each.question.text])[0]
        scores = tiny_model.encode_document([hit.document for hit in hits]) @ vector
        nearest.append(Asked(each.question, {"gold": [hits[int(scores.argmax())]]}))
    got, want = likelihoods(tiny_model, rows)[WEIGHED], likelihoods(tiny_model, nearest)[ROW]
    # the question stands behind the longest document, a few places further on than behind the nearest
    assert got == pytest.approx(want, abs=0.05)


def test_a_model_whose_keys_cannot_be_moved_is_told(tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model, "rotation", None)
    with pytest.raises(ValueError, match="keys cannot be moved"):
        likelihoods(tiny_model, asked(1))


def test_the_command_tells_all_three_ways_and_their_difference_to_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"{p}?", "passage": f"{p} has {n} owls.", "answers": [f"{n}"]} for n, p in enumerate(PLACES)]
    path.write_text("\n".join(map(json.dumps, rows)))
    told = CliRunner().invoke(application(command), [str(path), "--model", TINY, "--questions", "3"])
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert all(any(line.startswith(f"| {way} ") for line in lines) for way in WAYS)
    assert "+0.000 [+0.000, +0.000]" in next(line for line in lines if line.startswith(f"| {TEXT} "))
    assert "questions: 3" in lines
