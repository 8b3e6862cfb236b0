"""What one step of the engine does."""

from dataclasses import dataclass, field
from itertools import accumulate

from gritrag.model.grit import GritModel
from gritrag.model.ragged import Row
from gritrag.serve.generation import Generation
from gritrag.serve.ranking import RankingJob
from gritrag.serve.reading import ReadingJob, TextReading


@dataclass
class StepPlan:
    """What one step does: rows of one forward with their owners; texts that are read whole, each job by itself; and
    rankings, with how many states each."""

    rows: list[Row] = field(default_factory=list)
    owners: list[Generation | tuple[ReadingJob, TextReading]] = field(default_factory=list)
    whole: list[tuple[ReadingJob, list[TextReading]]] = field(default_factory=list)
    rankings: list[tuple[RankingJob, int]] = field(default_factory=list)

    def add(self, row: Row, owner: Generation | tuple[ReadingJob, TextReading]) -> int:
        """Returns its tokens."""
        self.rows.append(row)
        self.owners.append(owner)
        return row.ids.shape[1]

    def add_texts(self, job: ReadingJob, model: GritModel, budget: int) -> int:
        """What `budget` tokens allow of a job; returns how many it took."""
        taken = 0
        for text in job.texts:
            row = text.next_row(model, budget - taken) if text.left else None
            if row is not None:
                taken += self.add(row, (job, text))
        return taken

    def add_whole(self, job: ReadingJob, budget: int, batch: int) -> int:
        """Texts of a job that are read in padded batches, until `budget` tokens are spent; returns how many.

        A batch has up to `batch` tokens, whatever is left of the budget: in bfloat16 a text comes out otherwise in
        another batch, and must not depend on what else the step does.
        """
        taken, left = 0, [text for text in job.texts if text.left]
        while left and taken < budget:
            ends = list(accumulate(text.left for text in left))
            count = max(1, sum(end <= batch for end in ends))
            self.whole.append((job, left[:count]))
            taken, left = taken + ends[count - 1], left[count:]
        return taken

    def add_ranking(self, job: RankingJob, budget: int, batch: int) -> int:
        """States of a ranking, in batches of `batch` tokens; returns the tokens."""
        if budget <= 0:
            return 0
        self.rankings.append((job, job.count(batch)))
        return job.count(batch) * len(job.question.ids)


def place_in_step(job: Generation) -> tuple[bool, int, int]:
    """Decoding comes first, and neighbours stand one behind the other: they attend together. Prompts keep the order in
    which they came."""
    if job.is_reading or job.slot is None:
        return (job.is_reading, 0, 0)
    return (False, id(job.slot.block), job.slot.number)
