"""Runs: a resumed one equals an unbroken one, two processes equal one of twice the batch; what is shipped loads."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from architectures import make_lm
from peft.tuners.lora.layer import Linear as LoraLinear
from safetensors.torch import load_file

from gritrag.model.grit import GritModel
from gritrag.model.low_rank import SummedForward
from gritrag.model.retrieval_heads import RETRIEVAL_HEADS_FILE, RetrievalHeads
from gritrag.train.config import TrainConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.steps import Prompted, RetrievalStep
from gritrag.train.loop import Trainer, main
from gritrag.train.ranks import Ranks
from gritrag.train.read_once import ReadOnce
from gritrag.train.snapshot import WEIGHTS, snapshots

Recipe = Callable[..., TrainConfig]
KINDS = {"p_chat": 0.2, "p_full": 0.2, "max_start": 9}


class Interrupted(Trainer):
    """Gets SIGTERM in the middle of its third step."""

    def step(self) -> dict[str, Any]:
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step()


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}


def records(config: TrainConfig) -> list[dict[str, Any]]:
    path = Path(config.runs_dir) / config.name / "metrics.jsonl"
    timed = ("seconds", "step_seconds")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_equals_an_unbroken_one(recipe: Recipe, tiny_base: Path, method: str) -> None:
    validation = {"paths": ["questions.jsonl"], "every": 2, "documents": 4, "answers": 2}
    changes = {
        "generative": KINDS,
        "adapter": {"method": method, "rank": 4},
        "validation": validation,
        "contrastive": {"cross_batch_memory": 20},
    }
    unbroken = Trainer(recipe(name="unbroken", **changes))
    before = weights(unbroken)
    assert unbroken.train() == unbroken.run / "checkpoint"

    broken = recipe(name="broken", **changes)
    handler = signal.getsignal(signal.SIGTERM)
    first = Interrupted(broken)
    assert first.train() is None
    assert first.progress.step == 3
    assert signal.getsignal(signal.SIGTERM) is handler
    with (first.run / "metrics.jsonl").open("a") as file:  # what a crash may leave: a step too many, a torn line
        file.write('{"step": 3, "losses": {}}\n{"ste')
    resumed = Trainer(broken)
    assert resumed.train() is not None

    assert resumed.progress.step == unbroken.progress.step == 6
    assert resumed.progress.tokens == unbroken.progress.tokens
    for name, value in weights(unbroken).items():
        assert torch.equal(weights(resumed)[name], value), name
    assert any(not torch.equal(before[name], value) for name, value in weights(unbroken).items())
    assert records(broken) == records(unbroken.config)


def test_training_learns(recipe: Recipe) -> None:
    """Forty steps on eight facts: they are found, and their answers become much likelier, from states and in full."""
    validation = {"paths": ["questions.jsonl"], "every": 40, "documents": 8, "answers": 8, "distractors": 1}
    config = recipe(steps=40, lr=5e-3, validation=validation, generative={"p_unanswerable": 0.0})
    main_trainer = Trainer(config)
    main_trainer.train()
    first, last = (r["validation"] for r in records(config) if "validation" in r)
    assert last["questions/recall@1"] > first["questions/recall@1"]
    assert last["questions/placed"] < 0.6 * first["questions/placed"]
    assert last["questions/full"] < first["questions/full"]
    assert (main_trainer.run / "losses.svg").read_text("utf-8").count("<polyline") >= 5


@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "full", "rank": 64},
        {"method": "lora", "rank": 4, "alpha": 8},
        {"method": "full", "embeddings": True},
    ],
)
def test_the_checkpoint_loads_and_reads_as_the_trained_model_did(
    recipe: Recipe, adapter: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(recipe(adapter=adapter, reading="bidirectional", pooling="weighted_mean"))
    folder = trainer.train()
    assert folder is not None
    loaded = GritModel.from_pretrained(folder, dtype="float32", device="cpu")
    base = GritModel.from_pretrained(trainer.config.base, dtype="float32", device="cpu")
    assert (loaded.config.reading, loaded.config.pooling) == ("bidirectional", "weighted_mean")
    assert loaded.config.instruction == "Find it"
    got, want = (m.encode_document(["Gulls nest."]) for m in (loaded, trainer.model))
    np.testing.assert_allclose(got, want, atol=2e-3)
    assert np.abs(base.encode_document(["Gulls nest."]) - want).max() > 1e-2
    printed = capsys.readouterr().out
    assert "negatives per anchor" in printed
    assert ("extracted" in printed) == (adapter["method"] == "full" and "embeddings" not in adapter)
    assert len({file.stat().st_mode for file in folder.rglob("*") if file.is_file()}) == 1  # others can read all of it


def test_embeddings_and_norms_stay_as_they_were_unless_asked(recipe: Recipe) -> None:
    names = Trainer(recipe()).parameters.keys()
    assert names
    assert not any("embed" in name or "norm" in name or "lm_head" in name for name in names)
    assert any("embed" in name for name in Trainer(recipe(adapter={"embeddings": True})).parameters)


def test_snapshots_are_few_and_a_half_written_one_is_not_seen(recipe: Recipe) -> None:
    trainer = Trainer(recipe(checkpoint_seconds=1e-9, keep=2))
    trainer.train()
    found = snapshots(trainer.run)
    assert [folder.name for folder in found] == ["step-00000005", "step-00000006"]
    assert load_file(found[-1] / "weights.safetensors").keys() == trainer.parameters.keys()
    assert len({file.stat().st_mode for file in found[-1].iterdir()}) == 1
    (found[-1] / "state.json").unlink()
    resumed = Trainer(trainer.config)
    resumed.train()
    for name, value in weights(trainer).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_what_a_killed_run_was_writing_is_not_in_the_way_of_the_next(recipe: Recipe) -> None:
    """In a container every run has the same process number."""
    trainer = Trainer(recipe(steps=1))
    for torn in (f".writing-00000001-{os.getpid()}", ".writing-00000001", ".writing-00000007-12"):
        (trainer.run / torn).mkdir(parents=True)
        (trainer.run / torn / "weights.safetensors").write_bytes(b"torn")
    assert trainer.train()
    assert [folder.name for folder in snapshots(trainer.run)] == ["step-00000001"]
    assert not list(trainer.run.glob(".writing-*"))


def test_a_run_begins_from_the_weights_of_another(recipe: Recipe) -> None:
    first = Trainer(recipe(name="first", steps=2))
    first.train()
    path = str(snapshots(first.run)[-1] / "weights.safetensors")
    for name, value in weights(Trainer(recipe(name="second", init=path))).items():
        assert torch.equal(weights(first)[name], value)
    with pytest.raises(ValueError, match="the first that differs is"):
        Trainer(recipe(init=path, adapter={"method": "lora"}))
    with pytest.raises(ValueError, match="there are no weights"):
        Trainer(recipe(init="gone.safetensors"))


@pytest.mark.parametrize("form", ["lora", "ternary"])
def test_a_run_begins_from_a_checkpoint_and_ships_the_change_since_the_base(recipe: Recipe, form: str) -> None:
    adapter = {"form": form, "rank": 64}
    first = Trainer(recipe(name="first", steps=3, lr=1e-2, adapter=adapter))
    checkpoint = first.train()
    shipped = GritModel.from_pretrained(str(checkpoint), dtype="float32", device="cpu")
    heads = RetrievalHeads(((1, 3),), 1.0)
    heads.save(checkpoint / RETRIEVAL_HEADS_FILE)
    second = Trainer(recipe(name="second", steps=1, lr=1e-9, init=str(checkpoint), adapter=adapter))
    for name, value in weights(second).items():
        assert torch.equal(value, shipped.lm.get_parameter(name))
    again = GritModel.from_pretrained(str(second.train()), dtype="float32", device="cpu")
    np.testing.assert_allclose(again.encode_document(["Osk"]), shipped.encode_document(["Osk"]), atol=1e-3)
    assert again.retrieval_heads == heads
    assert shipped.retrieval_heads is None
    with pytest.raises(
        ValueError, match=r"its adapter is merged into its weights, so it goes on with adapter\.method=full"
    ):
        Trainer(recipe(init=str(checkpoint), adapter={"method": "lora"}))
    with pytest.raises((ValueError, OSError), match="nowhere"):
        Trainer(recipe(init="nowhere"))


def test_what_is_shipped_is_the_mean_of_runs(recipe: Recipe) -> None:
    full = {"form": "lora", "rank": 64}
    one, two = (Trainer(recipe(name=f"run-{seed}", seed=seed, steps=3, lr=1e-2, adapter=full)) for seed in (1, 2))
    of_one, of_two = str(one.train()), str(two.train())
    last = [str(snapshots(Path(checkpoint).parent)[-1] / WEIGHTS) for checkpoint in (of_one, of_two)]
    trained = [{name: value.clone() for name, value in weights(run).items()} for run in (one, two)]
    third = Trainer(recipe(name="third", seed=3, steps=2, lr=1e-2, adapter=full, average=last))
    third.train()
    final = Trainer(recipe(name="again", steps=1, init=str(snapshots(third.run)[-1] / WEIGHTS)))
    for name, value in weights(third).items():
        mean = (weights(final)[name] + trained[0][name] + trained[1][name]) / 3
        torch.testing.assert_close(value, mean, atol=1e-6, rtol=1e-5)
        assert not torch.equal(value, weights(final)[name]), "snapshots are not averaged"

    again = Trainer(recipe(name="run-1", seed=1, steps=3, lr=1e-2, adapter=full, average=[last[1]]))
    shipped = GritModel.from_pretrained(str(again.train()), dtype="float32", device="cpu")
    for name in weights(again):
        mean = (trained[0][name] + trained[1][name]) / 2
        torch.testing.assert_close(shipped.lm.get_parameter(name), mean, atol=2e-3, rtol=1e-2)

    with pytest.raises(ValueError, match="there are no weights"):
        Trainer(recipe(name="fourth", average=["gone.safetensors"]))
    with pytest.raises(ValueError, match="mean of two LoRA adapters"):
        recipe(average=last, adapter={"method": "lora"})


def test_links_are_trained_with_and_shipped(recipe: Recipe) -> None:
    trainer = Trainer(recipe(steps=1, link_tokens=2))
    shipped = GritModel.from_pretrained(str(trainer.train()), device="cpu")
    assert shipped.config.link_tokens == 2
    assert shipped.prompts.document("Osk").ids == trainer.model.prompts.document("Osk").ids
    assert shipped.prompts.document("Osk").ids[-2:] == [shipped.tokenizer.eos_token_id] * 2


def test_an_adapter_trains_with_summed_weights(recipe: Recipe) -> None:
    layers = [m for m in Trainer(recipe(adapter={"method": "lora"})).model.lm.modules() if isinstance(m, LoraLinear)]
    assert layers
    assert all(isinstance(layer.forward, SummedForward) for layer in layers)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_that_weights_change_in_training_is_no_news(
    recipe: Recipe, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    validation = {"paths": ["questions.jsonl"], "every": 1, "documents": 4, "answers": 2}
    Trainer(recipe(steps=1, adapter={"method": method, "rank": 4}, validation=validation)).train()
    assert "slow forward" not in caplog.text


def test_the_estimate_is_of_whichever_end_comes_first(recipe: Recipe) -> None:
    def minutes(**changes: Any) -> int:
        told = re.search(r"about (\d+) minutes to go", Trainer(recipe(steps=10**11, **changes)).describe())
        assert told
        return int(told.group(1))

    assert minutes(tokens=1) == minutes(seconds=1) == 0
    assert minutes() > minutes(tokens=10**9) > 0, "however fast the machine"


def test_a_run_ends_with_its_time(recipe: Recipe) -> None:
    trainer = Trainer(recipe(steps=100_000, seconds=0.2))
    began = time.monotonic()
    trainer.train()
    assert time.monotonic() - began < 20
    assert trainer.progress.step < 1000


def test_schedules(recipe: Recipe) -> None:
    def factors(schedule: str) -> list[float]:
        trainer = Trainer(recipe(schedule=schedule, steps=8, warmup_steps=3, min_lr_ratio=0.1))
        values = []
        for step in range(8):
            trainer.progress = trainer.progress._replace(step=step)
            values.append(trainer.lr_factor())
        return values

    assert factors("constant") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert factors("linear")[4:] == pytest.approx([0.55, 0.4375, 0.325, 0.2125])
    assert factors("cosine")[4] == pytest.approx(0.55)


def test_a_base_whose_keys_cannot_be_moved_is_refused(recipe: Recipe, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "gpt2")
    make_lm("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="cannot be moved"):
        Trainer(recipe(base=str(tmp_path / "gpt2")))


def test_a_gradient_that_is_not_finite_stops_the_run(recipe: Recipe) -> None:
    trainer = Trainer(recipe())
    with torch.no_grad():
        next(iter(trainer.parameters.values())).fill_(torch.nan)
    with pytest.raises(ValueError, match="step 0: the gradient is not finite"):
        trainer.step()


def test_main_takes_a_recipe_and_overrides(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(name="from-file").model_dump(mode="json")), "utf-8")
    folder = main(str(path), ["steps=1", "data.tokens_per_step=90"])
    assert folder == tmp_path / "runs" / "from-file" / "checkpoint"
    assert len(records(recipe(name="from-file"))) == 1


# --- several processes ------------------------------------------------------------------------------------------------


def both(first: RetrievalStep, second: RetrievalStep) -> RetrievalStep:
    """The step of which the two are halves."""
    shift = len(first.documents)
    moved = [
        Prompted(a.question_ids, a.answer_ids, tuple(row + shift for row in a.context), a.start) for a in second.answers
    ]
    return RetrievalStep(
        first.source,
        first.documents + second.documents,
        first.queries + second.queries,
        first.positives + [row + shift for row in second.positives],
        None,
        first.answers + moved,
        first.is_full,
        contents=first.contents + second.contents,
    )


def run_rank(rank: int, store: str, config: TrainConfig, out: str, world: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    model = GritModel.from_pretrained(config.base, dtype="float32", device="cpu")
    ranks = Ranks()
    ReadOnce(model, config, ranks)(Mixture(config, model, ranks.rank, ranks.world).step(0))
    ranks.average(model.lm.parameters())
    torch.save({name: p.grad for name, p in model.lm.named_parameters()}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("weighting", "p_full", "world"),
    [("token", 0.0, 2), ("token", 1.0, 2), ("sample", 0.0, 2), ("sample", 1.0, 2), ("token", 0.0, 4)],
)
def test_several_processes_equal_one_with_the_whole_batch(
    recipe: Recipe, tmp_path: Path, weighting: str, p_full: float, world: int
) -> None:
    config = recipe(
        data={"tokens_per_step": 150, "chat": [], "answers_per_step": 1 if p_full else 3},
        generative={"weighting": weighting, "p_full": p_full},
    )
    mp.spawn(run_rank, (str(tmp_path / "store"), config, str(tmp_path), world), nprocs=world)
    got = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]

    model = GritModel.from_pretrained(config.base, dtype="float32", device="cpu")
    parts = [Mixture(config, model, rank, world).step(0) for rank in range(world)]
    assert len(parts[0].documents) > 1
    whole = reduce(both, parts)
    if p_full:  # how many are read in full depends on the size of the step
        config = config.model_copy(update={"data": config.data.model_copy(update={"tokens_per_step": 10**6})})
    ReadOnce(model, config)(whole)
    for name, parameter in model.lm.named_parameters():
        assert all(torch.equal(got[0][name], other[name]) for other in got[1:]), name
        want = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(got[0][name], want, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
