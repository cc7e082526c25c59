"""The loop that trains a classifier on a pre-trained backbone; `classify.py` sets it up.

N images in a step, V views of each, S their side, D features, C classes, M validation images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from penstock.engine.checkpoint import save_checkpoint
from penstock.engine.csv_log import CsvLog, Row
from penstock.engine.evaluate.classifier_config import ClassifierConfig, learning_rate_share
from penstock.engine.evaluate.linear import LinearClassifier
from penstock.engine.meters import Meter, WaitClock
from penstock.engine.precision import Precision
from penstock.engine.screen import Screen
from penstock.engine.seeds import derive_seed
from penstock.engine.signals import Interrupts
from penstock.engine.split_bn import SplitBatchNorm2d
from penstock.errors import UserError
from penstock.loaders import Loader, Views

SHOW_EVERY = 20  # steps between two looks at the loss, for the screen
METRICS = ("loss", "top1", "top5")
COLUMNS = ["epoch", "lr", *(f"{part}_{metric}" for part in ("train", "val") for metric in METRICS), "images_per_s",
           "wait_share"]  # fmt: skip


class Stopped(Exception):
    """A signal came, and what was trained is saved: the same call goes on. A command leaves with 128 + `signal`."""

    def __init__(self, signal: int, epoch: int) -> None:
        super().__init__(f"stopped in epoch {epoch}; the same command goes on from there")
        self.signal = signal


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Mean cross-entropy, and per cent of images whose class is the first guess, or among the first five."""

    loss: float
    top1: float
    top5: float

    def row(self, part: str) -> Row:
        return {f"{part}_{metric}": getattr(self, metric) for metric in METRICS}


@dataclass(frozen=True, kw_only=True)
class Validation(Figures):
    """What a classifier made of the validation images after so many epochs (0: before the first).

    Attributes:
        predicted, label: int64 [M], classes.
        index: int64 [M], the images' positions among the labelled ones of the source.
    """

    epoch: int
    predicted: torch.Tensor
    label: torch.Tensor
    index: torch.Tensor


class Classifier(nn.Module):
    """A linear layer on a backbone's features. The layer computes in float32, whatever the backbone computes in.

    A frozen backbone stays in evaluation mode, so that its BatchNorm statistics do not move.

    Args:
        backbone: [N, 3, S, S] -> [N, D].
        finetune: whether the backbone is trained, too.
    """

    def __init__(
        self, backbone: nn.Module, features: int, classes: int, *, finetune: bool, precision: Precision
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(features, classes)
        self.finetune, self.precision = finetune, precision

    @property
    def trained(self) -> nn.Module:
        """The part that training changes."""
        return self if self.finetune else self.head

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        self.backbone.train(mode and self.finetune)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [N, C]."""
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()), self.precision.autocast():
            features = self.backbone(images)
        return self.head(features.float().flatten(1))


def build_classifier(
    backbone: nn.Module,
    features: int,
    classes: int,
    config: ClassifierConfig,
    precision: Precision,
    start: LinearClassifier | None = None,
) -> Classifier:
    """The classifier before its first step, on the device, channels-last. A backbone to be fine-tuned is copied."""
    if config.finetune:
        backbone = copy.deepcopy(backbone).requires_grad_(True)
        for module in backbone.modules():
            if isinstance(module, SplitBatchNorm2d):
                module.splits = 1  # parts kept a key from its query, and here are neither
    classifier = Classifier(backbone, features, classes, finetune=config.finetune, precision=precision)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "linear layer"))
    if start is None:
        weight = 0.01 * torch.randn(classes, features, generator=generator)
        start = LinearClassifier(weight=weight, bias=torch.zeros(classes))
    if start.weight.shape != (classes, features):
        raise UserError(
            f"a linear classifier of {list(start.weight.shape)} cannot start one of {classes} classes on {features}"
            " features: fit it on features of this backbone, and on the same classes"
        )
    classifier.head.load_state_dict(vars(start))
    return classifier.to(precision.device).to(memory_format=torch.channels_last).eval()


def _build_optimizer(config: ClassifierConfig, classifier: Classifier, device: torch.device) -> torch.optim.Optimizer:
    """With a group for the linear layer, and one for the backbone where it is trained; `peak` is a group's own."""
    groups = [{"params": list(classifier.head.parameters()), "peak": config.head_lr}]
    if config.finetune:
        groups.append({"params": list(classifier.backbone.parameters()), "peak": config.backbone_lr or config.head_lr})
    options: dict[str, Any] = {"weight_decay": config.weight_decay, "fused": device.type == "cuda"}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.head_lr, momentum=config.momentum, **options)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(groups, lr=config.head_lr, **options)


