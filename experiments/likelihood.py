"""How probable a model finds right answers: from text, from states in a row, and from states weighed as in use.

A few dozen answers are right or wrong by chance; the probability of each token of a right answer tells the same
differences from far fewer questions, and no answer has to be decoded.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy

from gritrag.config import RELEVANCE_BIAS
from gritrag.evaluate.quality import Asked
from gritrag.model.grit import GritModel
from gritrag.plan import relevance_biases
from gritrag.progress import ProgressBar
from gritrag.train.contexts import Contexts
from gritrag.train.data.steps import Prompted
from gritrag.train.readings import Readings

TEXT, ROW, WEIGHED = "log p from text", "log p from states in a row", "log p from states"
WAYS = (TEXT, ROW, WEIGHED)


@torch.no_grad()
def likelihoods(model: GritModel, asked: Sequence[Asked]) -> dict[str, list[float]]:
    """For each way the mean log-probability of a token of each question's first answer, its end included.

    Args:
        model: its keys can be moved.
        asked: what is read is the `gold` context. Weights come from the similarities of vectors, as where `RAG.ask` is
            given documents.

    Raises:
        ValueError: the model's keys cannot be moved.
    """
    if model.rotation is None:
        raise ValueError("this model's keys cannot be moved: its states answer only where they were read")
    contexts = Contexts(model)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for each in ProgressBar(asked, desc="weighing answers", unit="question", disable=not asked):
        hits = each.contexts["gold"]
        documents = [model.document_prompt(hit.document.content) for hit in hits]
        read = Readings(model, documents, sum(len(d.ids) for d in documents) * len(documents), False, with_states=True)
        query = Readings(model, [model.query_prompt(each.question.text, model.config.instruction)], 1, False)
        scores = (read.vectors @ query.vectors[0]).tolist()
        biases = relevance_biases([replace(h, score=s) for h, s in zip(hits, scores, strict=True)], RELEVANCE_BIAS)
        row = Prompted(
            model.question_token_ids(each.question.text, has_documents=True),
            model.answer_token_ids(each.question.answers[0]),
            tuple(range(len(hits))),
        )
        weighed = replace(row, biases=tuple(biases), abreast=(True,) * len(hits)) if any(biases) else row
        found[TEXT].append(_mean(*contexts.full([document.ids for document in documents], [row])))
        found[ROW].append(_mean(*contexts.placed(read.states, [row])))
        found[WEIGHED].append(_mean(*contexts.placed(read.states, [weighed])))
    return found


def _mean(logits_AV: torch.Tensor, target_A: torch.Tensor) -> float:
    return -cross_entropy(logits_AV.float(), target_A).item()
