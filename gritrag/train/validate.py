"""A look at held-out rows while training: does it find, and does it answer as well from states as from full attention?

Shape letters: `Q` queries, `N` documents.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from gritrag.train.config import TrainConfig
from gritrag.train.data.collate import Collator
from gritrag.train.data.config import SourceConfig
from gritrag.train.data.rows import Question, read_source
from gritrag.train.data.steps import Prompted, RetrievalStep
from gritrag.train.read_once import ReadOnce


class Validation:
    """A fixed sample of each validation file.

    Args:
        config: the recipe.
        read_once: the model in training.

    Raises:
        ValueError: a file cannot be read or holds no question rows.
    """

    def __init__(self, config: TrainConfig, read_once: ReadOnce) -> None:
        self._read_once = read_once
        self._samples = [self._sample(config, path) for path in config.validation.paths]

    def _sample(self, config: TrainConfig, path: str) -> RetrievalStep:
        """One question for each of some documents, and contexts for some of those questions. What a question needs
        beside its document stands behind all of these."""
        settings, collator = config.validation, Collator(self._read_once.model, config)
        passages, _ = read_source(Path(config.data.data_dir) / path, SourceConfig(path=path))
        if not passages:
            raise ValueError(f"validation.paths: {path} holds chats; name files of questions")
        rng = random.Random(f"{config.seed}/{path}")
        chosen: list[tuple[str, Question]] = []
        for passage in rng.sample(passages, len(passages)):
            text, questions = collator.cut(passage)
            if questions and len(chosen) < settings.documents:
                chosen.append((text, rng.choice(questions)))
        if not chosen:
            raise ValueError(
                f"validation.paths: no passage of {path} holds an answer within its first "
                f"{config.data.max_document_tokens} tokens; raise data.max_document_tokens, or leave the file out"
            )
        documents = [collator.document(text) for text, _ in chosen]
        positives = [row for row, (_, question) in enumerate(chosen) if question.is_query]
        queries = [collator.query(chosen[row][1].text, config.instruction) for row in positives]
        answers: list[Prompted] = []
        for row, (_, question) in enumerate(chosen):
            if question.answer and len(answers) < settings.answers:
                others = [other for other in range(len(chosen)) if other != row]
                needed = range(len(documents), len(documents) + len(question.evidence))
                documents += [collator.cut_document(text) for text in question.evidence]
                context = [row, *needed, *rng.sample(others, min(settings.distractors, len(others)))]
                rng.shuffle(context)
                answers.append(collator.prompted(question.text, question.answer, tuple(context)))
        name = Path(path).name.removesuffix(".jsonl")
        return RetrievalStep(name, documents, queries, positives, None, answers)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """`<file>/recall@1`, `<file>/placed` and `<file>/full` (loss per answer token)."""
        found: dict[str, float] = {}
        for sample in self._samples:
            documents = self._read_once.read(sample.documents)
            if sample.queries:
                queries = self._read_once.read(sample.queries, with_states=False)
                best_Q = (queries.vectors @ documents.vectors.T).argmax(1).tolist()
                hits = [best == right for best, right in zip(best_Q, sample.positives, strict=True)]
                found[f"{sample.source}/recall@1"] = sum(hits) / len(hits)
            if sample.answers:
                ids = [document.ids for document in sample.documents]
                states, contexts = documents.states, self._read_once.contexts
                placed = [contexts.placed(states, c) for c in self._read_once.chunks(sample, is_full=False)]
                full = [contexts.full(ids, c) for c in self._read_once.chunks(sample, is_full=True)]
                found[f"{sample.source}/placed"], found[f"{sample.source}/full"] = _loss(placed), _loss(full)
        return found


def _loss(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Per answer token."""
    logits, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return torch.nn.functional.cross_entropy(logits.float(), targets).item()
