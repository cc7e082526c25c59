"""The loop: batches in, steps, logs, evaluations and checkpoints out. It knows no loader and no method by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from penstock.augment import Recipe
from penstock.augment.recipes import dump_recipe
from penstock.engine.checkpoint import CheckpointWriter, Position
from penstock.engine.config import CompleteConfig, to_dict
from penstock.engine.csv_log import Row
from penstock.engine.distributed import Team
from penstock.engine.evaluate.online import Abandoned, OnlineEvaluation, is_due
from penstock.engine.logs import RunLog
from penstock.engine.meters import Meter, WaitClock
from penstock.engine.method import Method
from penstock.engine.optimizer import build_optimizer, set_learning_rate
from penstock.engine.precision import Precision
from penstock.engine.schedule import learning_rate
from penstock.engine.seeds import derive_seed
from penstock.engine.signals import Interrupts
from penstock.errors import UserError
from penstock.loaders import Loader, Views


class Diverged(Exception):
    """The loss is no number any more."""


@dataclass
class EpochSums:
    """What an epoch's line of the log is made of: sums over its steps, and its time."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    rows: int = 0  # views made, and how many of them went around the executor
    routed: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, *, steps: int, images: int, seconds: float, waited: float, means: dict[str, float]) -> None:
        self.steps += steps
        self.images += images
        self.seconds += seconds
        self.waited += waited
        for name, mean in means.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + steps * mean

    def row(self) -> Row:
        """Means over the epoch; empty where a run was resumed behind its last step."""
        if not self.steps:
            return {}
        means = {name: total / self.steps for name, total in self.metrics.items()}
        speed = {"images_per_s": self.images / self.seconds, "wait_share": self.waited / self.seconds}
        routed = {"routed": self.routed / self.rows} if self.rows else {}
        return means | speed | routed | {"train_seconds": self.seconds}


@dataclass(frozen=True, kw_only=True)
class Best:
    """The epoch that OUT/best.pt is of: the first with the highest figure."""

    of: str  # knn or logistic
    epoch: int
    figure: float


