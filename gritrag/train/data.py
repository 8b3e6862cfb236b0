"""Which texts a step trains on: a mixture of sources, drawn so that step n is the same whenever it is asked for.

All chance is here and comes from (seed, step), so a run resumes exactly without replaying what went before. A step has
one source (task-homogeneous batches).
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gritrag.config import DataConfig, GenerativeConfig, SourceConfig, TrainConfig
from gritrag.model.decode import end_token_ids
from gritrag.model.grit import GritModel
from gritrag.prompts import chat_segments
from gritrag.records import Document
from gritrag.tokens import TokenIds
from gritrag.train.augment import Augmenter
from gritrag.train.rows import Chat, Passage, Question, read_source

CHARACTERS_PER_TOKEN = 4
QUERY_TOKENS = 30
"""Rough sizes, to fill a step by before anything is tokenised."""

SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s")


@dataclass(frozen=True)
class Prompted:
    """What is read after a context, and the target: token ids of the question, dressed, and of the answer with its end.

    `context` holds rows of `RetrievalStep.readable`, in the order they are placed in, from position `start` on.
    """

    question_ids: list[int]
    answer_ids: list[int]
    context: tuple[int, ...] = ()
    start: int = 0


@dataclass(frozen=True)
class RetrievalStep:
    """Documents, queries for them, and questions to be answered from contexts of them.

    Args:
        source: name of the file.
        documents: `N` dressed documents.
        queries: `Q` dressed queries.
        positives: `Q` rows of `documents`.
        candidates: for each query the rows it is compared with; None for all.
        answers: questions to answer.
        is_full: read contexts as one, with ordinary attention, instead of placing states.
        demonstrations: for each query the queries that it is shown with their documents; None for none.
        seed: of what is masked and dropped in this step.
        is_quantised: answer from what a codec leaves of the documents' states.
    """

    source: str
    documents: list[TokenIds]
    queries: list[TokenIds]
    positives: list[int]
    candidates: list[list[int]] | None
    answers: list[Prompted]
    is_full: bool = False
    demonstrations: list[list[int]] | None = None
    seed: int = 0
    is_quantised: bool = False

    @property
    def readable(self) -> list[TokenIds]:
        """What contexts are made of: documents, and behind them the queries."""
        return [*self.documents, *self.queries]

    @property
    def reuses_questions(self) -> bool:
        """Whether some answer is decoded over the state of its own query."""
        return any(row >= len(self.documents) for answer in self.answers for row in answer.context)


@dataclass(frozen=True)
class ChatStep:
    """Whole chats: `ids` per chat, and which of them are targets (turns of the assistant with their ends)."""

    source: str
    ids: list[list[int]]
    is_target: list[list[bool]]


class Source:
    """One file, and the order in which its rows come: each epoch is shuffled anew and packed into batches by length."""

    def __init__(self, config: SourceConfig, data: DataConfig, seed: int) -> None:
        self.config, self._data, self._seed = config, data, seed
        self.name = Path(config.path).name.removesuffix(".jsonl").removesuffix(".train")
        passages, self.chats = read_source(Path(data.data_dir) / config.path, config)
        self.hold(passages)

    def hold(self, passages: list[Passage]) -> None:
        """Have these passages, in the place of any others."""
        self.passages = passages
        self.has_answers = any(question.answer for passage in passages for question in passage.questions)
        self._epochs: list[list[list[int]]] = []

    def batch(self, number: int) -> list[int]:
        """Rows of the batch of this number, counted through all epochs."""
        epoch = 0
        while True:
            if epoch == len(self._epochs):
                self._epochs.append(self._pack(epoch))
            if number < len(self._epochs[epoch]):
                return self._epochs[epoch][number]
            number -= len(self._epochs[epoch])
            epoch += 1

    def _pack(self, epoch: int) -> list[list[int]]:
        """Runs of neighbours in random order, cut into batches of about `tokens_per_step`."""
        rng, size = random.Random(f"{self._seed}/{self.name}/{epoch}"), self.config.neighbours
        costs = [self._cost(row) for row in self.passages or self.chats]
        first = rng.randrange(size)
        runs = [list(range(max(0, start), min(start + size, len(costs)))) for start in range(-first, len(costs), size)]
        rng.shuffle(runs)
        batches: list[list[int]] = []
        room = 0.0
        for row in (row for run in runs for row in run):
            room -= costs[row]
            if not batches or room < 0:
                batches.append([])
                room = self._data.tokens_per_step - costs[row]
            batches[-1].append(row)
        if len(batches) > 1 and len(batches[-1]) == 1:  # a batch of one has no negatives
            alone = batches.pop()
            batches[-1] += alone
        return batches

    def _cost(self, row: Passage | Chat) -> float:
        if isinstance(row, Chat):
            return sum(len(message["content"]) for message in row.messages) / CHARACTERS_PER_TOKEN
        questions = min(len(row.questions), self._data.questions_per_document)
        negatives = sum(map(len, row.questions[0].negatives)) / CHARACTERS_PER_TOKEN
        return self._length(row.text) + questions * QUERY_TOKENS + negatives

    def _length(self, text: str) -> float:
        return min(len(text) / CHARACTERS_PER_TOKEN, self._data.max_document_tokens)


class Mixture:
    """The steps of a run.

    Args:
        config: the recipe.
        model: for its tokenizer and template only.
        rank, world: with several processes, each gets another batch of the same source, and the same kind of step.

    Raises:
        ValueError: a file that cannot be read or holds a broken row.
    """

    def __init__(self, config: TrainConfig, model: GritModel, rank: int = 0, world: int = 1) -> None:
        self._config, self._seed = config, config.seed
        self._rank, self._world = rank, world
        self._dress = Dress(model, config)
        self.sources = [Source(source, config.data, config.seed) for source in config.data.sources]
        augment = Augmenter(config, model, writes=rank == 0)
        for source in self.sources:
            source.hold(augment(source.passages, source.config.augment))
        self.chats = [Source(source, config.data, config.seed) for source in config.data.chat]
        for source in self.sources:
            if not source.passages:
                raise ValueError(f"{source.config.path} holds chats; list it under data.chat")
            self._check_negatives(source)
        for source in self.chats:
            if not source.chats:
                raise ValueError(f"{source.config.path} holds questions; list it under data.sources")
        self._drawn: list[tuple[Source, int]] = []
        self._counts: dict[str, int] = {}

    def step(self, number: int) -> RetrievalStep | ChatStep:
        """What step `number` (from 0) trains on; the same for the same recipe and data."""
        while len(self._drawn) <= number:
            self._draw(len(self._drawn))
        source, count = self._drawn[number]
        batch = count * self._world + self._rank
        if source.chats:
            return self._dress.chats(source, [source.chats[row] for row in source.batch(batch)])
        is_full = source.has_answers and self._chance(f"full/{number}").random() < self._config.generative.p_full
        passages = [source.passages[row] for row in source.batch(batch)]
        step = self._dress.passages(source, passages, self._chance(f"{source.config.path}/{batch}"), is_full)
        quantise, share = self._config.generative.quantise, self._config.generative.p_quantise
        is_quantised = bool(quantise) and self._chance(f"quantise/{number}").random() < share
        seed = self._chance(f"seed/{source.config.path}/{batch}").getrandbits(32)
        return replace(step, seed=seed, is_quantised=is_quantised and not is_full)

    def _check_negatives(self, source: Source) -> None:
        """Without negatives there is nothing to learn from a comparison.

        Raises:
            ValueError: no row of a source that is to do without in-batch negatives has any of its own.
        """
        contrastive = self._config.contrastive
        in_batch = contrastive.in_batch_negatives and source.config.in_batch_negatives
        questions = (question for passage in source.passages for question in passage.questions)
        if contrastive.weight and not in_batch and not any(question.negatives for question in questions):
            raise ValueError(
                f"{source.config.path}: in_batch_negatives is off and no row has negatives of its own; "
                "switch it on, or give rows with neg, several documents or a label"
            )

    def _chance(self, what: str) -> random.Random:
        return random.Random(f"{self._seed}/{what}")

    def _draw(self, number: int) -> None:
        """Choose the source of a step, and count how often it was chosen before."""
        rng = self._chance(f"source/{number}")
        is_chat = bool(self.chats) and rng.random() < self._config.generative.p_chat
        sources = self.chats if is_chat else self.sources
        source = rng.choices(sources, [source.config.weight for source in sources])[0]
        count = self._counts.get(source.config.path, 0)
        self._counts[source.config.path] = count + 1
        self._drawn.append((source, count))


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
        stop = model.template.stop
        self._end = self._encoder.scaffold_ids(stop[0]) if stop else [model.tokenizer.eos_token_id]

    def passages(
        self, source: Source, passages: Sequence[Passage], rng: random.Random, is_full: bool = False
    ) -> RetrievalStep:
        """Cut and dress one batch of passages with their questions and negatives."""
        documents: list[TokenIds] = []
        texts: list[str] = []
        queries: list[TokenIds] = []
        positives: list[int] = []
        own: list[list[int]] = []  # negatives of each document's questions
        asked: list[tuple[int, Question]] = []
        for passage in passages:
            kept, questions = self.cut(passage)
            questions = rng.sample(questions, min(len(questions), self._data.questions_per_document))
            title = passage.title if rng.random() < self._data.p_title else ""
            row = len(documents)
            for text in [Document(kept, title=title).content, *(questions[0].negatives if questions else ())]:
                texts.append(text)
                documents.append(self.document(text))
            own.append(list(range(row, len(documents))))
            for question in questions:
                instruction = question.instruction or source.config.instruction or self._instruction
                queries.append(self.query(question.text, instruction))
                positives.append(row)
                asked.append((row, question))
        own_rows = {rows[0]: rows for rows in own}
        in_batch = self._in_batch_negatives and source.config.in_batch_negatives
        candidates = None if in_batch else [own_rows[row] for row in positives]
        answers = self._answers(asked, texts, documents, rng)
        shown = self._shown(positives, rng) if self._demonstrations else None
        return RetrievalStep(source.name, documents, queries, positives, candidates, answers, is_full, shown)

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
        return Prompted(question_ids, self._encoder.content_ids(answer) + self._end, context, start)

    def _answers(
        self,
        asked: Sequence[tuple[int, Question]],
        texts: Sequence[str],
        documents: Sequence[TokenIds],
        rng: random.Random,
    ) -> list[Prompted]:
        """Draw a context for some of the questions: their own document among others of the batch, in any order."""
        config = self._generative
        answers = []
        answerable = [(row, query, question) for query, (row, question) in enumerate(asked) if question.answer]
        for row, query, question in rng.sample(answerable, min(len(answerable), self._data.answers_per_step)):
            others = rng.sample([other for other in range(len(documents)) if other != row], len(documents) - 1)
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
            rng.shuffle(context)
            start = rng.randint(0, config.max_start)
            drawn = self.prompted(question.text, answer, tuple(context), start)
            if config.p_question_state and rng.random() < config.p_question_state:
                drawn = self._over_query(drawn, len(documents) + query, is_last=rng.random() < 0.5)
            answers.append(drawn)
        return answers

    def _over_query(self, prompted: Prompted, row: int, is_last: bool) -> Prompted:
        """The question is not read again: its query stands in the context, before or behind the documents."""
        start_ids = self._encoder.encode(self._template.answer_start_segments(is_last)).ids
        context = (*prompted.context, row) if is_last else (row, *prompted.context)
        return replace(prompted, question_ids=start_ids, context=context)

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
                starts = [0, *(match.end() for match in SENTENCE_END.finditer(text))]
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
        ends = [match.end() for match in SENTENCE_END.finditer(text[: end + 1]) if match.end() > end // 2]
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
