"""The engine: one thread that holds the model, and steps in which the tokens of all requests go through it together.

A step reads the tokens that answers chose last, then prompts and questions that answers wait for, then texts to embed
or to index, until its budget is spent. Requests join and leave between steps; each has a cache of its own.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from gritrag.model.grit import GritModel
from gritrag.model.kernels import without_cudnn
from gritrag.model.ragged import PADDED, Row, ragged
from gritrag.model.slots import Slots
from gritrag.serve.generation import Generation
from gritrag.serve.jobs import FairQueue, StoppingError
from gritrag.serve.limits import Limits
from gritrag.serve.memory import Memory
from gritrag.serve.ranking import RankingJob
from gritrag.serve.reading import ReadingJob, TextReading, read_whole
from gritrag.serve.step_plan import StepPlan, place_in_step
from gritrag.serve.threads import compute_with

logger = logging.getLogger(__name__)

Job = Generation | ReadingJob | RankingJob

GUESSING_ROWS = 4
"""Up to so many texts guess tokens; more fill a forward by themselves."""

JOINS = 4
"""Requests that join in one step while others wait for their next token."""

LINGER, GAP_TOKENS = 1.0, 2 * PADDED
"""For so many seconds after somebody was answered the next question is expected: it is not to wait for more tokens of
embedding than these."""

FIRST_COST = 1e-3
"""Seconds that a token to embed is taken to cost until it has been measured."""


class Engine:
    """Runs until it is stopped. `submit` may be called from any thread.

    Args:
        model: what computes. Nobody else may use it for a forward while the engine runs.
        limits: of the server.
        memory: of conversations.
    """

    def __init__(self, model: GritModel, limits: Limits, memory: Memory) -> None:
        self.model, self.limits, self.memory = model, limits, memory
        self.on_step: Callable[[int, float], None] = lambda rows, seconds: None
        """Told of every step: rows and seconds."""
        self._changed = threading.Condition()
        self._inbox: list[Job] = []
        self._waiting: FairQueue[Generation] = FairQueue()
        self._running: list[Generation] = []
        self._slots = Slots(model.decoder.shape) if self._is_ragged else None
        self._urgent: FairQueue[ReadingJob | RankingJob] = FairQueue()
        self._background: FairQueue[ReadingJob] = FairQueue()
        self._is_stopping = self._leaves_background = False
        self._token_cost, self._credit = FIRST_COST, 0.0
        self._expects_until = 0.0
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- from any thread ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take nothing more on, finish what was taken on, and end the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def leave_background(self) -> None:
        """Embed and index nothing more, whatever has been begun: it fails with a `StoppingError`."""
        with self._changed:
            self._leaves_background = True
            self._changed.notify()

    def submit(self, job: Job) -> None:
        """Take a job on.

        Raises:
            StoppingError: the engine is being stopped.
        """
        with self._changed:
            if self._is_stopping:
                raise StoppingError("the server is stopping")
            self._inbox.append(job)
            self._changed.notify()

    @property
    def running(self) -> int:
        """Texts that are generated now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Texts that wait for a place."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        compute_with(self._threads)
        try:
            with torch.inference_mode():
                while self._wait():
                    self._sort()
                    self._drop()
                    self._join()
                    self._step()
        except Exception:  # no request's fault: nobody would ever be answered, so everybody is told
            logger.exception("the engine has failed; the server must be started again")
            self._give_up()

    def _give_up(self) -> None:
        """Take nothing more on, and fail whatever waits."""
        with self._changed:
            self._is_stopping = True
            jobs = [*self._inbox, *self._running, *self._waiting, *self._urgent, *self._background]
            self._inbox.clear()
        for job in jobs:
            job.fail(StoppingError("the server has failed"))

    def _wait(self) -> bool:
        """Until there is something to do; False if there never will be."""
        with self._changed:
            while not (self._inbox or self._waiting or self._running or self._urgent or self._background):
                if self._is_stopping:
                    return False
                self._changed.wait()
        return True

    def _sort(self) -> None:
        with self._changed:
            inbox, self._inbox = self._inbox, []
        for job in inbox:
            if isinstance(job, Generation):
                self._waiting.push(job)
            elif isinstance(job, RankingJob) or job.is_urgent:
                self._urgent.push(job)
            else:
                self._background.push(job)

    def _drop(self) -> None:
        """Let go of everything that nobody waits for: its place and its cache are free for the next."""
        self._waiting.remove(lambda job: job.is_gone())
        self._urgent.remove(lambda job: job.is_gone())
        for job in self._background.remove(lambda job: self._leaves_background or job.is_gone()):
            job.fail(StoppingError("the server is stopping"))  # but for those that are settled
        self._leave(lambda job: job.is_gone())

    def _leave(self, is_over: Callable[[Generation], bool]) -> None:
        for job in [job for job in self._running if is_over(job)]:
            self._running.remove(job)
            job.leave(self._slots)

    def _join(self) -> None:
        most = JOINS if any(not job.is_reading for job in self._running) else self.limits.rows
        columns = sum(job.columns for job in self._running)
        while most and len(self._running) < self.limits.rows and (job := self._waiting.peek()) is not None:
            if self._running and columns + job.columns > self.limits.cache_tokens:
                return
            self._waiting.pop()
            if self._survives(job, partial(job.join, self.model, self.memory, self._slots)):
                self._running.append(job)
                columns += job.columns
            else:
                job.leave(self._slots)
            most -= 1

    def _step(self) -> None:
        began = time.perf_counter()
        is_busy = bool(self._running or self._urgent)
        plan, embedded = self._plan(is_busy)
        self._compute(plan)
        for job, texts in plan.whole:
            self._survives(job, partial(read_whole, self.model, texts))
        for ranking, states in plan.rankings:
            self._survives(ranking, partial(ranking.go_on, self.model, states))
        for done in (*self._urgent.remove(lambda job: job.is_done), *self._background.remove(lambda job: job.is_done)):
            done.finish()
        seconds = time.perf_counter() - began
        self._account(embedded, seconds, is_busy)
        self.on_step(len(plan.rows) + len(plan.whole) + len(plan.rankings), seconds)

    def _survives(self, job: Job, work: Callable[[], object]) -> bool:
        """Whether it went well. If not, this job has failed, and no other."""
        try:
            work()
        except Exception as error:  # whatever one request does, the loop goes on for the others
            if not isinstance(error, ValueError):
                logger.exception("a request failed")
            job.fail(error)
            job.is_cancelled = True
            return False
        return True

    # --- what a step is made of ---------------------------------------------------------------------------------------

    @property
    def _is_ragged(self) -> bool:
        """Whether texts of any lengths can go through one forward."""
        return self.model.step is not None and self.model.rotation is not None

    def _plan(self, is_busy: bool) -> tuple[StepPlan, int]:
        """The plan, and how many of its tokens nobody waits for.

        Where a prompt is cut depends on nothing but the prompt: in bfloat16 its tokens would come out otherwise. The
        first one goes on in every step, others where they fit.
        """
        plan = StepPlan()
        budget, guesses, is_first = self.limits.step_tokens, len(self._running) <= GUESSING_ROWS, True
        for generation in sorted(self._running, key=place_in_step):
            is_reading = generation.is_reading
            row = generation.next_row(sys.maxsize if is_first else budget, self.limits.step_tokens, guesses)
            if row is not None:
                budget -= plan.add(row, generation)
                is_first = is_first and not is_reading
        for job in self._urgent:
            budget -= self._add(plan, job, max(budget, PADDED) if is_first else budget)
            is_first = False
        allowed = max(budget, PADDED) if not plan.rows else budget
        if is_busy:
            saved = int(self._credit / self._token_cost)  # spent in one go: a row more slows a step, however short
            allowed = min(budget, saved) if saved >= GAP_TOKENS else 0
        elif time.monotonic() < self._expects_until:
            allowed = min(budget, GAP_TOKENS)
        embedded = 0
        for job in self._background:
            embedded += self._add(plan, job, allowed - embedded)
        self._background.rotate()
        return plan, embedded

    def _add(self, plan: StepPlan, job: ReadingJob | RankingJob, budget: int) -> int:
        if isinstance(job, RankingJob):
            return plan.add_ranking(job, budget, self.limits.step_tokens)
        if self._is_ragged and self.model.config.reading == "causal":
            return plan.add_texts(job, self.model, budget)
        return plan.add_whole(job, budget, self.limits.step_tokens)

    def _account(self, embedded: int, seconds: float, is_busy: bool) -> None:
        """While somebody waits for an answer, embedding saves up a share of the time, and spends what it has saved."""
        if is_busy:
            self._expects_until = time.monotonic() + LINGER
        if not is_busy:
            self._credit = 0.0
            if embedded:
                self._token_cost += 0.2 * (seconds / embedded - self._token_cost)
        elif self._background:
            self._credit += self.limits.background_share * seconds - embedded * self._token_cost

    def _compute(self, plan: StepPlan) -> None:
        if not self._is_ragged:
            for row, owner in zip(plan.rows, plan.owners, strict=True):
                assert isinstance(owner, Generation), "texts are read whole by this model"
                self._survives(owner, partial(self._compute_alone, row, owner))
        elif plan.rows:
            self._compute_together(plan.rows, plan.owners)
        self._leave(lambda job: job.is_cancelled)

    def _compute_alone(self, row: Row, owner: Generation) -> None:
        assert row.cache is not None
        logits_1SV = self.model.forwards.best.logits(row.ids, row.positions, row.mask, row.cache, max(row.keep, 1))
        if row.keep:
            self._take(owner, logits_1SV[0])

    def _compute_together(
        self, rows: Sequence[Row], owners: Sequence[Generation | tuple[ReadingJob, TextReading]]
    ) -> None:
        assert self.model.step is not None
        lengths = [0 if row.cache is None else row.cache.length for row in rows]
        try:
            with without_cudnn(self.model.device):
                hidden_SD = ragged(self.model.step, rows)
        except Exception as error:  # one of them may be at fault: the others are not to suffer for it
            if len(rows) == 1:
                job = owners[0] if isinstance(owners[0], Generation) else owners[0][0]
                logger.exception("a request failed")
                job.fail(error)
                job.is_cancelled = True
                return
            for row, owner, length in zip(rows, owners, lengths, strict=True):
                if row.cache is not None:
                    row.cache.cut(length)
                self._compute_together([row], [owner])
            return
        parts = hidden_SD.split([row.keep for row in rows])
        writing = [(owner, part) for owner, part in zip(owners, parts, strict=True) if isinstance(owner, Generation)]
        logits_SV = self.model.step.words(torch.cat([part for _, part in writing])) if writing else hidden_SD[:0]
        logits = logits_SV.split([len(part) for _, part in writing])
        for (generation, part), chosen_from_SV in zip(writing, logits, strict=True):
            if len(part):
                self._survives(generation, partial(self._take, generation, chosen_from_SV))
        for owner, part in zip(owners, parts, strict=True):
            if not isinstance(owner, Generation):
                job, text = owner
                self._survives(job, partial(text.take, self.model, part))

    def _take(self, job: Generation, logits_SV: torch.Tensor) -> None:
        finished = job.take(logits_SV)
        if finished is not None:
            job.remember(self.memory)  # before the end is told, so that the next turn finds it
            self._running.remove(job)
            job.leave(self._slots)
            job.sink(finished)
