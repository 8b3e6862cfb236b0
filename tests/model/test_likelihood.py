"""Ranking from states: what a forward over states says of a question is what reading document and question says."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from architectures import CONFIGS
from likelihoods import read_in_full

from gritrag.model import likelihood
from gritrag.model.grit import GritModel
from gritrag.model.likelihood import Scored

TEXTS = ["the river", "a much longer text about a bridge over the river", "short", "nobody crosses it in the winter"]
QUESTION = "who crosses the bridge?"
WITH_STATES = sorted(set(CONFIGS) - {"mamba"})


@pytest.mark.parametrize("architecture", WITH_STATES)
def test_likelihood_from_states_is_that_of_reading_in_full(
    architecture: str, make_model: Callable[..., GritModel]
) -> None:
    model = make_model(architecture)
    states = [reading.state for reading in model.read_documents(TEXTS)]
    found = model.question_log_likelihoods(QUESTION, states)
    scored = model.prompts.scored_question(QUESTION)
    expected = [float(read_in_full(model, model.document_token_ids(text), scored).mean()) for text in TEXTS]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected) > 0.01, "documents that all say the same of a question are no test"


@pytest.mark.parametrize("reading", ["causal", "bidirectional"])
def test_one_batch_is_one_by_one_in_any_order(
    reading: str, make_model: Callable[..., GritModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama", reading=reading)
    states = [reading.state for reading in model.read_documents(TEXTS)]
    together = model.question_log_likelihoods(QUESTION, states)
    alone = [model.question_log_likelihoods(QUESTION, [state])[0] for state in states]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(
        model.question_log_likelihoods(QUESTION, [states[n] for n in order]), together[order], atol=1e-5
    )
    monkeypatch.setattr(likelihood, "MOST_COLUMNS", 2 * len(states[1]))
    np.testing.assert_allclose(model.question_log_likelihoods(QUESTION, states), together, atol=1e-5)


def test_a_batch_is_one_forward(tiny_model: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [reading.state for reading in tiny_model.read_documents(TEXTS)]
    rows = []
    forward = type(tiny_model.forwards.best)
    plain = forward.log_probabilities

    def counted(self: object, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        rows.append(len(ids))
        return plain(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(forward, "log_probabilities", counted)
    tiny_model.question_log_likelihoods(QUESTION, states)
    assert rows == [len(TEXTS)]


def test_only_the_words_of_the_question_are_scored(tiny_model: GritModel) -> None:
    scored = tiny_model.prompts.scored_question(QUESTION)
    assert tiny_model.tokenizer.decode(scored.ids[-scored.scored :]) == QUESTION
    assert Scored.of([5, 6, 7, 8], [False, True, True, False]) == Scored((5, 6, 7), 2)
    assert Scored.of([5, 6], [True, True]) == Scored((5, 6), 1), "nothing says how probable the first token of all is"
    assert Scored.of([5], [True]).scored == 0


def test_nothing_to_rank_and_what_is_too_long(tiny_model: GritModel) -> None:
    assert tiny_model.question_log_likelihoods(QUESTION, []).shape == (0,)
    (long,) = tiny_model.read_documents(["word " * 98])
    with pytest.raises(ValueError, match="index shorter chunks"):
        tiny_model.question_log_likelihoods("why " * 20, [long.state])
    with pytest.raises(ValueError, match="empty"):
        tiny_model.question_log_likelihoods(" ", [long.state])
