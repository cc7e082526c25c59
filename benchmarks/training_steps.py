"""The steps that the training benchmark races: Penstock's, the usual one, and those in between."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from penstock.augment import Recipe
from penstock.benchmarks.training_official import OfficialStep, Parts, PartStep, split_as_demo
from penstock.engine.config import CompleteConfig
from penstock.engine.distributed import Team
from penstock.engine.meters import Meter
from penstock.engine.method import Method
from penstock.engine.methods import build_method
from penstock.engine.optimizer import build_optimizer
from penstock.engine.precision import Precision
from penstock.engine.seeds import derive_seed
from penstock.loaders import Source, Views

WITH_OFFICIAL = ("moco-v1", "moco-v2")  # the methods whose step `training_official.py` writes out
ADDED = {  # what the table calls the fields of Parts
    "channels_last": "channels-last",
    "autocast": "autocast",
    "fused": "fused optimizer",
    "foreach": "foreach EMA",
    "late": "loss read late",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows have in common.

    Attributes:
        config: complete, as a training run's. Its learning rate is 0: all work is done, but weights stay where they
            start, so that no measurement depends on those before it.
        source: what loaders read; the set itself, or a part, or copies (`photographs.py`).
        name, images, distinct: the set's name, how many images `source` has, and how many of them differ.
    """

    config: CompleteConfig
    source: Source
    recipe: Recipe
    team: Team
    precision: Precision
    name: str
    images: int
    distinct: int


class Step(Protocol):
    """A training step: the views of a batch in, its loss out, on the device.

    Attributes:
        layout: that of the views it wants.
        steps: so many it has taken.
    """

    layout: torch.memory_format
    steps: int

    def __call__(self, views: Views) -> torch.Tensor: ...


class PenstockStep:
    """What `engine/loop.py` does between two batches."""

    layout = torch.channels_last

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer, precision: Precision, *, seed: int) -> None:
        self.method, self.optimizer = method, optimizer
        self.precision, self.scaler = precision, precision.scaler()
        self.meter = Meter(("loss", *method.metrics), method.team.device)
        self.seed, self.steps = seed, 0

    def __call__(self, views: Views) -> torch.Tensor:
        torch.manual_seed(derive_seed(self.seed, "step", self.steps))
        with self.precision.autocast():
            loss, metrics = self.method(views.groups, views.index)
        self.scaler.scale(loss).backward()
        self.meter.add(loss, metrics)
        self.method.before_step()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step()
        self.steps += 1
        return loss.detach()


def penstock_step(setting: Setting, *, compile: str = "off") -> PenstockStep:
    """Penstock's step, as a training run has it, or with a mode of torch.compile."""
    config = replace(setting.config, compile=compile)
    method = build_method(config, setting.team)
    return PenstockStep(method, build_optimizer(config, method), setting.precision, seed=config.seed)


def official_step(setting: Setting) -> OfficialStep:
    """The usual step, with the weights that Penstock's starts from."""
    encoder, optimizer = _network(setting, Parts())
    config = setting.config
    return OfficialStep(
        encoder, optimizer, queue=_queue(setting), momentum=config.momentum, temperature=config.temperature
    )


def part_step(setting: Setting, parts: Parts) -> PartStep:
    """The usual step with some of its parts exchanged."""
    encoder, optimizer = _network(setting, parts)
    config, off = setting.config, replace(setting.precision, dtype=None)
    return PartStep(
        encoder,
        optimizer,
        parts=parts,
        precision=setting.precision if parts.autocast else off,
        queue=_queue(setting),
        momentum=config.momentum,
        temperature=config.temperature,
    )


def more_and_more(setting: Setting) -> dict[str, Parts]:
    """Parts by the name of the one that was added last; without those that there are none of here."""
    none = {"autocast": setting.precision.dtype is None, "fused": setting.config.optimizer == "lars"}
    switches = [field.name for field in fields(Parts) if not none.get(field.name)]
    added = itertools.accumulate(({name: True} for name in switches), lambda before, one: before | one)
    return {ADDED[name]: Parts(**on) for name, on in zip(switches, added, strict=True)}


def _network(setting: Setting, parts: Parts) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The encoder that Penstock trains, and its optimizer as torch has it, or fused."""
    method = build_method(setting.config, setting.team)
    if not parts.channels_last:
        split_as_demo(method.encoder)
    ours = build_optimizer(setting.config, method)
    method.encoder.to(memory_format=torch.channels_last if parts.channels_last else torch.contiguous_format)
    how = ("fused", "foreach")
    groups = [{name: value for name, value in group.items() if name not in how} for group in ours.param_groups]
    kind: Any = type(ours)
    return method.encoder, kind(groups, fused=True) if parts.fused else kind(groups)


def _queue(setting: Setting) -> torch.Tensor:
    """Random keys [C, K]."""
    config = setting.config
    return functional.normalize(torch.randn(config.dim, config.queue), dim=0).to(setting.team.device)
