"""Collation: rows of a source become the token ids of a step, in the model's template."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from xxhash import xxh3_64_intdigest

from gritrag.model.grit import GritModel
from gritrag.model.output import end_token_ids
from gritrag.prompts import chat_segments
from gritrag.records import Document
from gritrag.tokens import TokenIds
from gritrag.train.config import TrainConfig
from gritrag.train.data.cloze import ask
from gritrag.train.data.config import DataConfig
from gritrag.train.data.cut_out import cut_out
from gritrag.train.data.draw import Asked, Drawn, draw
from gritrag.train.data.rows import Chat, Passage, Question
from gritrag.train.data.sentences import sentence_ends
from gritrag.train.data.source import Source
from gritrag.train.data.steps import ChatStep, Prompted, RetrievalStep
from gritrag.train.data.wordings import WORDINGS, Wording
from gritrag.train.objectives.config import GenerativeConfig

LONGEST_FRAME = 64
"""Tokens that chat templates write around a message, at most: those of short chats need not be counted."""


def identity(text: str) -> int:
    """A number of 63 bits that tells texts apart: it fits in an int64."""
    return xxh3_64_intdigest(text.encode("utf-8")) >> 1


@dataclass
class _Batch:
    """What the passages of a step have given so far; see `RetrievalStep`.

    Args:
        texts: of the documents.
        asked: questions that may be answered.
        compared: of the row of each passage, the rows that its questions are compared with where others do not count.
    """

    documents: list[TokenIds] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    queries: list[TokenIds] = field(default_factory=list)
    positives: list[int] = field(default_factory=list)
    compared: dict[int, list[int]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    identities: list[int] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)


class Collator:
    """Rows become token ids: passages cut, questions chosen, contexts drawn, everything in the model's template.

    Raises:
        ValueError: `p_document_chat` of a model without a chat template.
    """

    def __init__(self, model: GritModel, config: TrainConfig) -> None:
        self._model, self._template, self._encoder = model, model.prompts.template, model.prompts.encoder
        self._data: DataConfig = config.data
        self._generative: GenerativeConfig = config.generative
        self._instruction = config.instruction
        self._in_batch_negatives = config.contrastive.in_batch_negatives
        self._demonstrations = config.parts.demonstrations
        self._ends = end_token_ids(model.lm, model.tokenizer)
        if self._generative.p_document_chat and not (model.tokenizer.chat_template or self._template.chat):
            raise ValueError(f"{config.base} has no chat template to ask in: generative.p_document_chat=0")

    def passages(
        self, source: Source, passages: Sequence[Passage], rng: random.Random, is_full: bool = False
    ) -> RetrievalStep:
        """Cut one batch of passages and make token ids of them with their questions and negatives."""
        batch = _Batch()
        for passage in passages:
            self._add(batch, source, passage, rng)
        in_batch = self._in_batch_negatives and source.config.in_batch_negatives
        answers = self._answers(batch.asked, batch.texts, batch.documents, rng)
        shown = self._shown(batch.positives, rng) if self._demonstrations else None
        return RetrievalStep(
            source.name,
            batch.documents,
            batch.queries,
            batch.positives,
            None if in_batch else [batch.compared[row] for row in batch.positives],
            answers,
            is_full,
            shown,
            identities=tuple(batch.identities),
            contents=tuple(batch.contents),
        )

    def _add(self, batch: _Batch, source: Source, passage: Passage, rng: random.Random) -> None:
        """A passage with its questions, and the documents that belong to them."""
        kept, title, every = self._drawn_from(source, passage, rng)
        questions = [question for question in every if not question.is_made]
        row = len(batch.documents)
        evidence, negatives = (questions[0].evidence, questions[0].negatives) if questions else ((), ())
        whole = Document(passage.text, title=passage.title).content
        own, *beside_it = (identity(known.strip()) for known in (whole, *evidence, *negatives))
        batch.contents += [own, *beside_it]
        batch.identities += [identity(passage.identity) if passage.identity else own, *beside_it]
        for text in [Document(kept, title=title).content, *map(self._fit, evidence), *map(self._fit, negatives)]:
            batch.texts.append(text)
            batch.documents.append(self.document(text))
        needed, beside = tuple(range(row, row + 1 + len(evidence))), tuple(range(row, len(batch.documents)))
        batch.compared[row] = [row, *beside[len(needed) :]]
        compared = [q for q in questions if q.is_query][: self._data.queries_per_document]
        numbers = {question: len(batch.queries) + number for number, question in enumerate(compared)}
        batch.asked += [Asked(row, numbers.get(q), q, needed[1:], beside[len(needed) :]) for q in questions]
        batch.asked += [Asked(row, None, question) for question in every if question.is_made]
        for question in compared:
            instruction = question.instruction or source.config.instruction or self._instruction
            batch.queries.append(self.query(question.text, instruction))
            batch.positives.append(row)

    def _drawn_from(self, source: Source, passage: Passage, rng: random.Random) -> tuple[str, str, list[Question]]:
        """What is kept of a passage, its title, and the questions that are drawn or made of it."""
        kept, questions = self.cut(passage)
        questions = rng.sample(questions, min(len(questions), self._data.questions_per_document))
        title = passage.title if rng.random() < self._data.p_title else ""
        free = self._data.questions_per_document - len(questions)
        made = ask(kept, min(source.config.cloze_questions, free), rng) if source.config.cloze_questions else []
        kept, every = self._cut_out(kept, title, [*questions, *made], rng)
        return kept, title, every

    def document(self, text: str) -> TokenIds:
        """A document in the model's template."""
        return self._model.prompts.document(text)

    def cut_document(self, text: str) -> TokenIds:
        """The beginning of a document, within `max_document_tokens`."""
        return self.document(self._fit(text))

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
        self, asked: Sequence[Asked], texts: Sequence[str], documents: Sequence[TokenIds], rng: random.Random
    ) -> list[Prompted]:
        """Questions in the contexts that are drawn for them."""
        lengths = [len(document.ids) for document in documents]
        drawn = draw(asked, texts, lengths, self._data.answers_per_step, self._generative, rng)
        return [self._prompted(each, len(documents), rng) for each in drawn]

    def _prompted(self, drawn: Drawn, documents: int, rng: random.Random) -> Prompted:
        """As `RAG` asks; or in a chat over the documents, or over the state of the question's own query."""
        config = self._generative
        is_chat = bool(config.p_document_chat) and rng.random() < config.p_document_chat
        if is_chat:
            wording = rng.choice(WORDINGS)
            prompted = self.in_chat(wording, drawn.question, drawn.answer, drawn.context, drawn.start)
        else:
            prompted = self.prompted(drawn.question, drawn.answer, drawn.context, drawn.start)
        if drawn.biases:
            prompted = replace(prompted, biases=drawn.biases, shares_positions=(True,) * len(drawn.context))
        if drawn.query is None or is_chat or not config.p_question_state or rng.random() >= config.p_question_state:
            return prompted
        return self._over_query(prompted, documents + drawn.query, is_last=rng.random() < 0.5)

    def in_chat(
        self, wording: Wording, question: str, answer: str, context: tuple[int, ...], start: int = 0
    ) -> Prompted:
        """A question in a chat over documents, laid out as `ChatGritRAG` does it, and its answer with the end token."""
        turns = wording.turns(question, context, self._generative.not_found)
        first = context if wording.has_documents_first else ()
        before: list[tuple[int, ...]] = []
        run: list[int] = []
        for part in (*first, *self._model.prompts.chat_parts(turns)):
            if isinstance(part, int):
                before.append(tuple(run))
                run = []
            else:
                run += part
        answer_ids = [*self._encoder.content_ids(answer), *self._chat_end]
        return Prompted(run, answer_ids, context, start, before_ids=tuple(before))

    @cached_property
    def _chat_end(self) -> list[int]:
        """What ends a turn of the assistant: as the chat template has it, or else what ends any text."""
        ids, is_target = self.chat(Chat(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})))
        targets = [i for i, wanted in zip(ids, is_target, strict=True) if wanted]
        return targets[len(self._encoder.content_ids("b")) :] or [self._model.tokenizer.eos_token_id]

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

        The beginning is kept, or a stretch that begins at the sentence of an answer if the beginning holds none; of
        further passages that an answer needs, the beginning. Answers in words of their own (found nowhere in the
        passages) are dropped with what they may have summed up.
        """
        text = passage.text.strip()
        kept = self._fit(text)
        questions = [q for q in passage.questions if self._survives(q, text, kept)]
        if questions or len(kept) == len(text):
            return kept, questions
        for question in passage.questions:
            found = text.lower().find(question.answer.lower())
            if found >= 0:
                starts = [0, *sentence_ends(text)]
                kept = self._fit(text[max(start for start in starts if start <= found) :].strip())
                questions = [q for q in passage.questions if self._survives(q, text, kept)]
                if questions:
                    return kept, questions
        return kept, []

    def _survives(self, question: Question, text: str, kept: str) -> bool:
        """Whether what is kept of its passages holds its answer, or all of them are kept."""
        needed, left = (text, *question.evidence), (kept, *map(self._fit, question.evidence))
        return needed == left or any(question.answer.lower() in part.lower() for part in left)

    def _cut_out(
        self, text: str, title: str, questions: list[Question], rng: random.Random
    ) -> tuple[str, list[Question]]:
        """Some passages lose the sentence with an answer, as many another one; see `cut_out`."""
        share = self._generative.p_answer_cut_out
        drawn = rng.random() if share else 1.0
        if drawn >= 2 * share:
            return text, questions
        return cut_out(text, title, questions, drawn < share, rng) or (text, questions)

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

    def has_answer(self, chat: Chat) -> bool:
        """Whether something of the assistant's stands within `max_chat_tokens`."""
        most = self._data.max_chat_tokens
        longest = sum(len(message["content"].encode()) + LONGEST_FRAME for message in chat.messages)
        return longest <= most or any(self.chat(chat)[1][:most])

    def chat(self, chat: Chat) -> tuple[list[int], list[bool]]:
        """Token ids of one chat, and which are the assistant's, its end token included with what the template writes
        before it, such as a space."""
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
                end = next((n for n, i in enumerate(new) if i in self._ends), -1) if is_after_answer else -1
                is_target += [n <= end for n in range(len(new))]
                is_after_answer = False
            ids += new
        return ids, is_target
