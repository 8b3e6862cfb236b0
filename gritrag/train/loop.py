"""The training loop: a recipe in, a run's folder and a checkpoint out. Stops when told to, and resumes exactly.

python -m gritrag.train.loop configs/default.yaml lr=1e-4
torchrun --nproc-per-node 2 -m gritrag.train.loop configs/default.yaml
torchrun --nproc-per-node 2 -m gritrag.train.loop configs/default.yaml sharding=fsdp2
"""

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from gritrag.model.grit import GritModel
from gritrag.model.weight_change import input_moments
from gritrag.progress import ProgressBar
from gritrag.train.after.export import export, load_base
from gritrag.train.config import TrainConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.data.prefetch import Prefetch
from gritrag.train.data.steps import RetrievalStep
from gritrag.train.eta import mean_sizes, seconds_left
from gritrag.train.grouped_attention import group_attention
from gritrag.train.half_products import HalfProducts
from gritrag.train.metrics import Metrics
from gritrag.train.parameters import choose_parameters
from gritrag.train.quantisation_aware import QuantisationAware
from gritrag.train.ranks import Ranks
from gritrag.train.read_once import ReadOnce
from gritrag.train.run_folder import RECIPE, changed, held
from gritrag.train.schedule import Schedule
from gritrag.train.sharding import Shards, clip
from gritrag.train.signals import StopSignal
from gritrag.train.snapshot import (
    WEIGHTS,
    Progress,
    average_weights,
    load_weights,
    restore,
    save,
    snapshots,
    stored_weights,
)
from gritrag.train.validate import Validation

FORWARDS_PER_STEP = 3
"""A backward pass costs about two forward passes."""

JUDGED_TOKENS = 60_000
"""Of the steps that are made to tell what a step is: making them takes as long as training on them."""


