"""What works with which architecture: each is built tiny and random, and asked for all that GritRAG does with a model.

Print the table of `docs/reference/architectures.md`:

    python tests/architecture_table.py [ARCHITECTURE...]
"""

import re
import sys
from typing import Literal, NamedTuple

import numpy as np
import torch
from architectures import make_tokenizer
from causal_lms import CAUSAL_LMS, tiny_lm
from huggingface_hub.errors import StrictDataclassError

from gritrag.model.context import Context
from gritrag.model.grit import GritModel
from gritrag.model.inner_errors import INNER_ERRORS
from gritrag.model.sampling import Sampling

Outcome = Literal["works", "falls back", "refused"]

TEXTS = ["the old bridge over the river", "a mill", "seven boats lie at the landing stage"]
QUESTION = "where do the boats lie?"
NEW_TOKENS = 6


RECURRENCE, OWN_FORWARD = ": it is the end of a recurrence[^;]*", "; documents are read by its own forward"


class Row(NamedTuple):
    """One line of the table.

    Args:
        states: where states of documents are reused: ``"anywhere"``, ``"first document"`` or ``"none"``.
    """

    architecture: str
    outcome: Outcome
    states: str
    why: str

    def __str__(self) -> str:
        return f"| {self.architecture} | {self.outcome} | {self.states} | {self.why} |"


def examine(architecture: str) -> Row:
    """Build it and use it; what is said to work is compared with the plain forward of transformers, in float32.

    Raises:
        AssertionError: something that is said to work does not, or a refusal does not name the architecture.
    """
    try:
        lm = tiny_lm(architecture)
    except (*INNER_ERRORS, StrictDataclassError) as error:
        told = re.sub(r"\s+", " ", str(error)).strip()
        return Row(architecture, "refused", "none", f"transformers does not build it: {told.split('. ')[0]}")
    try:
        model = GritModel(lm, make_tokenizer())
    except ValueError as error:
        refusal = str(error)
    else:
        return _used(architecture, model)
    assert lm.config.model_type in refusal
    return Row(architecture, "refused", "none", _without_figures(refusal))


def _used(architecture: str, model: GritModel) -> Row:
    _check_vectors(model)
    _check_generation(model)
    if not model.decoder.has_states:
        return Row(architecture, "falls back", "none", _without_figures(model.probes[2].detail))
    _check_states(model)
    if model.probes[1].outcome == "works":
        return Row(architecture, "works", "anywhere", "")
    return Row(architecture, "falls back", "first document", _without_figures(model.probes[1].detail.split(";")[0]))


def _without_figures(told: str) -> str:
    """A reason without what was measured on this machine, and without what the page says for all of its kind."""
    return re.sub(
        r" by \d\.\de[+-]\d+|: it is the end of a recurrence[^;]*|; documents are read by its own forward", "", told
    )


def _check_vectors(model: GritModel) -> None:
    vectors = model.encode_document(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(vectors[1], model.encode_document(TEXTS[1]), atol=1e-3)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


def _check_generation(model: GritModel) -> None:
    ids = model.prompts.prompt_ids(TEXTS[0])
    (done,) = model.decoder.complete([ids], Sampling(max_new_tokens=NEW_TOKENS))
    assert done.token_ids == greedy(model, ids)[: len(done.token_ids)]
    many = model.decoder.complete([ids, model.prompts.prompt_ids(TEXTS[1])], Sampling(max_new_tokens=NEW_TOKENS))
    assert many[0].token_ids == done.token_ids


def _check_states(model: GritModel) -> None:
    (reading,) = model.read_documents(TEXTS[:1])
    np.testing.assert_allclose(reading.vector, model.encode_document(TEXTS[0]), atol=1e-4)
    question = model.prompts.prompt_ids(QUESTION)
    context, sampling = Context.of(reading.state, question), Sampling(max_new_tokens=NEW_TOKENS)
    decoding = model.decoder.decode([context], sampling)
    for _ in decoding:
        pass
    (done,) = decoding.completions
    assert context.cached_tokens == len(reading.state)
    assert done.token_ids == greedy(model, context.token_ids)[: len(done.token_ids)]


@torch.inference_mode()
def greedy(model: GritModel, ids: list[int]) -> list[int]:
    """What the model says next, all of the text read again for every token."""
    read = list(ids)
    for _ in range(NEW_TOKENS):
        read.append(int(model.lm(input_ids=torch.tensor([read])).logits[0, -1].argmax()))
    return read[len(ids) :]


if __name__ == "__main__":
    for name in sys.argv[1:] or CAUSAL_LMS:
        print(examine(name), flush=True)
