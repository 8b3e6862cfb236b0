"""Collation: rows of a source become the token ids of a step, in the model's template."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from gritrag.config import RELEVANCE_BIAS
from gritrag.model.decode import end_token_ids
from gritrag.model.grit import GritModel
from gritrag.prompts import chat_segments
from gritrag.records import Document
from gritrag.tokens import TokenIds
from gritrag.train.config import DataConfig, GenerativeConfig, TrainConfig
from gritrag.train.data.cloze import ask
from gritrag.train.data.rows import Chat, Passage, Question
from gritrag.train.data.sentences import sentence_ends
from gritrag.train.data.source import Source
from gritrag.train.data.steps import ChatStep, Prompted, RetrievalStep


class Asked(NamedTuple):
    """A question that may be answered.

    Args:
        row: of its document.
        query: row of the query, None where it is none.
        question: see `Question`.
        evidence: rows of further documents that the answer needs.
        beside: rows of the other documents of its row of the file, which do not hold the answer.
    """

    row: int
    query: int | None
    question: Question
    evidence: tuple[int, ...] = ()
    beside: tuple[int, ...] = ()

    @property
    def needed(self) -> tuple[int, ...]:
        """Rows of all documents that the answer needs."""
        return (self.row, *self.evidence)


P_FOUND_FIRST = 0.85
"""Share of contexts with a relevance bias whose own document has the best score, about as hybrid search finds it."""

STRENGTHS = (0.25, 0.5, 1.0, 1.0)
"""Shares of the full relevance bias, one of which a context is given."""

LONGEST_JOINED = 12
"""Words of an answer that may be joined with that of another question."""


def identity(text: str) -> int:
    """A number of 63 bits that tells texts apart: it fits in an int64."""
    return xxh3_64_intdigest(text.encode("utf-8")) >> 1


class Collator:
    """Rows become token ids: passages cut, questions chosen, contexts drawn, everything in the model's template."""

    def __init__(self, model: GritModel, config: TrainConfig) -> None:
        self._model, self._template, self._encoder = model, model.prompts.template, model.prompts.encoder
        self._data: DataConfig = config.data
        self._generative: GenerativeConfig = config.generative
        self._instruction = config.instruction
        self._in_batch_negatives = config.contrastive.in_batch_negatives
        self._demonstrations = config.parts.demonstrations
        self._ends = end_token_ids(model.lm, model.tokenizer)

    def passages(
        self, source: Source, passages: Sequence[Passage], rng: random.Random, is_full: bool = False
    ) -> RetrievalStep:
        """Cut one batch of passages and make token ids of them with their questions and negatives."""
        documents: list[TokenIds] = []
        texts: list[str] = []
        queries: list[TokenIds] = []
        positives: list[int] = []
        own: list[list[int]] = []  # negatives of each document's questions
        asked: list[Asked] = []
        identities: list[int] = []
        for passage in passages:
            kept, questions = self.cut(passage)
            questions = rng.sample(questions, min(len(questions), self._data.questions_per_document))
            title = passage.title if rng.random() < self._data.p_title else ""
            row = len(documents)
            evidence, negatives = (questions[0].evidence, questions[0].negatives) if questions else ((), ())
            identities += [identity(known) for known in (passage.identity or passage.text, *evidence, *negatives)]
            for text in [Document(kept, title=title).content, *evidence, *negatives]:
                texts.append(text)
                documents.append(self.document(text))
            needed, beside = tuple(range(row, row + 1 + len(evidence))), tuple(range(row, len(documents)))
            own.append([row, *beside[len(needed) :]])
            compared = [q for q in questions if q.is_query][: self._data.queries_per_document]
            free = self._data.questions_per_document - len(questions)
            made = ask(kept, min(source.config.cloze_questions, free), rng) if source.config.cloze_questions else []
            numbers = {question: len(queries) + number for number, question in enumerate(compared)}
            asked += [Asked(row, numbers.get(q), q, needed[1:], beside[len(needed) :]) for q in questions]
            asked += [Asked(row, None, question) for question in made]
            for question in compared:
                instruction = question.instruction or source.config.instruction or self._instruction
                queries.append(self.query(question.text, instruction))
                positives.append(row)
        own_rows = {rows[0]: rows for rows in own}
        in_batch = self._in_batch_negatives and source.config.in_batch_negatives
        candidates = None if in_batch else [own_rows[row] for row in positives]
        answers = self._answers(asked, texts, documents, rng)
        shown = self._shown(positives, rng) if self._demonstrations else None
        return RetrievalStep(
            source.name,
            documents,
            queries,
            positives,
            candidates,
            answers,
            is_full,
            shown,
            identities=tuple(identities),
        )

    def document(self, text: str) -> TokenIds:
        """A document in the model's template."""
        return self._model.prompts.document(text)

    def query(self, text: str, instruction: str | None) -> TokenIds:
        """A query in the model's template."""
        return self._model.prompts.query(text, instruction)

    def _shown(self, positives: Sequence[int], rng: random.Random) -> list[list[int]]:
        """Demonstrations of each query: none to the most, from the batch, and never of its own document."""
        shown = []
        for own in positives:
            others = [query for query, document in enumerate(positives) if document != own]
            shown.append(rng.sample(others, min(rng.randint(0, self._demonstrations), len(others))))
        return shown

    def prompted(self, question: str, answer: str, context: tuple[int, ...] = (), start: int = 0) -> Prompted:
        """A question behind a context, and its answer with the end token."""
        question_ids = self._encoder.encode(self._template.question_segments(question)).ids
        return Prompted(question_ids, self._model.prompts.answer_ids(answer), context, start)

    def _answers(
        self,
        asked: Sequence[Asked],
        texts: Sequence[str],
        documents: Sequence[TokenIds],
        rng: random.Random,
    ) -> list[Prompted]:
        """Draw a context for some of the questions: their own document among others of the batch, in any order.

        Args:
            asked: what may be answered.
        """
        config = self._generative
        answerable = [one for one in asked if one.question.answer or one.question.is_unanswerable]
        chosen = _some(answerable, self._data.answers_per_step, rng)
        answers = []
        for one in chosen:
            pair = one
            if config.p_two_documents and rng.random() < config.p_two_documents:
                pair = _with_another(one, answerable, rng)
            answers.append(self._answer(pair, texts, documents, rng))
        return answers

    def _answer(
        self, asked: Asked, texts: Sequence[str], documents: Sequence[TokenIds], rng: random.Random
    ) -> Prompted:
        """One question with a context of its documents and others, and its answer."""
        config, question = self._generative, asked.question
        answer = config.not_found if question.is_unanswerable else question.answer
        needed, others = list(asked.needed), self._others(asked, len(documents), rng)
        if not question.is_unanswerable and not asked.evidence and rng.random() < config.p_unanswerable:
            without = [row for row in others if answer.lower() not in texts[row].lower()]
            if without:
                needed, others, answer = without[:1], without[1:], config.not_found
        size = rng.choice(config.documents_per_context)
        if asked.beside:  # passages that belong together are seen together
            size, others = len(others) + 1, [row for row in others if row in asked.beside]
        context, room = needed, config.max_context_tokens - sum(len(documents[row].ids) for row in needed)
        for row in others[: max(0, size - len(needed))]:
            if len(documents[row].ids) <= room:
                context = [*context, row]
                room -= len(documents[row].ids)
        rng.shuffle(context := list(context))
        drawn = self.prompted(question.text, answer, tuple(context), rng.randint(0, config.max_start))
        if config.p_relevance_bias and len(context) > 1 and rng.random() < config.p_relevance_bias:
            biases = _biases(len(context), [context.index(row) for row in needed], rng)
            drawn = replace(drawn, biases=biases, shares_positions=(True,) * len(context))
        if asked.query is not None and config.p_question_state and rng.random() < config.p_question_state:
            drawn = self._over_query(drawn, len(documents) + asked.query, is_last=rng.random() < 0.5)
        return drawn

    def _others(self, asked: Asked, count: int, rng: random.Random) -> list[int]:
        """Rows of other documents as they are taken: in random order, or the nearest in the batch first."""
        left = [row for row in range(count) if row not in asked.needed]
        others = rng.sample(left, len(left))
        if self._generative.p_near and rng.random() < self._generative.p_near:
            others.sort(key=lambda row: abs(row - asked.row))
        return others

    def _over_query(self, prompted: Prompted, row: int, is_last: bool) -> Prompted:
        """The question is not read again: its query stands in the context, before or behind the documents."""
        start_ids = self._encoder.encode(self._template.answer_start_segments(is_last)).ids
        first, last = ((), (row,)) if is_last else ((row,), ())
        return replace(
            prompted,
            question_ids=start_ids,
            context=(*first, *prompted.context, *last),
            biases=(*[0.0] * len(first), *prompted.biases, *[0.0] * len(last)) if prompted.biases else (),
            shares_positions=(*[False] * len(first), *prompted.shares_positions, *[False] * len(last))
            if prompted.shares_positions
            else (),
        )

    def cut(self, passage: Passage) -> tuple[str, list[Question]]:
        """A passage within `max_document_tokens`, and its questions that can still be answered from what is kept.

        The beginning is kept, or a stretch that begins at the sentence of an answer if the beginning holds none.
        Answers in words of their own (found nowhere in the passage) are dropped with what they may have summed up.
        """
        text = passage.text.strip()
        kept = self._fit(text)
        if len(kept) == len(text):
            return text, list(passage.questions)
        questions = [q for q in passage.questions if q.answer.lower() in kept.lower()]
        if questions:
            return kept, questions
        for question in passage.questions:
            found = text.lower().find(question.answer.lower())
            if found >= 0:
                starts = [0, *sentence_ends(text)]
                kept = self._fit(text[max(start for start in starts if start <= found) :].strip())
                questions = [q for q in passage.questions if q.answer.lower() in kept.lower()]
                if questions:
                    return kept, questions
        return kept, []

    def _fit(self, text: str) -> str:
        """The longest beginning that fits, up to the last end of a sentence in it, if that is not too far back."""
        limit = self._data.max_document_tokens
        encoded = self._model.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        if len(encoded["input_ids"]) <= limit:
            return text
        end = encoded["offset_mapping"][limit - 1][1]
        ends = [place for place in sentence_ends(text[: end + 1]) if place > end // 2]
        return text[: ends[-1] if ends else end].strip()

    def chats(self, source: Source, chats: Sequence[Chat]) -> ChatStep:
        """Collator chats with the model's own chat template; those that are too long are cut."""
        ids_of, is_target_of = [], []
        for chat in chats:
            ids, is_target = self.chat(chat)
            ids_of.append(ids[: self._data.max_chat_tokens])
            is_target_of.append(is_target[: self._data.max_chat_tokens])
        return ChatStep(source.name, ids_of, is_target_of)

    def chat(self, chat: Chat) -> tuple[list[int], list[bool]]:
        """Token ids of one chat, and which are the assistant's, its end token included."""
        segments = chat_segments(
            list(chat.messages), lambda turns: self._model.prompts.render(turns, add_generation_prompt=False)
        )
        roles = iter([message["role"] for message in chat.messages])
        ids: list[int] = []
        is_target: list[bool] = []
        is_after_answer = False
        for segment in segments:
            new = self._encoder.encode([segment]).ids
            if segment.is_content:
                is_after_answer = next(roles) == "assistant"
                is_target += [is_after_answer] * len(new)
            else:
                is_target += [is_after_answer and n == 0 and i in self._ends for n, i in enumerate(new)]
                is_after_answer = False
            ids += new
        return ids, is_target


def _with_another(one: Asked, asked: Sequence[Asked], rng: random.Random) -> Asked:
    """A question together with one on another document, the nearest of a few that chance draws; as it is where there
    is no other, or where answers are too long to be told apart in a sentence."""

    def is_short(other: Asked) -> bool:
        question = other.question
        return bool(question.answer) and not other.evidence and len(question.answer.split()) <= LONGEST_JOINED

    others = [other for other in asked if is_short(other) and other.row != one.row]
    if not others or not is_short(one) or one.question.is_unanswerable:
        return one
    few = rng.sample(others, min(len(others), 3))
    other = min(few, key=lambda candidate: abs(candidate.row - one.row))
    first, second = (one, other) if rng.random() < 0.5 else (other, one)
    text = second.question.text
    text = text if text.split()[0].isupper() else text[0].lower() + text[1:]
    joined = Question(
        f"{first.question.text.strip()} And {text}", f"{first.question.answer} and {second.question.answer}", None, ()
    )
    return Asked(first.row, None, joined, evidence=(second.row,))


def _biases(count: int, needed: Sequence[int], rng: random.Random) -> tuple[float, ...]:
    """Of `count` documents, as a search might have scored them: those that are needed first in most cases.

    How strongly scores weigh differs, so that answers do not hang on one strength.
    """
    scores = [rng.random() for _ in range(count)]
    for row in needed:
        scores[row] = 1.0 if row == needed[0] else rng.uniform(0.7, 1.0)
    if rng.random() >= P_FOUND_FIRST:
        for row in needed:
            scores[row] = rng.uniform(0.5, 1.0)
        others = [row for row in range(count) if row not in needed]
        scores[rng.choice(others or list(needed))] = 1.0
    strength = RELEVANCE_BIAS * rng.choice(STRENGTHS)
    return tuple(strength * (score - 1) for score in scores)


def _some(asked: Sequence[Asked], count: int, rng: random.Random) -> list[Asked]:
    """So many of them; made ones fill what the others leave free."""
    given = [one for one in asked if not one.question.is_made]
    made = [one for one in asked if one.question.is_made]
    chosen = rng.sample(given, min(len(given), count))
    return [*chosen, *rng.sample(made, min(len(made), count - len(chosen)))]