class Trainer:
    """One run.

    Args:
        config: complete, see `config.complete`.
        recipe: what the loader was given, before its stages were scaled to the run; kept with the checkpoint.
        method, loader: what is trained, and what feeds it, on the team's device.
        team, precision: see their modules.
        out: the run's folder.

    Attributes:
        interrupts: asked after each step whether to stop.
        evaluation, log: set on rank 0, where they are wanted.
        best: of --keep-best, on rank 0.
    """

    def __init__(
        self,
        config: CompleteConfig,
        *,
        recipe: Recipe,
        method: Method,
        loader: Loader,
        team: Team,
        precision: Precision,
        out: Path,
    ) -> None:
        self.config, self.recipe, self.method, self.loader = config, recipe, method, loader
        self.team, self.precision, self.out = team, precision, out
        self.interrupts = Interrupts()
        self.evaluation: OnlineEvaluation | None = None
        self.log: RunLog | None = None
        self.best: Best | None = None
        self.model = team.wrap(method)
        self.optimizer = build_optimizer(config, method)
        self.scaler = precision.scaler()
        self.position, self.epoch_sums = Position(), EpochSums()
        self.meter, self.clock = Meter(("loss", *method.metrics), team.device), WaitClock(team.device)
        self.counted = (0, 0)  # the executor's rows, and those that went around, as last read
        self.checkpoints = CheckpointWriter()
        self.evaluated_every: tuple[int, ...] = ()  # after how many epochs, by each protocol; the same on all ranks
        self.stopping = 0  # the signal on which all ranks have agreed to stop

    def fit(self) -> int:
        """Train to the end, or until a signal. Returns that signal, or 0.

        Raises:
            Diverged: the loss is not finite; nothing is saved then.
        """
        every = (self.config.knn_every, self.config.logistic_every)
        self.evaluated_every = self.team.of_leader(every if self.evaluation is not None else ())
        if self.position.step == 0 and not self._evaluate({"epoch": 0, "step": 0}):
            self.save()
        while self.position.epoch < self.config.epochs and not self.stopping:
            self._train_epoch()
            if not self.stopping:
                self._finish_epoch()
        self.checkpoints.wait()
        return self.stopping

    def _train_epoch(self) -> None:
        self.clock.start()
        batches = self.loader.epoch(self.position.epoch, self.position.consumed)
        for _ in range(self.loader.order.steps(self.position.consumed) // self.config.accumulate):
            self._step(self._parts(batches))
            if self._due(self.config.log_every):
                self._log_steps()
            if self._stop_now():
                self.save()
                return
            if self._due(self.config.checkpoint_steps):
                self.save()
        for _ in batches:
            """Too few for another step."""
        self._log_steps()

    def _parts(self, batches: Iterator[Views]) -> Iterator[Views]:
        """What the next step computes on, one part after the other."""
        for part in range(self.config.accumulate):
            self.clock.ask()
            views = next(batches)
            self.clock.got()
            if self.log is not None and self.position.step == part == 0:
                self.log.first_batch(views)
            yield views

    def _due(self, every: int | None) -> bool:
        return every is not None and self.position.step % every == 0

    def _step(self, parts: Iterable[Views]) -> None:
        """One step of the optimizer. All of it follows from what is saved, and nothing in it waits for the device.

        But for two of torch's parts: its SyncBatchNorm (several GPUs), and its gradient scaler with LARS (fp16).
        """
        torch.manual_seed(derive_seed(self.config.seed, "step", self.position.step, self.team.rank))
        self.method.progress = self.epochs_done() / self.config.epochs
        set_learning_rate(self.optimizer, learning_rate(self.config, self.epochs_done()))
        for number, views in enumerate(parts, start=1):
            self._backward(views, last=number == self.config.accumulate)
        self.method.before_step()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step()
        self.position.step += 1
        self.position.consumed += self.step_images

    def _backward(self, views: Views, *, last: bool) -> None:
        """Add the gradients of one of a batch's parts. With the last one's, they are averaged over the ranks."""
        with self.model.no_sync() if isinstance(self.model, DistributedDataParallel) and not last else nullcontext():
            with self.precision.autocast():
                loss, metrics = self.model(views.groups, views.index)
            self.scaler.scale(loss / self.config.accumulate).backward()
        self.meter.add(loss, metrics)

    @property
    def step_images(self) -> int:
        """Images in a step, over all parts and ranks."""
        return self.config.accumulate * self.loader.order.global_batch

    def epochs_done(self) -> float:
        """Epochs behind the step to come: 3.5 half-way through the fourth."""
        steps = len(self.loader) // self.config.accumulate
        return self.position.epoch + self.position.consumed / (steps * self.step_images)

    def _stop_now(self) -> bool:
        """Whether a signal has come. Several ranks ask each other only where they log, since asking makes them wait."""
        if self.team.world == 1:
            self.stopping = self.interrupts.received
        elif self._due(self.config.log_every):
            self.stopping = self.team.any(self.interrupts.received)
        return bool(self.stopping)

    def _log_steps(self) -> None:
        """Read what the steps since the last line left on the device: the one place where the host waits for it."""
        steps = self.meter.steps
        if not steps:
            return
        means = dict(zip(self.meter.names, self.team.mean(self.meter.mean()).tolist(), strict=True))
        if not all(map(math.isfinite, means.values())):
            raise Diverged(self._diverged(f"the loss is {means['loss']}"))
        seconds, waited = self.clock.read()
        images = steps * self.loader.order.global_batch
        self.epoch_sums.add(steps=steps, images=images, seconds=seconds, waited=waited, means=means)
        self._count_routed()
        if self.log is not None:
            row = {"epoch": self.position.epoch, "step": self.position.step, **means}
            rate = self.optimizer.param_groups[0]["lr"]
            self.log.log_steps(row | {"lr": rate, "images_per_s": images / seconds, "wait_share": waited / seconds})
        self.meter.reset()
        self.clock.start()

    def _count_routed(self) -> None:
        """Add to the epoch what the executor has counted since this was last asked, prefetched batches included."""
        if self.loader.executor is not None:
            before, self.counted = self.counted, (self.loader.executor.rows, self.loader.executor.routed)
            self.epoch_sums.rows += self.counted[0] - before[0]
            self.epoch_sums.routed += self.counted[1] - before[1]

    def _diverged(self, what: str) -> str:
        safer = " or --amp off" if self.precision.dtype is not None else ""
        return (
            f"{what} by step {self.position.step} (epoch {self.position.epoch + 1}): try --lr below"
            f" {self.config.lr:g} or a longer --warmup-epochs{safer}; nothing was saved since it went wrong"
        )

    def _finish_epoch(self) -> None:
        """What follows the last step of an epoch. Every rank takes over rank 0's statistics of normalisation here."""
        self.team.follow_leader(list(self.method.buffers()))
        if any(is_due(every, self.position.epoch + 1, self.config.epochs) for every in self.evaluated_every):
            self.save()  # evaluating may take long, and what stops it would cost the epoch
        self.position.epoch += 1
        self.position.consumed = 0
        row = {"epoch": self.position.epoch, "step": self.position.step, **self.epoch_sums.row()}
        if self.config.on_error == "skip":
            row["skipped"] = len(self.loader.skipped)
        self.epoch_sums = EpochSums()
        if self._evaluate(row):
            self.save(*self._kept(row))

    def _evaluate(self, row: Row) -> bool:
        """Add to an epoch's row what the network is evaluated by, and log the row.

        Returns False, with nothing logged, where a signal came meanwhile: the run that goes on evaluates this epoch.
        """
        if self.evaluation is not None:
            try:
                row |= self.evaluation.figures(
                    self.method.encoder, self.precision, epoch=int(row["epoch"]), stop=lambda: self.interrupts.received
                )
            except Abandoned:
                self.stopping = self.interrupts.received
        self.stopping = self.team.any(self.stopping)
        if not self.stopping and self.log is not None and len(row) > 2:
            self.log.log_epoch(row)
        return not self.stopping

    def _kept(self, row: Row) -> Iterator[str]:
        """The names under which the checkpoint of the epoch with this row is kept."""
        if self.config.save_every is not None and self.position.epoch % self.config.save_every == 0:
            yield f"epoch-{self.position.epoch:04d}.pt"
        of = self.config.keep_best
        if of in row and (self.best is None or row[of] > self.best.figure):
            self.best = Best(of=of, epoch=self.position.epoch, figure=row[of])
            yield "best.pt"

    def save(self, *copies: str) -> None:
        """Have the state written to OUT/last.pt, and before that under the names of copies that are to be kept.

        Looks at the loss first, and at what the last step made of the weights, which no loss has seen yet.
        """
        self._log_steps()
        if self.team.any(int(not all_finite(self.method))):
            raise Diverged(self._diverged("weights are no numbers any more"))
        if self.team.leads:
            self.checkpoints.save([self.out / name for name in (*copies, "last.pt")], self.state_dict())
        self.clock.start()

    def close(self) -> None:
        self.checkpoints.close()
        if self.log is not None:
            self.log.close()
        if self.evaluation is not None:
            self.evaluation.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "config": to_dict(self.config),
            "recipe": dump_recipe(self.recipe),
            "samples": self.loader.order.length,
            "world": self.team.world,
            "order": self.loader.order.name,
            "position": dataclasses.asdict(self.position),
            "epoch_sums": dataclasses.asdict(self.epoch_sums),
            "best": dataclasses.asdict(self.best) if self.best else None,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the run that wrote this stood; the optimizer's settings stay this run's."""
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            self.method.load_state_dict(state["method"])
        except RuntimeError:
            version = state.get("penstock", "another version")
            raise UserError(
                f"--resume: the checkpoint was written by Penstock {version}, whose {self.config.method} had other"
                " parts: start anew from its weights with --init"
            ) from None
        for group, own in zip(state["optimizer"]["param_groups"], settings, strict=True):
            group.update(own)  # first: where its tensors must lie depends on whether this run's optimizer is fused
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the checkpoint's run needed none
            self.scaler.load_state_dict(state["scaler"])
        self.loader.order.follow(state["order"])
        self.position = Position(**state["position"])
        self.epoch_sums = EpochSums(**state["epoch_sums"])
        best = state.get("best")
        if best and best["of"] == self.config.keep_best and (self.out / "best.pt").exists():
            self.best = Best(**best)


@torch.no_grad()
def all_finite(network: torch.nn.Module) -> bool:
    """Whether every weight and buffer is a number. Waits for the device."""
    tensors = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
    return bool(torch.stack(torch._foreach_norm(tensors)).isfinite().all())
