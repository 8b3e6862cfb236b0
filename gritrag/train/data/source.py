"""A source: one file of training rows, and the order in which they come."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from gritrag.train.data.config import DataConfig, SourceConfig
from gritrag.train.data.order import by_words
from gritrag.train.data.rows import Passage, read_source

CHARACTERS_PER_TOKEN = 4
QUERY_TOKENS = 30
"""Rough sizes, to fill a step by before anything is tokenised."""


Group = tuple[int, ...]
"""Rows that become one document; a single one, but where `SourceConfig.merged` says otherwise."""


class Source:
    """One file, and the order in which its rows come: each epoch is shuffled anew and packed into batches by length.

    Raises:
        ValueError: a file that cannot be read or holds a broken row, or chats or rows with negatives are to be merged.
    """

    def __init__(self, config: SourceConfig, data: DataConfig, seed: int) -> None:
        self.config, self._data, self._seed = config, data, seed
        self.name = Path(config.path).name.removesuffix(".jsonl").removesuffix(".train")
        passages, self.chats = read_source(Path(data.data_dir) / config.path, config)
        if self.chats and config.merged > 1:
            raise ValueError(f"{config.path} holds chats, and chats are not merged; leave merged out")
        if self.chats and (config.order != "file" or config.cloze_questions):
            raise ValueError(f"{config.path} holds chats; order and cloze_questions are for questions, leave them out")
        self.hold(passages)

    def hold(self, passages: list[Passage]) -> None:
        """Have these passages, in the place of any others."""
        if self.config.merged > 1 and any(question.negatives for passage in passages for question in passage.questions):
            raise ValueError(
                f"{self.config.path} has rows with negatives or labels of their own, and these are not merged: a "
                "negative of one may be part of another; leave merged out"
            )
        if self.config.order == "similar":
            passages = [passages[row] for row in by_words([passage.text for passage in passages])]
        self.passages = passages
        questions = (question for passage in passages for question in passage.questions)
        self.has_answers = bool(self.config.cloze_questions) or any(question.answer for question in questions)
        self._epochs: list[list[list[Group]]] = []

    def documents(self, number: int) -> list[Passage]:
        """The passages of a batch, merged where they are to be."""
        return [self._join([self.passages[row] for row in group]) for group in self.batch(number)]

    def batch(self, number: int) -> list[Group]:
        """Rows of the batch of this number, counted through all epochs."""
        epoch = 0
        while True:
            if epoch == len(self._epochs):
                self._epochs.append(self._pack(epoch))
            if number < len(self._epochs[epoch]):
                return self._epochs[epoch][number]
            number -= len(self._epochs[epoch])
            epoch += 1

    def _join(self, passages: Sequence[Passage]) -> Passage:
        """One passage of several. In another epoch its sentences may stand in another: so it is told from those of
        other sources only."""
        if self.config.merged == 1:
            return passages[0]
        questions = tuple(question for passage in passages for question in passage.questions)
        return Passage(" ".join(p.text.strip() for p in passages), passages[0].title, questions, self.config.path)

    def _groups(self, run: Sequence[int], rng: random.Random) -> Iterator[Group]:
        """Cut a run of rows that follow each other into what becomes one document each."""
        while run:
            size = rng.randint(1, self.config.merged) if self.config.merged > 1 else 1
            title = self.passages[run[0]].title if size > 1 else ""
            while size > 1 and any(self.passages[row].title != title for row in run[:size]):
                size -= 1
            yield tuple(run[:size])
            run = run[size:]

    def _pack(self, epoch: int) -> list[list[Group]]:
        """Runs of neighbours in random order, cut into batches of about `tokens_per_step`."""
        rng, size = random.Random(f"{self._seed}/{self.name}/{epoch}"), self.config.neighbours
        rows = len(self.passages or self.chats)
        first = rng.randrange(size)
        runs = [list(range(max(0, start), min(start + size, rows))) for start in range(-first, rows, size)]
        rng.shuffle(runs)
        batches: list[list[Group]] = []
        room = 0.0
        for group in (group for run in runs for group in self._groups(run, rng)):
            cost = self._cost(group)
            room -= cost
            if not batches or room < 0:
                batches.append([])
                room = self._data.tokens_per_step - cost
            batches[-1].append(group)
        if len(batches) > 1 and len(batches[-1]) == 1:  # a batch of one has no negatives
            alone = batches.pop()
            batches[-1] += alone
        return batches

    def _cost(self, group: Group) -> float:
        if self.chats:
            chats = [self.chats[row] for row in group]
            length = sum(len(m["content"]) for chat in chats for m in chat.messages) / CHARACTERS_PER_TOKEN
            return min(length, self._data.max_chat_tokens)
        passages = [self.passages[row] for row in group]
        questions = min(sum(len(passage.questions) for passage in passages), self._data.questions_per_document)
        first = passages[0].questions[0]
        texts = ["".join(passage.text for passage in passages), *first.evidence, *first.negatives]
        lengths = (min(len(text) / CHARACTERS_PER_TOKEN, self._data.max_document_tokens) for text in texts)
        return sum(lengths) + questions * QUERY_TOKENS