class Training:
    """One run, from where it stands to its end.

    Attributes:
        epoch, consumed: epochs that are over, and images seen of the one that is not.
        figures: of the last epoch's images, each as it was trained on; None until there is one.
        last, best: the last validation, and the first of those with the highest top-1; None until there is one.
        log, screen, interrupts: set by who starts it, when nothing is left that may be refused.
    """

    log: CsvLog
    interrupts: Interrupts
    screen: Screen | None = None

    def __init__(
        self, classifier: Classifier, train: Loader, val: Loader, config: ClassifierConfig,
        identity: dict[str, object], out: Path,
    ) -> None:  # fmt: skip
        self.classifier, self.train, self.val, self.config = classifier, train, val, config
        self.identity, self.out, self.device = identity, out, classifier.precision.device
        self.optimizer = _build_optimizer(config, classifier, self.device)
        self.scaler = classifier.precision.scaler()
        self.meter, self.clock = Meter(METRICS, self.device), WaitClock(self.device)
        self.epoch, self.consumed = 0, 0
        self.figures: Figures | None = None
        self.last: Validation | None = None
        self.best: Validation | None = None

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.epoch * len(self.train) + self.consumed // self.config.batch

    def fit(self) -> None:
        """Train to the end.

        Raises:
            UserError: the loss is not finite; what was saved before it went wrong stays.
            Stopped: a signal came, and the state is saved.
        """
        if self.last is None:
            self._close_epoch({})
        while self.epoch < self.config.epochs:
            row = self._train_epoch()
            if self._validates(self.epoch + 1):
                self.save()  # validating may take long, and a kill would cost the epoch
            self.epoch, self.consumed = self.epoch + 1, 0
            self.meter.reset()
            self._close_epoch(row)

    def _train_epoch(self) -> Row:
        """Take the steps that are left of an epoch. Returns its line of the log."""
        self.classifier.train()
        self.clock.start()
        began = self.step
        for views in self._timed(self.train.epoch(self.epoch, self.consumed)):
            self._step(views)
            if self.screen is not None and self.step % SHOW_EVERY == 0:
                self.screen.show({"epoch": self.epoch, "step": self.step, **self._means().row("train")})
            if self.interrupts.received:
                self.save()
                raise Stopped(self.interrupts.received, self.epoch + 1)
        self.figures = self._means()
        row = self.figures.row("train") | {"lr": self.optimizer.param_groups[0]["lr"]}
        return row | self._speed(self.step - began)

    def _timed(self, batches: Iterator[Views]) -> Iterator[Views]:
        self.clock.ask()
        for views in batches:
            self.clock.got()
            yield views
            self.clock.ask()

    def _speed(self, steps: int) -> Row:
        """Empty where a run was resumed behind an epoch's last step."""
        seconds, waited = self.clock.read()
        return {"images_per_s": steps * self.config.batch / seconds, "wait_share": waited / seconds} if steps else {}

    def _step(self, views: Views) -> None:
        """One step of the optimizer. Nothing in it waits for the device, and all of it follows from what is saved."""
        torch.manual_seed(derive_seed(self.config.seed, "step", self.step))  # dropout's, where the backbone has any
        share = learning_rate_share(self.config, self.step / len(self.train))
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["peak"]
        images = views.groups[0]  # [V·N, 3, S, S]
        label = self._to_device(views.label).repeat(len(images) // len(views))  # [V·N]
        logits = self.classifier(images)  # [V·N, C]
        loss = functional.cross_entropy(logits, label, label_smoothing=self.config.label_smoothing)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        found = _first_five(logits.detach()) == label[:, None]  # [V·N, 5]
        self.meter.add(loss, {"top1": found[:, 0].float().mean(), "top5": found.any(1).float().mean()})
        self.consumed += self.config.batch

    def _to_device(self, label: torch.Tensor) -> torch.Tensor:
        """From pinned memory: a copy from other memory would wait for the steps before it."""
        return label.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else label

    def _means(self) -> Figures:
        """Over the epoch so far: here the host waits for the device.

        Raises:
            UserError: the loss is not finite.
        """
        return self._figures(self.meter.mean().tolist())

    def _figures(self, means: list[float]) -> Figures:
        """From the means of METRICS, the latter two as shares."""
        loss, top1, top5 = means
        if not math.isfinite(loss):
            safer = "" if self.classifier.precision.dtype is None else " or --amp off"
            raise UserError(
                f"the loss of {self.config.name} is {loss}, {self.epoch} epochs after its start: try --lr below"
                f" {self.config.head_lr:g} or a longer --warmup-epochs{safer}"
            )
        return Figures(loss=loss, top1=100 * top1, top5=100 * top5)

    def _validates(self, epoch: int) -> bool:
        return epoch % self.config.val_every == 0 or epoch == self.config.epochs

    def _close_epoch(self, row: Row) -> None:
        """Validate where its turn has come, log and save."""
        row = {"epoch": self.epoch, **row}
        if self._validates(self.epoch):
            self.last = self._validate()
            row |= self.last.row("val")
            if self.best is None or self.last.top1 > self.best.top1:
                self.best = self.last
                save_checkpoint(self.path("best"), self._weights())
        self.log.write(row)
        if self.screen is not None:
            self.screen.epoch_over(row)
        self.save()

    @torch.no_grad()
    def _validate(self) -> Validation:
        self.classifier.eval()
        total = torch.zeros(3, device=self.device)  # of METRICS, over the images
        predicted, label, index = [], [], []
        for views in self.val.epoch(0):
            logits, own = self.classifier(views.groups[0]), self._to_device(views.label)
            five = _first_five(logits)
            found = five == own[:, None]
            loss = functional.cross_entropy(logits, own, reduction="sum")
            total += torch.stack([loss, found[:, 0].sum(), found.any(1).sum()])
            predicted.append(five[:, 0])
            label.append(views.label)
            index.append(views.index)
            if self.interrupts.received:
                raise Stopped(self.interrupts.received, self.epoch)
        figures = self._figures([value / self.val.order.length for value in total.tolist()])
        return Validation(
            **vars(figures),
            epoch=self.epoch,
            predicted=torch.cat(predicted).cpu(),
            label=torch.cat(label),
            index=torch.cat(index),
        )

    def path(self, which: str) -> Path:
        return self.out / f"{self.config.name}-{which}.pt"

    def _weights(self) -> dict[str, Any]:
        return {"identity": self.identity, "epoch": self.epoch, "network": self.classifier.trained.state_dict()}

    def save(self) -> None:
        """Write the state, unless the loss is no number any more."""
        if self.meter.steps:
            self._means()
        save_checkpoint(self.path("last"), self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return self._weights() | {
            "consumed": self.consumed,
            "order": self.train.order.name,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meter": {"total": self.meter.total, "steps": self.meter.steps},
            "figures": None if self.figures is None else asdict(self.figures),
            "last": None if self.last is None else asdict(self.last),
            "best": None if self.best is None else asdict(self.best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.classifier.trained.load_state_dict(state["network"])
        for group, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            group["fused"] = own["fused"]  # this device's: the run may have begun on another
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.train.order.follow(state["order"])
        self.epoch, self.consumed = state["epoch"], state["consumed"]
        self.meter.total.copy_(state["meter"]["total"])
        self.meter.steps = state["meter"]["steps"]
        self.figures = Figures(**state["figures"]) if state["figures"] else None
        self.last = Validation(**state["last"]) if state["last"] else None
        self.best = Validation(**state["best"]) if state["best"] else None


def _first_five(logits: torch.Tensor) -> torch.Tensor:
    """The most likely classes first, int64 [N, 5], or as many as there are."""
    return logits.topk(min(5, logits.shape[1])).indices
