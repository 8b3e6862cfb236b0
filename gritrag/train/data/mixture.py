"""Which texts a step trains on: a mixture of sources, drawn so that step n is the same whenever it is asked for.

All chance is here and comes from (seed, step), so a run resumes exactly without replaying what went before. A step has
one source (task-homogeneous batches).
"""

import random
from collections import Counter
from dataclasses import replace

from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar
from gritrag.train.config import TrainConfig
from gritrag.train.data.augment import Augmenter
from gritrag.train.data.collate import Collator
from gritrag.train.data.source import Source
from gritrag.train.data.steps import ChatStep, RetrievalStep


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
        self._collator = Collator(model, config)
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
            self._leave_out(source)
        # where the loss of answers is switched off, a step that has no other would train nothing
        generative = config.generative
        self._p_chat = generative.p_chat if generative.weight else 0.0
        self._p_full = generative.p_full if generative.weight and generative.contexts != "none" else 0.0
        self._drawn: list[tuple[Source, int]] = []
        self._counts: Counter[Source] = Counter()

    def step(self, number: int) -> RetrievalStep | ChatStep:
        """What step `number` (from 0) trains on; the same for the same recipe and data."""
        while len(self._drawn) <= number:
            self._draw(len(self._drawn))
        source, count = self._drawn[number]
        batch = count * self._world + self._rank
        if source.chats:
            return self._collator.chats(source, [source.chats[row] for (row,) in source.batch(batch)])
        is_full = source.has_answers and self._chance(f"full/{number}").random() < self._p_full
        step = self._collator.passages(
            source, source.documents(batch), self._chance(f"{source.config.path}/{batch}"), is_full
        )
        quantise, share = self._config.generative.quantise, self._config.generative.p_quantise
        is_quantised = bool(quantise) and self._chance(f"quantise/{number}").random() < share
        seed = self._chance(f"seed/{source.config.path}/{batch}").getrandbits(32)
        return replace(step, seed=seed, is_quantised=is_quantised and not is_full)

    def _leave_out(self, source: Source) -> None:
        """Leave out chats of which nothing could be learnt, as all answers stand behind the cut, and tell how many.

        Raises:
            ValueError: all of a source are so.
        """
        most, every = self._config.data.max_chat_tokens, len(source.chats)
        source.chats = [chat for chat in source.chats if self._collator.has_answer(chat)]
        remedy = f"an answer begins within data.max_chat_tokens={most}: raise it, or shorten what stands before"
        if not source.chats:
            raise ValueError(f"{source.config.path}: in none of its chats {remedy}")
        if (left := every - len(source.chats)) and self._rank == 0:
            ProgressBar.write(f"{source.config.path}: {left} of {every} chats are left out. In the others {remedy}")

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
        is_chat = bool(self.chats) and rng.random() < self._p_chat
        sources = self.chats if is_chat else self.sources
        source = rng.choices(sources, [source.config.weight for source in sources])[0]
        self._drawn.append((source, self._counts[source]))
        self._counts[source] += 1
