"""Sentences merged into documents, and questions that are answered without being queries."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.config import SourceConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.steps import RetrievalStep

Recipe = Callable[..., TrainConfig]
Write = Callable[[Path, list[dict[str, Any]]], Path]


def test_neighbours_are_joined_with_all_their_questions(tiny_model: GritModel, recipe: Recipe) -> None:
    """Every sentence comes once in an epoch, those of a document follow each other in the file, and their questions
    stand with them; in the next epoch they are cut otherwise."""
    source = {"path": "questions.jsonl", "neighbours": 4, "merged": 3}
    config = recipe(data={"sources": [source], "chat": [], "questions_per_document": 9, "p_title": 0})
    (held,) = Mixture(config, tiny_model).sources
    order = {passage.text: row for row, passage in enumerate(held.passages)}
    seen: Counter[int] = Counter()
    sizes: set[int] = set()
    cuts: list[set[tuple[int, ...]]] = [set(), set(), set()]
    number = 0
    while sum(seen.values()) < 3 * len(order):
        epoch = sum(seen.values()) // len(order)
        for group, document in zip(held.batch(number), held.documents(number), strict=True):
            assert group == tuple(range(group[0], group[0] + len(group)))
            assert document.text == " ".join(held.passages[row].text for row in group)
            assert document.questions == tuple(q for row in group for q in held.passages[row].questions)
            cuts[epoch].add(group)
            sizes.add(len(group))
            seen.update(group)
        number += 1
    assert set(seen.values()) == {3}
    assert sizes == {1, 2, 3}
    assert cuts[0] != cuts[1]


def test_texts_of_different_titles_are_never_joined(
    tmp_path: Path, write: Write, recipe: Recipe, tiny_model: GritModel
) -> None:
    rows = [
        {"id": str(n), "question": "who?", "passage": f"Text {n}.", "answers": ["Text"], "title": f"title {n // 3}"}
        for n in range(9)
    ]
    path = write(tmp_path / "titled.jsonl", rows)
    config = recipe(data={"sources": [{"path": str(path), "neighbours": 8, "merged": 8}], "chat": []})
    (held,) = Mixture(config, tiny_model).sources
    groups = [group for number in range(20) for group in held.batch(number)]
    assert max(map(len, groups)) > 1
    assert all(len({rows[row]["title"] for row in group}) == 1 for group in groups)


def test_what_is_joined_is_no_negative_of_its_source_in_a_later_step(tiny_model: GritModel, recipe: Recipe) -> None:
    """Its sentences may stand in another document there."""
    plain = {"path": "questions.jsonl"}
    config = recipe(data={"sources": [{**plain, "neighbours": 4, "merged": 3}], "chat": []})
    steps = [Mixture(config, tiny_model).step(number) for number in range(4)]
    assert len({identity for step in steps for identity in step.identities}) == 1
    apart = [Mixture(recipe(data={"sources": [plain], "chat": []}), tiny_model).step(number) for number in range(4)]
    assert all(len(set(step.identities)) == len(step.documents) for step in apart)


def test_some_questions_are_answered_and_no_queries(tiny_model: GritModel, recipe: Recipe) -> None:
    data = {"sources": [{"path": "questions.jsonl", "neighbours": 4, "merged": 4}], "chat": []}
    generative = {"p_full": 0, "p_chat": 0, "p_unanswerable": 0, "p_question_state": 1}
    settings = {**data, "questions_per_document": 4, "queries_per_document": 1, "answers_per_step": 50}
    mixture = Mixture(recipe(data=settings, generative=generative), tiny_model)
    more = 0
    for number in range(10):
        step = mixture.step(number)
        assert isinstance(step, RetrievalStep)
        assert step.positives == list(range(len(step.documents))) == list(range(len(step.queries)))
        over_query = [answer.context for answer in step.answers if max(answer.context) >= len(step.documents)]
        assert len(over_query) == len(step.queries)  # each on the state of its own query, and nobody else's
        for context in over_query:
            (query,) = (row for row in context if row >= len(step.documents))
            assert step.positives[query - len(step.documents)] in context
        more += len(step.answers) - len(over_query)
    assert more > 10


def test_what_cannot_be_joined_is_refused(tiny_model: GritModel, recipe: Recipe, tmp_path: Path, write: Write) -> None:
    with pytest.raises(ValueError, match=r"q.jsonl: merged is 4, but only 2 neighbours .* set neighbours to 4"):
        SourceConfig(path="q.jsonl", neighbours=2, merged=4)
    rows = [{"query": f"q{n}", "pos": [f"p{n}"], "neg": [f"p{n + 1}"]} for n in range(4)]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(ValueError, match=r"pairs.jsonl has rows with negatives .* leave merged out"):
        Mixture(recipe(data={"sources": [{"path": str(pairs), "neighbours": 2, "merged": 2}]}), tiny_model)
    chat = {"path": "chat.jsonl", "neighbours": 2, "merged": 2}
    with pytest.raises(ValueError, match=r"chat.jsonl holds chats, and chats are not merged"):
        Mixture(recipe(data={"chat": [chat]}), tiny_model)
