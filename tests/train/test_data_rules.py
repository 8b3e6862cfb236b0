"""Rules of data that recipes bring along: demonstrations, labels, changed copies, negatives of one's own."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gritrag.config import PartsConfig
from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.augment import Augmenter, word_noise
from gritrag.train.data.config import SourceConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.rows import Passage, Question, read_source
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.read_once import ReadOnce

Recipe = Callable[..., TrainConfig]
Write = Callable[[Path, list[dict[str, Any]]], Path]

NO_ANSWERS = {"weight": 0, "p_full": 0, "p_chat": 0}


def backwards(texts: list[str]) -> list[str]:
    """A translator of sorts."""
    return [" ".join(reversed(text.split())) for text in texts]


def passages(*texts: str) -> list[Passage]:
    return [Passage(text, "Title", (Question("who?", "me", None, ()),)) for text in texts]


# --- demonstrations ---------------------------------------------------------------------------------------------------


def shown_steps(model: GritModel, recipe: Recipe, count: int = 12) -> list[RetrievalStep]:
    config = recipe(
        parts={"demonstrations": 5},
        data={"tokens_per_step": 900, "chat": []},
        generative=NO_ANSWERS,
        template="instruct",
    )
    mixture = Mixture(config, model)
    return [mixture.step(number) for number in range(count)]


def test_a_query_is_never_shown_its_own_pair_nor_its_own_document(
    make_model: Callable[..., GritModel], recipe: Recipe, tmp_path: Path, write: Write
) -> None:
    """Two questions of one passage must not be each other's demonstrations: the answer would stand in the prompt."""
    rows = [
        {"question": f"{word} {n}?", "passage": f"Passage {n // 2}.", "answers": [], "title": ""}
        for n, word in enumerate(("who", "when") * 5)
    ]
    source = {"path": str(write(tmp_path / "pairs.jsonl", rows))}
    model = make_model(template="instruct", parts=PartsConfig(demonstrations=5))
    config = recipe(
        parts={"demonstrations": 5},
        data={"tokens_per_step": 4000, "chat": [], "sources": [source], "questions_per_document": 2},
        generative=NO_ANSWERS,
    )
    mixture, counts = Mixture(config, model), set()
    for number in range(30):
        step = mixture.step(number)
        assert len(step.queries) == 10
        for query, rows_shown in enumerate(step.demonstrations):
            assert query not in rows_shown
            assert step.positives[query] not in [step.positives[row] for row in rows_shown]
            assert len(set(rows_shown)) == len(rows_shown)
            counts.add(len(rows_shown))
    assert counts == {0, 1, 2, 3, 4, 5}


def test_in_training_demonstrations_are_what_fit_demonstrations_makes_of_the_same_pairs(
    make_model: Callable[..., GritModel], recipe: Recipe
) -> None:
    model = make_model(template="instruct", pooling="last", parts=PartsConfig(demonstrations=5))
    config = recipe(parts={"demonstrations": 5}, template="instruct", data={"chat": []}, generative=NO_ANSWERS)
    texts, questions = ["Rye bread.", "The tower leans.", "Gulls nest."], ["which?", "where?", "who nests?"]
    documents = [model.prompts.document(text) for text in texts]
    queries = [model.prompts.query(text, "Find it") for text in questions]
    step = RetrievalStep("test", documents, queries, [0, 1, 2], None, [], demonstrations=[[2, 1], [], [0]])
    read_once = ReadOnce(model, config)
    read, _ = read_once._read_queries(step, read_once.read(documents, with_states=False), with_states=False)
    for query, rows in enumerate(step.demonstrations):
        prompt = model.fit_demonstrations([(questions[row], texts[row]) for row in rows], "Find it") if rows else None
        want = torch.from_numpy(model.encode_query([questions[query]], "Find it", demonstrations=prompt))
        torch.testing.assert_close(read.vectors[query : query + 1].detach(), want, atol=1e-5, rtol=1e-4)


def test_a_source_without_a_second_document_has_no_demonstrations(
    make_model: Callable[..., GritModel], recipe: Recipe
) -> None:
    model = make_model(template="instruct", parts=PartsConfig(demonstrations=5))
    for step in shown_steps(model, recipe):
        most = len(set(step.positives)) - 1
        assert all(len(rows) <= max(0, most) for rows in step.demonstrations)
    with pytest.raises(ValueError, match="p_question_state=0"):
        recipe(parts={"demonstrations": 1}, generative={"p_question_state": 0.5})


# --- labels and negatives ---------------------------------------------------------------------------------------------


