"""How probable a question is behind a document, by transformers alone: one ordinary forward over the tokens of both."""

from collections.abc import Sequence

import torch

from gritrag.model.grit import GritModel
from gritrag.model.likelihood import Scored


def read_in_full(model: GritModel, document_ids: Sequence[int], scored: Scored) -> torch.Tensor:
    """Log-probability of each scored token, `[S]`."""
    ids = torch.tensor([[*document_ids, *scored.ids]])
    with torch.inference_mode():
        logs = model.lm(input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
    return logs.gather(-1, ids[0, 1:, None])[-scored.scored :, 0]


def check_as_read_in_full(model: GritModel, texts: Sequence[str], question: str) -> None:
    """From states it is the same, token by token."""
    states = [reading.state for reading in model.read_documents(texts)]
    scored = model.prompts.scored_question(question)
    for state, log_S in zip(states, model.decoder.log_likelihoods(states, scored), strict=True):
        expected_S = read_in_full(model, state.token_ids.tolist(), scored)
        torch.testing.assert_close(log_S, expected_S, atol=1e-4, rtol=1e-4)
