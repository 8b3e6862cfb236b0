"""Dress: rows of a source become the token ids of a step, in the model's template."""

import random
from collections.abc import Sequence
from dataclasses import replace

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

Asked = tuple[int, int | None, Question]
"""Row of the own document, row of the query or None where the question is none, and the question."""


P_FOUND_FIRST = 0.85
"""Share of weighed contexts in which the own document has the best score, as hybrid search would about find it."""


def identity(text: str) -> int:
    """A number of 63 bits that tells texts apart: it fits in an int64."""
    return xxh3_64_intdigest(text.encode("utf-8")) >> 1


class Dress:
    """Rows become token ids: passages cut, questions chosen, contexts drawn, everything in the model's template."""

    def __init__(self, model: GritModel, config: TrainConfig) -> None:
        self._model, self._template, self._encoder = model, model.template, model.encoder
        self._data: DataConfig = config.data
        self._generative: GenerativeConfig = config.generative
        self._instruction = config.instruction
        self._in_batch_negatives = config.contrastive.in_batch_negatives
        self._demonstrations = config.parts.demonstrations
        self._ends = end_token_ids(model.lm, model.tokenizer)

    def passages(
        self, source: Source, passages: Sequence[Passage], rng: random.Random, is_full: bool = False
    ) -> RetrievalStep:
        """Cut and dress one batch of passages with their questions and negatives."""
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
            negatives = questions[0].negatives if questions else ()
            identities += [identity(known) for known in (passage.identity or passage.text, *negatives)]
            for text in [Document(kept, title=title).content, *negatives]:
                texts.append(text)
                documents.append(self.document(text))
            own.append(list(range(row, len(documents))))
            compared = questions[: self._data.queries_per_document]
            free = self._data.questions_per_document - len(questions)
            made = ask(kept, min(source.config.gaps, free), rng) if source.config.gaps else []
            asked += [(row, len(queries) + n if n < len(compared) else None, q) for n, q in enumerate(questions)]
            asked += [(row, None, question) for question in made]
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
        return self._model.document_prompt(text)

    def query(self, text: str, instruction: str | None) -> TokenIds:
        return self._model.query_prompt(text, instruction)

    def _shown(self, positives: Sequence[int], rng: random.Random) -> list[list[int]]:
        """Demonstrations of each query: none to the most, from the batch, and never of its own document."""
        shown = []
        for own in positives:
            others = [query for query, document in enumerate(positives) if document != own]
            shown.append(rng.sample(others, min(rng.randint(0, self._demonstrations), len(others))))
        return shown

    def prompted(self, question: str, answer: str, context: tuple[int, ...] = (), start: int = 0) -> Prompted:
        question_ids = self._encoder.encode(self._template.question_segments(question)).ids
        return Prompted(question_ids, self._model.answer_token_ids(answer), context, start)

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
        answers = []
        answerable = [(row, query, question) for row, query, question in asked if question.answer]
        for row, query, question in _some(answerable, self._data.answers_per_step, rng):
            others = rng.sample([other for other in range(len(documents)) if other != row], len(documents) - 1)
            if config.p_near and rng.random() < config.p_near:
                others.sort(key=lambda other: abs(other - row))
            size, answer = rng.choice(config.documents_per_context), question.answer
            context = [row]
            without = [other for other in others if answer.lower() not in texts[other].lower()]
            if without and rng.random() < config.p_unanswerable:
                context, others, answer = [without[0]], without[1:], config.not_found
            room = config.max_context_tokens - len(documents[context[0]].ids)
            for other in others[: size - 1]:
                if len(documents[other].ids) <= room:
                    context.append(other)
                    room -= len(documents[other].ids)
            best = context[0]
            rng.shuffle(context)
            start = rng.randint(0, config.max_start)
            drawn = self.prompted(question.text, answer, tuple(context), start)
            if config.p_weighed and len(context) > 1 and rng.random() < config.p_weighed:
                biases = _biases(len(context), context.index(best), rng)
                drawn = replace(drawn, biases=biases, abreast=(True,) * len(context))
            if query is not None and config.p_question_state and rng.random() < config.p_question_state:
                drawn = self._over_query(drawn, len(documents) + query, is_last=rng.random() < 0.5)
            answers.append(drawn)
        return answers

    def _over_query(self, prompted: Prompted, row: int, is_last: bool) -> Prompted:
        """The question is not read again: its query stands in the context, before or behind the documents."""
        start_ids = self._encoder.encode(self._template.answer_start_segments(is_last)).ids
        first, last = ((), (row,)) if is_last else ((row,), ())
        return replace(
            prompted,
            question_ids=start_ids,
            context=(*first, *prompted.context, *last),
            biases=(*[0.0] * len(first), *prompted.biases, *[0.0] * len(last)) if prompted.biases else (),
            abreast=(*[False] * len(first), *prompted.abreast, *[False] * len(last)) if prompted.abreast else (),
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
        """Dress chats with the model's own chat template; those that are too long are cut."""
        ids_of, is_target_of = [], []
        for chat in chats:
            ids, is_target = self.chat(chat)
            ids_of.append(ids[: self._data.max_chat_tokens])
            is_target_of.append(is_target[: self._data.max_chat_tokens])
        return ChatStep(source.name, ids_of, is_target_of)

    def chat(self, chat: Chat) -> tuple[list[int], list[bool]]:
        """Token ids of one chat, and which are the assistant's, its end token included."""
        segments = chat_segments(
            list(chat.messages), lambda turns: self._model.render(turns, add_generation_prompt=False)
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


def _biases(count: int, best: int, rng: random.Random) -> tuple[float, ...]:
    """Of `count` documents, as a search might have scored them that puts document `best` first in most cases."""
    scores = [rng.random() for _ in range(count)]
    scores[best] = 1.0
    if rng.random() >= P_FOUND_FIRST:
        scores[best] = rng.uniform(0.5, 1.0)
        scores[rng.choice([row for row in range(count) if row != best])] = 1.0
    return tuple(RELEVANCE_BIAS * (score - 1) for score in scores)


def _some(asked: Sequence[Asked], count: int, rng: random.Random) -> list[Asked]:
    """So many of them; made ones fill what the others leave free."""
    given = [one for one in asked if not one[-1].is_made]
    made = [one for one in asked if one[-1].is_made]
    chosen = rng.sample(given, min(len(given), count))
    return [*chosen, *rng.sample(made, min(len(made), count - len(chosen)))]