def test_rows_with_labels_pair_texts_of_one_label_against_others(tmp_path: Path, write: Write) -> None:
    rows = [{"text": f"text {n} of {label}", "label": label} for label in "abc" for n in range(3)]
    path = write(tmp_path / "labels.jsonl", [*rows, {"text": "alone of d", "label": "d"}])
    config = SourceConfig(path="labels.jsonl", label_negatives=4)
    found, chats = read_source(path, config)
    assert chats == []
    assert [passage.text for passage in found] == [row["text"] for row in rows]  # the one of d has no partner
    for passage in found:
        (question,) = passage.questions
        assert question.text != passage.text
        assert question.text[-1] == passage.text[-1]
        assert len(question.negatives) == 4
        assert all(negative[-1] != passage.text[-1] for negative in question.negatives)
    assert read_source(path, config) == (found, chats)
    with pytest.raises(ValueError, match="has 1 labels; two are needed"):
        read_source(write(tmp_path / "one.jsonl", rows[:3]), config)
    with pytest.raises(ValueError, match="one kind of them"):
        read_source(write(tmp_path / "both.jsonl", [rows[0], {"query": "q", "pos": ["p"]}]), config)


def test_the_switch_of_a_stage_turns_in_batch_negatives_off(
    tiny_model: GritModel, recipe: Recipe, tmp_path: Path, write: Write
) -> None:
    rows = [{"text": f"text {n} of {label}", "label": label} for label in "abc" for n in range(3)]
    source = {"path": str(write(tmp_path / "labels.jsonl", rows)), "label_negatives": 2}
    data = {"sources": [source], "chat": [], "tokens_per_step": 2000}
    on = Mixture(recipe(data=data, generative=NO_ANSWERS), tiny_model).step(0)
    off = Mixture(recipe(data=data, generative=NO_ANSWERS, contrastive={"in_batch_negatives": False}), tiny_model).step(
        0
    )
    assert on.candidates is None
    assert [len(rows) for rows in off.candidates] == [3] * len(off.queries)  # its own and two of other labels
    with pytest.raises(ValueError, match="no row has negatives of its own"):
        Mixture(recipe(contrastive={"in_batch_negatives": False}), tiny_model)


# --- changed copies ---------------------------------------------------------------------------------------------------


def test_word_noise_changes_words_of_the_text_only_and_about_as_many_as_asked() -> None:
    text = " ".join(f"word{n}" for n in range(40))
    for seed in range(30):
        noisy = word_noise(text, 0.1, random.Random(seed)).split()
        assert noisy == word_noise(text, 0.1, random.Random(seed)).split()
        assert set(noisy) <= set(text.split())
        assert abs(len(noisy) - 40) <= 4
    assert word_noise("alone", 0.1, random.Random(0)) == "alone alone"


def test_every_rule_gives_a_passage_one_query_and_the_files_own_are_left_aside(
    tiny_model: GritModel, recipe: Recipe
) -> None:
    config = recipe(data={"translator": f"{__name__}:backwards"})
    texts = ["the ferry is late", "rye bread is sold"]
    augment = Augmenter(config, tiny_model)
    assert augment(passages(*texts), ()) == passages(*texts)
    found = augment(passages(*texts), ("noise", "translate"))
    for passage, text in zip(found, texts, strict=True):
        noise, translated = (question.text for question in passage.questions)
        assert passage.text == text
        assert translated == backwards([text])[0]
        assert noise != text
        assert all(question.answer == "" for question in passage.questions)


def test_what_a_rule_wrote_is_asked_for_once_and_survives_a_crash(tiny_model: GritModel, recipe: Recipe) -> None:
    config = recipe()
    first = Augmenter(config, tiny_model)(passages("the ferry is late", "rye"), ("rewrite",))
    (path,) = Path(config.runs_dir).glob("*/augmented/rewrite.jsonl")
    kept = path.read_text("utf-8")
    path.write_text(kept + '["torn', "utf-8")
    again = Augmenter(config, tiny_model)(passages("the ferry is late", "rye", "gulls"), ("rewrite",))
    assert again[:2] == first
    lines = path.read_text("utf-8").splitlines()
    assert [json.loads(line)[0] for line in lines] == ["the ferry is late", "rye", "gulls"]
    assert path.read_text("utf-8").startswith(kept)


@pytest.mark.parametrize("name", ["", "no_such_module:f", "json:no_such_function"])
def test_a_translator_that_is_not_there_is_named(tiny_model: GritModel, recipe: Recipe, name: str) -> None:
    with pytest.raises(ValueError, match=r"data\.translator: module:function"):
        Augmenter(recipe(data={"translator": name}), tiny_model)(passages("a"), ("translate",))
