"""What a benchmark run measures: the contents of `configs/bench/*.yaml`. An unknown key is an error.  No torch."""

from typing import Literal

from pydantic import Field, model_validator

from gritrag.config import DEFAULT_MODEL, Recipe


class SpeedConfig(Recipe):
    """A grid of contexts of an exact length. Every combination of these is measured, in every mode.

    Args:
        documents: per context.
        tokens: per document, its scaffold included.
        codecs: of the states. Modes that load no states are measured once, whatever the codec.
        batches: questions that are answered together.
        caches: ``warm``: files are in the page cache, as in a service that runs; ``cold``: they are dropped from it and
            the index is opened anew before each question, as after a restart. Only modes that load states are measured
            cold.
        repetitions: rounds that count; in each, every mode answers the same new question.
        warmup: rounds before them that do not count; memory is measured in the last of them.
        new_tokens: longest answer.
        pool: documents that are indexed for each length; twice the most of a context where None.
    """

    documents: tuple[int, ...] = Field((1, 4, 10), min_length=1)
    tokens: tuple[int, ...] = Field((250,), min_length=1)
    codecs: tuple[str, ...] = Field(("bf16",), min_length=1)
    batches: tuple[int, ...] = Field((1,), min_length=1)
    caches: tuple[Literal["warm", "cold"], ...] = Field(("warm",), min_length=1)
    repetitions: int = Field(5, ge=1)
    warmup: int = Field(1, ge=1)
    new_tokens: int = Field(8, ge=1)
    pool: int | None = Field(None, ge=1)

    @property
    def pool_documents(self) -> int:
        return self.pool or 2 * max(self.documents)

    @model_validator(mode="after")
    def _is_sound(self) -> "SpeedConfig":
        for name in ("documents", "tokens", "batches"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must each be at least 1, got {list(getattr(self, name))}")
        if self.pool_documents < max(self.documents):
            raise ValueError(f"a pool of {self.pool} documents holds no context of {max(self.documents)}")
        return self


class QualityConfig(Recipe):
    """Questions that every mode answers, scored and timed at once.

    Args:
        file: JSONL of questions, as `gritrag eval` takes them; the package's own invented corpus where None.
        questions: how many are answered, spread evenly over those that have answers.
        indexed: distinct documents of the file that are searched in, at most.
        documents: per context; each number is a table of its own.
        codecs: of the states.
        context: ``retrieved``: what hybrid search finds, embedding and search timed too; ``gold``: the right document
            among distractors, in any order.
        new_tokens: longest answer.
    """

    file: str | None = None
    questions: int = Field(30, ge=1)
    indexed: int = Field(300, ge=1)
    documents: tuple[int, ...] = Field((1, 5), min_length=1)
    codecs: tuple[str, ...] = Field(("bf16",), min_length=1)
    context: Literal["retrieved", "gold"] = "retrieved"
    new_tokens: int = Field(16, ge=1)


class SteadyConfig(Recipe):
    """A stream of requests, each for a combination of documents that never was before.

    Args:
        requests: so many.
        documents: in the index.
        tokens: per document.
        k: documents per request, drawn by Zipf's law.
        exponent: of that law: the n-th most popular document is drawn with weight n^-exponent.
        mode: how they are answered.
        codec: of the states.
        quota: most bytes of states, such as ``"20MB"``; or a share of what all would need, such as ``"50%"``. None for
            no limit. What has no state is read again, and stored as far as the index lets it.
        warmup: requests before the first window.
        window: requests that one p50 and one p95 are taken over.
        new_tokens: longest answer.
    """

    requests: int = Field(1000, ge=1)
    documents: int = Field(100, ge=1)
    tokens: int = Field(120, ge=8)
    k: int = Field(5, ge=1)
    exponent: float = Field(1.0, ge=0)
    mode: str = "doc-cache"
    codec: str = "bf16"
    quota: str | int | None = None
    warmup: int = Field(20, ge=0)
    window: int = Field(200, ge=2)
    new_tokens: int = Field(1, ge=1)


class BenchConfig(Recipe):
    """A benchmark run. What is left out is not measured.

    Args:
        model: as `GritModel.from_pretrained` takes it.
        dtype, device: likewise.
        modes: names of RAG modes; all of them where empty.
        seed: of documents, questions, their order, and resamples.
    """

    model: str = DEFAULT_MODEL
    dtype: str = "auto"
    device: str = "auto"
    modes: tuple[str, ...] = ()
    seed: int = 0
    speed: SpeedConfig | None = None
    quality: QualityConfig | None = None
    steady: SteadyConfig | None = None
