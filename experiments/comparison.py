"""What a comparison of recipes is: the contents of `configs/compare-*.yaml`. An unknown key is an error.  No torch."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from gritrag.config import ReadingMode, Recipe


class SystemConfig(Recipe):
    """A row of the table: a recipe that is trained, or the base as it is.

    Args:
        recipe: YAML file; empty for the untrained base.
        overrides: of the recipe, such as ``generative.weight=0``.
        share: of the comparison's tokens that it is trained on: 0.5 for one of two streams.
        reading, pooling, template, instruction: of the untrained base; a recipe brings its own.
        trained_as: judge the checkpoint of this other system, which is not trained twice.
        demonstrations: so many pairs are shown with each query of a retrieval set.
        reads_instructions: texts that are clustered, classified or compared come with the instruction of their set.
        scores: judge it on these alone: sets by their names without ``.jsonl``, ``answers``, ``attention``. Empty for
            everything. For a row that stands there for one relation.
    """

    recipe: str = ""
    overrides: tuple[str, ...] = ()
    share: float = Field(1.0, gt=0, le=1)
    reading: ReadingMode = "causal"
    pooling: str = "mean"
    template: str = "auto"
    instruction: str = ""
    trained_as: str = ""
    demonstrations: int = Field(0, ge=0)
    reads_instructions: bool = True
    scores: tuple[str, ...] = ()


class EvaluationConfig(Recipe):
    """What systems are judged on. Paths are relative to `data_dir`.

    Args:
        data_dir: itself relative to the working directory.
        sets: files of labels, pairs or questions; see `gritrag.evaluate.embedding`.
        train: labelled rows that a probe learns from.
        answers: questions that are answered, from a right passage among distractors.
        likelihoods: files of questions whose right answers are weighed: how probable they are, from text and from
            states; see `experiments.likelihood`.
        attention: texts that attention is looked at on.
        demonstrations: questions whose pairs are shown as demonstrations.
        instructions: of the sets of labels and pairs, by their names without ``.jsonl``.
        rows_of: so many rows of these sets instead of `rows`, by the same names.
        likelihood_questions: so many of each of those files.
        rows, documents, shots, clusterings, questions, distractors, max_new_tokens, texts, seed: sizes; see
            `embedding.Setting`, `quality.Setting` and `attention.Setting`.
    """

    data_dir: str = "data"
    sets: tuple[str, ...] = Field(min_length=1)
    train: str
    answers: str = ""
    likelihoods: tuple[str, ...] = ()
    attention: str = ""
    demonstrations: str = ""
    instructions: dict[str, str] = Field(default_factory=dict)
    rows_of: dict[str, int] = Field(default_factory=dict)
    rows: int = 500
    documents: int = 150
    shots: int = 8
    clusterings: int = 20
    questions: int = 40
    likelihood_questions: int = 100
    distractors: int = 2
    max_new_tokens: int = 16
    texts: int = 64
    seed: int = 0

    def path(self, name: str) -> Path:
        return Path(self.data_dir) / name

    def names(self) -> list[str]:
        """What a system can be judged on, as `SystemConfig.scores` calls it."""
        others = {"answers": self.answers, "attention": self.attention}
        files = dict.fromkeys((*self.sets, *self.likelihoods))
        return [*(Path(file).stem for file in files), *(name for name, file in others.items() if file)]


class RelationConfig(Recipe):
    """What a paper found, to be confirmed or refuted here.

    Args:
        claim: in words.
        source: of the claim.
        of, against: systems.
        score: that tells.
        against_score: of `against`, where it is another one.
        expected: of the difference.
        margin: that ``not below`` forgives.
    """

    claim: str
    source: str
    of: str
    against: str
    score: str
    against_score: str = ""
    expected: Literal["above", "below", "not below"] = "above"
    margin: float = Field(0.02, ge=0)


class ComparisonConfig(Recipe):
    """What `gritrag bench recipes` reads.

    Args:
        base: of all systems.
        tokens: that each recipe is trained on.
        runs_dir: where everything is kept.
        overrides: of every recipe.
        systems: by name.
        evaluation: see there.
        relations: see there.
    """

    base: str = "smollm2-135m"
    tokens: int = Field(300_000, ge=1)
    runs_dir: str = "runs/recipes"
    overrides: tuple[str, ...] = ()
    systems: dict[str, SystemConfig] = Field(min_length=1)
    evaluation: EvaluationConfig
    relations: tuple[RelationConfig, ...] = ()

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        named = [name for relation in self.relations for name in (relation.of, relation.against)]
        named += [system.trained_as for system in self.systems.values() if system.trained_as]
        unknown = sorted(set(named) - set(self.systems))
        if unknown:
            raise ValueError(f"there is no system {', '.join(unknown)}; there are: {', '.join(self.systems)}")
        return self

    def trained(self, name: str) -> str:
        """The system whose checkpoint this one is; empty for the untrained base."""
        system = self.systems[name]
        return self.trained(system.trained_as) if system.trained_as else name if system.recipe else ""
