"""A source: one file of training rows, and the order in which they come."""

import random
from pathlib import Path

from gritrag.train.config import DataConfig, SourceConfig
from gritrag.train.rows import Chat, Passage, read_source

CHARACTERS_PER_TOKEN = 4
QUERY_TOKENS = 30
"""Rough sizes, to fill a step by before anything is tokenised."""


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
