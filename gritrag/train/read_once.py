"""The read-once step: every document is read once with gradients, and both losses are taken on what that leaves.

The reading's vectors and states are leaves of a `GradCache`: the contrastive loss and each chunk of answers are
back-propagated into them at once, and in the end the gathered gradients go through the reading a single time.

Shape letters: `N` documents, `Q` queries, `A` answer tokens of a chunk, `V` vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from gritrag.model.grit import GritModel
from gritrag.model.kernels import without_cudnn
from gritrag.model.state import DocumentState
from gritrag.tokens import TokenIds, length_sorted_batches
from gritrag.train.config import TrainConfig
from gritrag.train.contexts import Contexts
from gritrag.train.data.steps import ChatStep, Prompted, RetrievalStep
from gritrag.train.gathering import Pool
from gritrag.train.objectives.cross_batch_memory import CrossBatchMemory
from gritrag.train.objectives.losses import Contrastive, Generative, without_copies
from gritrag.train.objectives.self_supervised import SelfSupervised
from gritrag.train.quantise import FakeQuantise
from gritrag.train.ranks import Ranks
from gritrag.train.readings import Readings


@dataclass(frozen=True)
class StepLosses:
    """What one step was: its losses by name, and its size. The names are `contrastive`, `placed`, `full`, `chat`,
    `masked` and `views`."""

    losses: dict[str, float]
    tokens: int
    documents: int = 0
    queries: int = 0
    answers: int = 0


class ReadOnce:
    """Runs steps forward and backward; gradients are left in the parameters.

    Args:
        model: the model in training; its parameters that require gradients get them.
        config: the recipe.
        ranks: other processes, whose documents are negatives too.
    """

    def __init__(self, model: GritModel, config: TrainConfig, ranks: Ranks | None = None) -> None:
        self.model, self.config = model, config
        self.ranks = ranks or Ranks()
        self.memory = CrossBatchMemory(config.contrastive.cross_batch_memory)
        self.contexts = Contexts(model)
        self.gathers = model.lm.device.type != "cpu"
        """Whether contexts are gathered from one tensor, as a GPU wants it."""
        self._contrastive = Contrastive(config.contrastive)
        self._generative = Generative(config.generative)
        self._quantise = FakeQuantise(config.generative.quantise) if config.generative.quantise else list
        self._self_supervised = SelfSupervised(model, config, self.ranks)
        answers = config.generative.weight if config.generative.contexts != "none" else 0.0
        self._has_tasks = bool(config.contrastive.weight or answers)

    def __call__(self, step: RetrievalStep | ChatStep) -> StepLosses:
        with without_cudnn(self.model.lm.device):  # backward too: what is recomputed there must take the same kernels
            return self._step(step)

    def _step(self, step: RetrievalStep | ChatStep) -> StepLosses:
        if isinstance(step, ChatStep):
            return self._chat(step)
        if step.is_full:
            return self._reread(step)
        losses, tokens = self._self_supervised(step)
        if not self._has_tasks:
            return StepLosses(losses, tokens, len(step.documents))
        done = self._read_once(step)
        return replace(done, losses={**losses, **done.losses}, tokens=tokens + done.tokens)

    def read(self, prompts: Sequence[TokenIds], with_states: bool = True) -> Readings:
        """Read documents (with states) or queries (without)."""
        return Readings(self.model, prompts, self.config.chunk_tokens, self.config.recompute, with_states)

    def chunks(self, step: RetrievalStep, is_full: bool) -> list[list[Prompted]]:
        """A step's answers in chunks of one forward pass, those of like length together.

        Of placed contexts the length of what is read beside the documents counts: only those tokens are computed, and
        a padded one costs as much as many padded columns of a context.
        """
        lengths = [_length(answer, step.readable) for answer in step.answers]
        if is_full:
            batches = length_sorted_batches(lengths, len(lengths), self.config.chunk_tokens)
            return [[step.answers[row] for row in rows] for rows in batches]
        new = [answer.new_tokens for answer in step.answers]
        chunks: list[list[int]] = []
        widest = 0
        for row in sorted(range(len(new)), key=lambda row: -new[row]):
            widest = max(widest, lengths[row])
            if not chunks or (len(chunks[-1]) + 1) * widest > self.config.answer_chunk_tokens:
                chunks.append([])
                widest = lengths[row]
            chunks[-1].append(row)
        return [[step.answers[row] for row in rows] for rows in chunks]

    @torch.no_grad()
    def forward(self, step: RetrievalStep | ChatStep) -> None:
        """Read, embed and answer as in training, and leave nothing behind: for those who watch the layers."""
        if isinstance(step, ChatStep):
            self.contexts.run(step.ids)
            return
        states = [*self.read(step.documents).states, *self.read(step.queries).states]
        for chunk in self.chunks(step, is_full=False):
            self.contexts.placed(states, chunk)

    # --- kinds of steps ---------------------------------------------------------------------------------------------

    def _read_once(self, step: RetrievalStep) -> StepLosses:
        """Contrastive on the vectors of one reading, answers on its states; or, to compare, on contexts read anew."""
        is_placed = bool(self.config.generative.weight) and self.config.generative.contexts == "placed"
        documents = self.read(step.documents, with_states=is_placed)
        losses: dict[str, float] = {}
        tokens = _tokens(step.documents)
        queries: Readings | None = None
        if self.config.contrastive.weight or (is_placed and step.reuses_questions):
            queries, read = self._read_queries(step, documents, with_states=is_placed and step.reuses_questions)
            tokens += read
        if self.config.contrastive.weight and queries:
            losses |= self._compare(step, documents, queries)
        if is_placed:
            reused = queries.states if queries and step.reuses_questions else []
            states = self._quantise(documents.states) if step.is_quantised else documents.states
            losses |= self._answer(step, [*states, *reused])
            tokens += sum(answer.new_tokens for answer in step.answers)
        elif self.config.generative.weight and self.config.generative.contexts == "full":
            losses |= self._answer_in_full(step)
            tokens += sum(_length(answer, step.readable) for answer in step.answers)
        if queries:
            queries.backward()
        documents.backward()
        return StepLosses(losses, tokens, len(step.documents), len(step.queries), len(step.answers))

    def _read_queries(self, step: RetrievalStep, documents: Readings, with_states: bool) -> tuple[Readings, int]:
        """Queries, each behind its demonstrations where there are any, and the tokens that were read.

        Demonstrations are vectors of pairs of this batch as they are now. No gradient goes into them, as none will
        when a prompt has been fitted; so the queries are read once without any to get theirs.
        """
        if step.demonstrations is None:
            return self.read(step.queries, with_states), _tokens(step.queries)
        with torch.no_grad():
            bare = self.read(step.queries, with_states=False).vectors
            known = documents.vectors
        pairs = torch.stack([bare, known[step.positives]], dim=1)
        slots = self.model.parts.slots
        shown = zip(step.queries, step.demonstrations, strict=True)
        prompts = [slots.with_demonstrations(query, len(rows)) for query, rows in shown]
        vectors = [pairs[rows].flatten(0, 1) for rows in step.demonstrations]
        config = self.config
        readings = Readings(self.model, prompts, config.chunk_tokens, config.recompute, demonstrations=vectors)
        return readings, _tokens(step.queries) + _tokens(prompts)

    def _compare(self, step: RetrievalStep, documents: Readings, queries: Readings) -> dict[str, float]:
        """Contrastive loss of everyone's queries to everyone's documents, and to those of earlier steps."""
        every = self.ranks.lists((len(step.documents), step.positives, step.candidates, step.identities, step.contents))
        starts = [sum(count for count, *_ in every[:rank]) for rank in range(len(every))]
        positive_Q = [start + row for start, (_, rows, *_) in zip(starts, every, strict=True) for row in rows]
        if not positive_Q:
            return {}
        device = self.model.lm.device
        queries_QD = self.ranks.vectors(queries.vectors if step.queries else documents.vectors[:0])
        documents_ND = self.ranks.vectors(documents.vectors)
        candidates_QN: torch.Tensor | None = None
        identities = [identity for *_, own, _ in every for identity in own]
        if any(candidates is not None for _, _, candidates, *_ in every):
            candidates_QN = torch.zeros(len(positive_Q), len(documents_ND), dtype=torch.bool)
            own = [
                [start + row for row in r] for start, (_, _, c, *_) in zip(starts, every, strict=True) for r in c or ()
            ]
            for query, allowed in enumerate(own):
                candidates_QN[query, allowed] = True
        elif self.memory.size and identities:
            documents_ND, candidates_QN = self.memory.beside(documents_ND, identities, positive_Q)
        candidates_QN = without_copies(candidates_QN, [each for *_, own in every for each in own], positive_Q)
        loss = self._contrastive(
            queries_QD,
            documents_ND,
            torch.tensor(positive_Q, device=device),
            None if candidates_QN is None else candidates_QN.to(device),
        )
        (loss * self.config.contrastive.weight).backward()
        return {"contrastive": loss.item()}

    def _answer(self, step: RetrievalStep, states: Sequence[DocumentState]) -> dict[str, float]:
        """Losses of all answers over placed states, back-propagated into the states.

        Chunks of answers gather their gradients in each document's own tensors, which go into the reading's at the
        end: every part that is cut from a larger tensor costs a gradient as large as that.
        """
        chunks = self.chunks(step, is_full=False)
        if self.gathers and chunks:
            pool = Pool(states)
            total = self._back_propagate(
                (*self.contexts.placed(states, chunk, pool), w) for chunk, w in self._weighted(chunks)
            )
            pool.backward()
            return {"placed": total}
        given = [tensor for state in states for tensor in (state.keys, state.values)]
        leaves = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in given]
        states = [state.with_tensors(*pair) for state, *pair in zip(states, leaves[::2], leaves[1::2], strict=True)]
        total = self._back_propagate((*self.contexts.placed(states, chunk), w) for chunk, w in self._weighted(chunks))
        used = [(tensor, leaf.grad) for tensor, leaf in zip(given, leaves, strict=True) if leaf.grad is not None]
        if used:
            torch.autograd.backward([tensor for tensor, _ in used], [gradient for _, gradient in used])
        return {"placed": total} if chunks else {}

    def _back_propagate(self, found: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> float:
        """The loss of chunks of answers, from their logits, targets and weights, each back-propagated at once."""
        total = 0.0
        for logits_AV, target_A, weight_A in found:
            loss = self._generative(logits_AV, target_A, weight_A)
            (loss * self.config.generative.weight).backward()
            total += loss.item()
        return total

    def _reread(self, step: RetrievalStep) -> StepLosses:
        """Only answers, each context read as one, as many of them as about `tokens_per_step` allow."""
        lengths = [_length(answer, step.readable) for answer in step.answers]
        kept = 0
        while kept < len(lengths) and (kept == 0 or sum(lengths[: kept + 1]) <= self.config.data.tokens_per_step):
            kept += 1
        losses = self._answer_in_full(replace(step, answers=step.answers[:kept]))
        return StepLosses(losses, sum(lengths[:kept]), answers=kept)

    def _answer_in_full(self, step: RetrievalStep) -> dict[str, float]:
        """Losses of all answers, their contexts read anew with ordinary attention."""
        ids = [prompt.ids for prompt in step.readable]
        chunks = self.chunks(step, is_full=True)
        value = self._back_propagate((*self.contexts.full(ids, chunk), w) for chunk, w in self._weighted(chunks))
        return {"full": value} if chunks else {}

    def _chat(self, step: ChatStep) -> StepLosses:
        """Next-token loss on the assistant's turns."""
        picked = [[column for column, wanted in enumerate(row) if wanted and column > 0] for row in step.is_target]
        chats = [row for row, columns in enumerate(picked) if columns]
        lengths = [len(step.ids[row]) for row in chats]
        batches = length_sorted_batches(lengths, len(lengths), self.config.chunk_tokens) if chats else ()
        chunks = [[chats[n] for n in numbers] for numbers in batches]
        counts = [[len(picked[row]) for row in rows] for rows in chunks]
        value = 0.0
        for rows, weight_A in zip(chunks, self._weights(counts), strict=True):
            where = [(b, column - 1) for b, row in enumerate(rows) for column in picked[row]]
            target = [step.ids[row][column] for row in rows for column in picked[row]]
            logits_AV = self.contexts.logits(self.contexts.run([step.ids[row] for row in rows]), where)
            loss = self._generative(logits_AV, torch.tensor(target, device=logits_AV.device), weight_A)
            (loss * self.config.generative.weight).backward()
            value += loss.item()
        return StepLosses({"chat": value} if chunks else {}, sum(lengths), answers=len(chats))

    def _weighted(self, chunks: Sequence[Sequence[Prompted]]) -> Iterator[tuple[Sequence[Prompted], torch.Tensor]]:
        counts = [[len(answer.answer_ids) for answer in chunk] for chunk in chunks]
        return zip(chunks, self._weights(counts), strict=True)

    def _weights(self, counts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """For each chunk, what each of its target tokens weighs: float32 `[A]`. They add up to 1 over all processes."""
        share = self.ranks.share(self._generative.size(counts))
        return [
            torch.tensor(
                [share * weight for length, weight in zip(chunk, weights, strict=True) for _ in range(length)],
                device=self.model.lm.device,
            )
            for chunk, weights in zip(counts, self._generative.weights(counts), strict=True)
        ]


def _tokens(prompts: Sequence[TokenIds]) -> int:
    return sum(len(prompt.ids) for prompt in prompts)


def _length(answer: Prompted, documents: Sequence[TokenIds]) -> int:
    """Tokens of an answer with question and context."""
    return sum(len(documents[row].ids) for row in answer.context) + answer.new_tokens
