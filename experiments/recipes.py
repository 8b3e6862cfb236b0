"""Do published recipes keep what their papers found, at equal budget and on the same rows?

`python -m experiments.recipes configs/compare-recipes.yaml` trains each recipe, judges its vectors, answers and
attention beside the untrained base, and prints one table of scores and one of relations (confirmed, refuted,
undecided). Everything is kept in a folder, one system at a time, so the same command goes on where a run was stopped:

    <runs_dir>/<system>/            the training run, see `gritrag.train.snapshot`
    <runs_dir>/<system>/scores.json every score on every resample, and the setting it was measured in
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from experiments import attention
from experiments.attention import PARTS
from experiments.comparison import ComparisonConfig, EvaluationConfig, SystemConfig
from experiments.likelihood import likelihoods
from experiments.script import run
from gritrag.cli.options import Json
from gritrag.config import CHECKPOINT_FILE
from gritrag.evaluate import embedding, quality
from gritrag.evaluate.report import aligned, header
from gritrag.evaluate.rows import choose, read_questions
from gritrag.evaluate.scores import score_answer
from gritrag.evaluate.statistics import Interval, Sampled, as_json
from gritrag.index.index import Index
from gritrag.index.protocol import Reader
from gritrag.model.grit import GritModel
from gritrag.model.soft_prompts import Demonstrations
from gritrag.progress import ProgressBar
from gritrag.train.config import TrainConfig
from gritrag.train.loop import Trainer

MOST_STEPS = 20
"""Times as many as the budget should take: it is the tokens that end a run, and a step may have few of them."""

OWN = "own"
"""What a system is called while it is judged: its vectors count, and neither BM25 nor the two together."""

WAYS = {"doc-query, gold": "answers/F1 from text", "doc-cache, gold": "answers/F1 from states"}


def recipe_of(config: ComparisonConfig, name: str) -> TrainConfig:
    """A system's recipe at the budget of the comparison."""
    system = config.systems[name]
    tokens = max(1, round(system.share * config.tokens))
    common = [f"model={config.base}", f"name={name}", f"runs_dir={config.runs_dir}", f"tokens={tokens}"]
    recipe = TrainConfig.load(Path(system.recipe), [*common, *config.overrides, *system.overrides])
    steps = MOST_STEPS * -(-config.tokens // recipe.data.tokens_per_step)
    return recipe.model_copy(update={"steps": steps, "seconds": None})


def train(config: ComparisonConfig, name: str, say: Callable[[str], None]) -> Path | None:
    """The checkpoint of a system's run, trained now if it is not there. None if training was told to stop.

    Raises:
        ValueError: what is there was trained in another way.
    """
    recipe = recipe_of(config, name)
    run = Path(recipe.runs_dir) / name
    record = run / "config.yaml"
    if record.is_file() and yaml.safe_load(record.read_text("utf-8")) != recipe.model_dump(mode="json"):
        raise ValueError(f"{run} holds a run of other settings; remove it, or choose another runs_dir")
    checkpoint = run / "checkpoint"
    if (checkpoint / CHECKPOINT_FILE).is_file():
        return checkpoint
    say(f"{name}: training")
    return Trainer(recipe).train()


class Demonstrated:
    """A model whose queries are shown demonstrations: what an index and the tasks need of it, and nothing else."""

    def __init__(self, model: GritModel, demonstrations: Demonstrations) -> None:
        self._model, self._demonstrations = model, demonstrations

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_query(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        return self._model.encode_query(texts, instruction, demonstrations=self._demonstrations)


def judge(model: GritModel, system: SystemConfig, settings: EvaluationConfig) -> dict[str, Sampled]:
    """Every score of a model, by ``<set>/<score>``, ``answers/...`` and ``attention/...``."""
    shown: Reader = model
    if system.demonstrations:
        pairs = read_questions(settings.path(settings.demonstrations))[: system.demonstrations]
        shown = Demonstrated(model, model.fit_demonstrations([(pair.text, pair.document.content) for pair in pairs]))
    wanted = set(system.scores or settings.names())
    values: dict[str, Sampled] = {}
    for file in settings.sets:
        name = Path(file).stem
        if name not in wanted:
            continue
        setting = _setting(settings, name, settings.instructions.get(name) if system.reads_instructions else "")
        tasks = embedding.read_tasks(settings.path(file), settings.path(settings.train), setting)
        reader = shown if tasks[0].name == "retrieval" else model
        for measured in embedding.evaluate(reader, OWN, {name: tasks}, setting):
            if measured.system in (OWN, f"{OWN}, dense"):
                values[f"{name}/{measured.score}"] = measured.value
    if settings.answers and "answers" in wanted:
        values |= answer_scores(model, settings)
    for file in settings.likelihoods:
        if Path(file).stem in wanted:
            values |= likelihood_scores(model, file, settings)
    if settings.attention and "attention" in wanted:
        values |= attention_scores(model, settings)
    return values


def _setting(settings: EvaluationConfig, name: str, instruction: str | None) -> embedding.Setting:
    return embedding.Setting(
        settings.rows_of.get(name, settings.rows),
        settings.documents,
        settings.shots,
        settings.clusterings,
        instruction,
        seed=settings.seed,
    )


def answer_scores(model: GritModel, settings: EvaluationConfig) -> dict[str, Sampled]:
    """F1 of answers to the same questions from the same passages, read again and from their states."""
    setting, asked = _asked(settings, settings.answers, settings.questions)
    found: dict[str, list[float]] = {name: [] for name in WAYS.values()}
    with (
        tempfile.TemporaryDirectory(prefix="gritrag-recipes-") as folder,
        Index.create(Path(folder) / "index", model=model, states=setting.states) as index,
    ):
        index.add([hit.document for each in asked for hit in each.contexts["gold"]], on_conflict="skip")
        given = quality.answered(index, asked, setting)
        for each, answers in ProgressBar(given, total=len(asked), desc="answering", unit="question"):
            for way, name in WAYS.items():
                found[name].append(score_answer(answers[way].text, each.question.answers)["F1"])
    return {name: Sampled.mean(values, settings.seed) for name, values in found.items()}


def likelihood_scores(model: GritModel, file: str, settings: EvaluationConfig) -> dict[str, Sampled]:
    """How probable right answers of a file are, from text and from states: `experiments.likelihood`."""
    _, asked = _asked(settings, file, settings.likelihood_questions)
    return {
        f"{Path(file).stem}/{way}": Sampled.mean(values, settings.seed)
        for way, values in likelihoods(model, asked).items()
    }


def _asked(settings: EvaluationConfig, file: str, questions: int) -> tuple[quality.Setting, list[quality.Asked]]:
    """So many questions of a file, each with its right passage among distractors, and how they are answered."""
    path = settings.path(file)
    setting = quality.Setting(
        questions,
        settings.documents,
        settings.distractors,
        states="float32",
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        only="answers",
    )
    return setting, quality.gold_contexts(choose(read_questions(path), settings.documents), setting, path)


def attention_scores(model: GritModel, settings: EvaluationConfig) -> dict[str, Sampled]:
    """Shares of the pooled position's attention, means over layers. The model is changed: call this last."""
    setting = attention.Setting(settings.texts, seed=settings.seed)
    texts = attention.read_texts(settings.path(settings.attention), setting)
    only_last = attention.looks_from_the_last(model.config)
    means_NP = attention.measure(attention.watched(model), texts, setting, only_last).mean(1)
    return {f"attention/{p}": Sampled.mean(means_NP[:, n].tolist(), settings.seed) for n, p in enumerate(PARTS)}


def scores_of(config: ComparisonConfig, name: str, say: Callable[[str], None]) -> dict[str, Sampled] | None:
    """A system's scores, from its file or measured now. None if its training was told to stop."""
    system, source = config.systems[name], config.trained(name)
    path = Path(config.runs_dir) / name / "scores.json"
    setting = {
        "base": config.base,
        "system": system.model_dump(mode="json"),
        "recipe": recipe_of(config, source).model_dump(mode="json") if source else None,
        "evaluation": config.evaluation.model_dump(mode="json"),
    }
    if path.is_file() and (known := json.loads(path.read_text("utf-8")))["setting"] == setting:
        return {key: Sampled(v["estimate"], tuple(v["resampled"]), v["n"]) for key, v in known["scores"].items()}
    checkpoint = train(config, source, say) if source else None
    if source and checkpoint is None:
        return None
    say(f"{name}: judging")
    given = {key: getattr(system, key) for key in ("reading", "pooling", "template", "instruction")}
    model = GritModel.from_pretrained(checkpoint or config.base, dtype="float32", **({} if checkpoint else given))
    found = judge(model, system, config.evaluation)
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = {key: asdict(value) for key, value in found.items()}
    torn = path.with_suffix(".tmp")
    torn.write_text(json.dumps({"setting": setting, "scores": scores}), "utf-8")
    torn.replace(path)
    return found


def main(
    path: Path,
    overrides: Sequence[str] = (),
    as_json_text: bool = False,
    say: Callable[[str], None] = lambda line: None,
    only: Sequence[str] = (),
) -> str:
    """Train and judge whatever is not done yet, and return what to print.

    Args:
        path: YAML of a `ComparisonConfig`.
        overrides: such as ``tokens=3000``.
        as_json_text: JSON instead of tables.
        say: told what begins.
        only: these systems and no others; all where it is empty. Processes with other systems each, none of which is
            trained as another's, share the work: the last command, for all of them, finds everything done.

    Raises:
        ValueError: a broken file, a broken recipe, an unknown system, or runs of other settings in the way.
    """
    config = ComparisonConfig.load(path, overrides)
    if unknown := sorted(set(only) - set(config.systems)):
        raise ValueError(f"there is no system {', '.join(unknown)}; there are: {', '.join(config.systems)}")
    found: dict[str, dict[str, Sampled]] = {}
    for name in [name for name in config.systems if not only or name in only]:
        scores = scores_of(config, name, say)
        if scores is None:
            say("told to stop; the same command goes on from there")
            break
        found[name] = scores
    facts = {"base": config.base, "tokens": config.tokens, "systems": f"{len(found)} of {len(config.systems)}"}
    result = summarise(found, [relation.model_dump() for relation in config.relations], facts)
    return json.dumps(as_json(result), indent=2) if as_json_text else show(result)


HELD, FELL, OPEN = "confirmed", "refuted", "undecided"


def verdict(difference: Interval, expected: str, margin: float) -> str:
    """Whether the interval of a difference lies where a claim would have it.

    Args:
        difference: paired, with its 95% interval.
        expected: ``above`` or ``below`` zero; or ``not below``, by more than the margin.
        margin: see above.

    Returns:
        ``confirmed`` if all of the interval lies there, ``refuted`` if none of it, else ``undecided``.
    """
    low, high = difference.low, difference.high
    if expected == "below":
        low, high = -high, -low
    line = -margin if expected == "not below" else 0.0
    return HELD if low > line else FELL if high <= line else OPEN


def summarise(
    found: Mapping[str, Mapping[str, Sampled]], relations: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that `show` prints.

    Args:
        found: by system and score.
        relations: fields of `recipes.RelationConfig`. One whose systems are not judged yet has no difference.
        facts: what was compared.
    """
    judged = []
    for relation in relations:
        of = found.get(relation["of"], {}).get(relation["score"])
        against = found.get(relation["against"], {}).get(_against(relation))
        difference = None if of is None or against is None else of.minus(against).interval()
        told = verdict(difference, relation["expected"], relation["margin"]) if difference else "not measured"
        judged.append({**relation, "difference": difference, "verdict": told})
    scores = {system: {key: value.interval() for key, value in each.items()} for system, each in found.items()}
    return {"facts": dict(facts), "scores": scores, "relations": judged}


def show(result: Mapping[str, Any]) -> str:
    """Facts and two tables, in points of 100."""
    scores = result["scores"]
    keys = list(dict.fromkeys(key for each in scores.values() for key in each))
    rows = [[name, *(each[key].show() if key in each else "-" for key in keys)] for name, each in scores.items()]
    relations = [
        [
            relation["claim"],
            relation["source"],
            f"{relation['of']} - {relation['against']}",
            _scores(relation),
            _expected(relation),
            relation["difference"].show("+.1f") if relation["difference"] else "-",
            relation["verdict"],
        ]
        for relation in result["relations"]
    ]
    told = "points of 100, with 95% bootstrap intervals; differences are paired"
    parts = [header(result["facts"]), told, aligned(["system", *keys], rows)]
    if relations:
        columns = ["claim", "source", "difference of", "score", "expected", "found", "verdict"]
        parts.append(aligned(columns, relations))
    return "\n\n".join(parts)


def _against(relation: Mapping[str, Any]) -> str:
    """The score of the other system."""
    return str(relation.get("against_score") or relation["score"])


def _scores(relation: Mapping[str, Any]) -> str:
    return " - ".join(dict.fromkeys([relation["score"], _against(relation)]))


def _expected(relation: Mapping[str, Any]) -> str:
    return f"> -{100 * relation['margin']:g}" if relation["expected"] == "not below" else f"{relation['expected']} 0"


def command(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/compare-recipes.yaml.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A setting to change: tokens=3000.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A system; again for more. Other processes may do the others.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train recipes at equal budget, judge their vectors, answers and attention. The same command goes on."""
    typer.echo(main(config, overrides or (), as_json, lambda line: typer.echo(line, err=True), only or ()))


if __name__ == "__main__":
    run(command)