class Trainer:
    """One run of a recipe. A run that is found in `runs_dir/name` is resumed.

    Args:
        config: the recipe.

    Raises:
        ValueError: the base's keys cannot be moved, data are broken, or weights to start from do not fit.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.run = Path(config.runs_dir) / config.name
        has_bf16 = config.device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        self.accelerator = Accelerator(
            mixed_precision="bf16" if config.autocast and has_bf16 else "no", cpu=config.device == "cpu"
        )
        self.ranks = Ranks()
        self.model = load_base(config, str(self.accelerator.device) if config.device == "auto" else config.device)
        if self.model.rotation is None:
            raise ValueError(f"{config.base} cannot be trained to answer from states: its keys cannot be moved")
        self.model.forwards.expect_changes()
        group_attention(self.model.lm)
        torch.manual_seed(config.seed)  # an adapter begins at random
        self._adapter = choose_parameters(self.model.lm, config.adapter, config.sharding == "fsdp2")
        self._quantisation_aware = QuantisationAware(self.model.lm) if config.adapter.quantisation_aware else None
        is_whole = config.autocast and config.adapter.method == "full" and config.sharding == "none"
        self._half_products = HalfProducts(self.model.lm) if is_whole else nullcontext
        self.shards = Shards(self.model, config.sharding == "fsdp2")
        parts = {f"parts.{name}": p for name, p in self.model.parts.requires_grad_().named_parameters()}
        self.parameters = {name: p for name, p in self.model.lm.named_parameters() if p.requires_grad} | parts
        if config.init:
            load_weights(config.init, self.parameters)
        for source in config.average:
            stored_weights(source, self.parameters)  # refused now, and not after hours
        self.progress = Progress()
        self._stages = config.in_stages()
        self._schedule = Schedule(config, self.ranks)
        self._enter(0)
        self.validation = Validation(config, self.read_once)
        self._stop = StopSignal()

    def _enter(self, stage: int) -> None:
        """Take up a stage's data, objectives and settings, with an optimizer that remembers nothing."""
        config = self.stage = self._stages[stage]
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        self.mixture = Mixture(config, self.model, self.ranks.rank, self.ranks.world)
        self._prefetch = Prefetch(self.mixture, config.data.workers, self.config.steps)
        self.read_once = ReadOnce(self.model, config, self.ranks)

    # --- the run ----------------------------------------------------------------------------------------------------

    def train(self) -> Path | None:
        """Run to the end and write the checkpoint: its folder, or None if the run was told to stop before.

        Raises:
            ValueError: another run is writing the folder.
        """
        with held(self.run, self.is_first):
            return self._train()

    def _train(self) -> Path | None:
        found = snapshots(self.run)
        if found:
            self.progress = self._restore(found[-1])
            if self.progress.stage >= len(self._stages):
                raise ValueError(
                    f"{found[-1]} was written in stage {self.progress.stage + 1}, and the recipe has "
                    f"{len(self._stages)}: give --set name=NAME for a run of its own"
                )
            if self.progress.stage:
                self._enter(self.progress.stage)
                self._restore(found[-1])
            self._tell(f"resuming from {found[-1]}{' which is its end' * self.is_done}")
            if self.is_first and (names := changed(self.run, self.config)):  # who writes the file reads it
                another = "give --set name=NAME for a run of its own"
                self._tell(f"what was trained there before had other settings ({', '.join(names)}): {another}")
        self._tell(self.describe())
        if self.is_first:
            recipe = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
            (self.run / RECIPE).write_text(recipe, "utf-8")
        with self._stop.listening():
            self._steps()
        if not self.is_done:
            self._tell(f"stopped at step {self.progress.step}; the same command goes on from there")
            return None
        if self.is_first:
            self._whole().ship()
        self.accelerator.wait_for_everyone()
        return self.run / "checkpoint"

    def ship(self) -> None:
        """Write the checkpoint, load it, and record how it does on the validation samples beside the trained model."""
        folder, settings = self.run / "checkpoint", self.config.adapter
        average_weights(self.config.average, self.parameters)
        moments: dict[str, torch.Tensor] = {}
        if settings.method == "full" and settings.calibration_steps:
            with input_moments(self.model.lm) as moments:
                for number in range(settings.calibration_steps):
                    self.read_once.forward(self.mixture.step(self.progress.step + number))
        self._tell(export(self.model, self._adapter, self.config, folder, moments))
        if self.config.validation.paths:
            shipped = ReadOnce(
                GritModel.from_pretrained(folder, dtype=self.config.dtype, device=self.config.device), self.config
            )
            found = Validation(self.config, shipped)()
            Metrics(self.run, self.progress.step).write({"step": self.progress.step, "shipped": found})
            self._tell("shipped: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))

    def _whole(self) -> "Trainer":
        """Where weights are sharded, a trainer that has all of them, from the last snapshot."""
        if not self.shards.is_on:
            return self
        weights = str(snapshots(self.run)[-1] / WEIGHTS)
        whole = Trainer(self.config.model_copy(update={"sharding": "none", "init": weights}))
        whole.progress = self.progress
        whole._enter(self.progress.stage)
        return whole

    def _steps(self) -> None:
        """Steps, validations and snapshots until the end or a signal; a snapshot at the last step in any case."""
        metrics = Metrics(self.run, self.progress.step) if self.is_first else None
        every, saved_at, saved_step = self.config.validation.every, time.monotonic(), self.progress.step
        if self.progress.step == 0:
            self._validate(metrics)
        with ProgressBar(
            total=self.config.steps,
            initial=self.progress.step,
            desc=self.config.name,
            mininterval=2,
            disable=not self.is_first,
        ) as bar:
            while not self.is_done and not self._must_stop():
                record = self._timed_step()
                if metrics:
                    metrics.write(record)
                bar.set_postfix({name: f"{value:.3f}" for name, value in record["losses"].items()})
                bar.update()
                if every and (self.progress.step % every == 0 or self.is_done):
                    self._validate(metrics)
                if self.ranks.lists(time.monotonic() - saved_at)[0] > self.config.checkpoint_seconds:
                    self._save()
                    saved_at, saved_step = time.monotonic(), self.progress.step
        if saved_step != self.progress.step:
            self._save()
        if metrics:
            metrics.draw()

    def _timed_step(self) -> dict[str, Any]:
        began = time.monotonic()
        record = self.step()
        seconds = time.monotonic() - began
        self.progress = self.progress._replace(
            step=self.progress.step + 1,
            seconds=self.progress.seconds + seconds,
            tokens=self.progress.tokens + record["tokens"],
        )
        return {**record, "step_seconds": round(seconds, 3), "seconds": round(self.progress.seconds, 3)}

    def step(self) -> dict[str, Any]:
        """One step of the optimizer. Returns what goes into the metrics.

        Raises:
            ValueError: the gradient is not finite.
        """
        stage = self._schedule.stage(self.progress)
        if stage != self.progress.stage:
            self.progress = self.progress._replace(stage=stage, stage_start=self.progress.step)
            self._enter(stage)
            self._tell(f"step {self.progress.step}: stage {self.config.stages[stage].name or stage + 1} begins")
        data = self._prefetch.step(self.progress.step)
        lr = self.stage.lr * self.lr_factor()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.shards.step(), self._rounding(), self._half_products(), self.accelerator.autocast():
            done = self.read_once(data)
        self.ranks.average(self.parameters.values())
        norm = clip(self.parameters.values(), self.config.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            raise ValueError(f"step {self.progress.step}: the gradient is not finite; lower lr (it is {lr:g} now)")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        every = self.ranks.lists(done)
        return {
            "step": self.progress.step,
            "source": data.source,
            "losses": {name: sum(d.losses.get(name, 0.0) for d in every) / len(every) for name in done.losses},
            "tokens": sum(d.tokens for d in every),
            "documents": sum(d.documents for d in every),
            "queries": sum(d.queries for d in every),
            "answers": sum(d.answers for d in every),
            "lr": lr,
            "norm": norm.item(),
        }

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.ranks.rank == 0

    @property
    def is_done(self) -> bool:
        """Whether the run has reached its steps, seconds or tokens."""
        return self._schedule.fraction(self.progress) >= 1

    def _rounding(self) -> AbstractContextManager[None]:
        """Weights as they will be shipped, where it is time for them."""
        is_time = self._schedule.fraction(self.progress) >= 1 - self.config.adapter.quantisation_aware
        return self._quantisation_aware() if self._quantisation_aware and is_time else nullcontext()

    def lr_factor(self) -> float:
        """What the learning rate of the stage is multiplied by now."""
        return self._schedule.lr_factor(self.stage, self.progress)

    def _validate(self, metrics: Metrics | None) -> None:
        if not (self.config.validation.paths and self.config.validation.every):
            return
        with self.shards.whole(), self._rounding(), self.accelerator.autocast():
            found = self.validation() if metrics else {}
        if metrics:
            metrics.write({"step": self.progress.step, "validation": found})
            metrics.draw()
            ProgressBar.write(f"step {self.progress.step}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))

    def _restore(self, snapshot: Path) -> Progress:
        return restore(snapshot, self.parameters, self.optimizer, self.read_once.memory)

    def _save(self) -> None:
        memory, keep = self.read_once.memory, self.config.keep
        save(self.run, self.progress, self.parameters, self.optimizer, memory, keep, writes=self.is_first)

    def _must_stop(self) -> bool:
        return any(self.ranks.lists(self._stop.is_set))

    # --- what it says -----------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """What a step is, judged by the next twenty or fewer large ones, and how long the run may take."""
        config, world = self.config, self.ranks.world
        judged = max(1, min(20, JUDGED_TOKENS // config.data.tokens_per_step))
        read = [s for n in range(judged) if isinstance(s := self.mixture.step(self.progress.step + n), RetrievalStep)]
        documents, tokens = (world * mean for mean in mean_sizes(read))
        trained = sum(parameter.numel() for parameter in self.parameters.values())
        seconds = seconds_left(config, self.progress, self._seconds_per_step(read), tokens)
        return (
            f"{config.name}: {trained / 1e6:.1f}M parameters in training ({config.adapter.method}, {config.dtype}), "
            f"{world} x {self.model.lm.device.type}\n"
            f"a step: {tokens:.0f} tokens of documents and queries, {documents - 1:.1f} negatives per anchor\n"
            f"{self.progress.step} of {config.steps} steps done, about {seconds / 60:.0f} minutes to go"
        )

    def _seconds_per_step(self, steps: Sequence[RetrievalStep]) -> float:
        """From the steps that were done, or from reading the documents of one."""
        if self.progress.step:
            return self.progress.seconds / self.progress.step
        if not steps:
            return 0.0
        began = time.monotonic()
        with self.shards.whole(), torch.no_grad(), self.accelerator.autocast():
            self.read_once.read(steps[0].documents, with_states=False)
        return FORWARDS_PER_STEP * (time.monotonic() - began)

    def _tell(self, text: str) -> None:
        if self.is_first:
            print(text, flush=True)


def main(config_path: str, overrides: Sequence[str] = ()) -> Path | None:
    """Train a recipe; the same command resumes a run that was stopped.

    Args:
        config_path: YAML file.
        overrides: such as ``lr=1e-4`` or ``data.tokens_per_step=900``.

    Returns:
        the checkpoint's folder, or None if the run was stopped before its end.

    Raises:
        ValueError: a broken recipe, data that cannot be read, or a base that cannot be trained so.
    """
    trainer = Trainer(TrainConfig.load(Path(config_path), overrides))
    found = trainer.train()
    trainer.accelerator.end_training()  # threads of a process group that outlive the interpreter may abort the process
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
