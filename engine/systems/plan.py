"""From a published table to runs on the machine at hand: in full, or cut."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from penstock.engine.backbones import takes_width
from penstock.engine.config import TrainConfig, flag
from penstock.engine.defaults import complete
from penstock.engine.evaluate.classifier_config import PROTOCOLS as CLASSIFIERS
from penstock.engine.runs import Evaluation, Run
from penstock.engine.systems.table import Entry, Table
from penstock.errors import UserError
from penstock.options import read_options

RATES = ("lr", "weight_decay")
MANY = 1 << 30  # images, for which no default is cut
Ratios = Mapping[str, float]  # of a cut setting to the published one, by its name


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What is done otherwise than published."""

    epochs: int | None = None
    """Cut the shortest of the table's runs to so many epochs; longer ones, and the classifiers that evaluate them, in
    the same ratio."""
    subset: int | None = None
    """Train on that many images, a balanced choice; a queue longer than an eighth of them becomes the default."""
    width: int | None = None
    """Channels of the ResNets' first stage; hidden layers of heads and predictors become narrower in the same ratio."""
    size: int | None = None
    """Side of the views in pixels."""
    batch: int | None = None
    """Images in a step of the runs whose batch is the smallest; larger ones, and SGD's learning rates, in the same
    ratio."""
    arch: str | None = None
    """Another network."""
    stem: str | None = None
    """Its first layers: imagenet, half, cifar or auto."""
    data: str | None = None
    """Other images, or where the published ones lie: a folder, a shard, a name or NAME:FOLDER."""
    val_data: str | None = None
    """Labelled images to validate on, where the data have no validation split of their own."""
    class_list: Path | None = None
    """A text file with one class folder on each line, to cut an image folder to (ImageNet-100)."""
    train: str = ""
    """Further settings of engine/train.py for every run, typed as --train="--optimizer adamw --loader resident"."""
    evaluate: str = ""
    """Further settings of engine/evaluate/run.py, typed as --evaluate="--probe-augmented.epochs 20"."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An entry of a table, and the runs that it is measured by, one for each seed."""

    entry: Entry
    runs: tuple[Run, ...]


def plan(table: Table, cut: Cut, *, seeds: int, only: Sequence[str] = ()) -> list[Cell]:
    """The table's entries with their runs.

    Args:
        seeds: 0 to `seeds` - 1.
        only: patterns, one of which the names of the runs must match; none: all runs.

    Raises:
        UserError: a pattern that no run matches, or settings that cannot be given.
    """
    ratios = {
        name: value / min(entry.settings[name] for entry in table.entries)
        for name, value in (("epochs", cut.epochs), ("batch", cut.batch))
        if value is not None
    }
    entries = _chosen(table, only)
    if cut.evaluate and not any(entry.evaluation for entry in entries):
        raise UserError(f"--evaluate {cut.evaluate!r}: {table.name} is of figures that training logs: leave it out")
    return [Cell(entry=entry, runs=tuple(_run(entry, cut, ratios, seed) for seed in range(seeds))) for entry in entries]


def _chosen(table: Table, only: Sequence[str]) -> list[Entry]:
    names = list(dict.fromkeys(entry.run for entry in table.entries))
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"--only {pattern!r}: no run of {table.name} is called so; there are {', '.join(names)}")
    return [e for e in table.entries if not only or any(fnmatchcase(e.run, pattern) for pattern in only)]


def _run(entry: Entry, cut: Cut, ratios: Ratios, seed: int) -> Run:
    config = replace(_shortened(entry, cut, ratios), seed=seed)
    evaluation = entry.evaluation and _evaluation(entry.evaluation, cut, ratios.get("epochs", 1.0))
    return Run(name=f"{entry.run}-seed{seed}", config=config, evaluation=evaluation)


def _shortened(entry: Entry, cut: Cut, ratios: Ratios) -> TrainConfig:
    """The published settings with what the user changes, and with what follows from that."""
    published = TrainConfig(**entry.settings)
    changed: dict[str, Any] = {
        field.name: getattr(cut, field.name)
        for field in fields(Cut)
        if field.name not in ("epochs", "batch", "train", "evaluate") and getattr(cut, field.name) is not None
    }
    changed |= {name: max(1, round(ratio * entry.settings[name])) for name, ratio in ratios.items()}
    if cut.width is not None and published.width is not None:
        hidden = {name: getattr(published, name) for name in ("hidden", "predictor")}
        changed |= {name: max(1, value * cut.width // published.width) for name, value in hidden.items() if value}
    config = _told(replace(published, **changed), cut.train)
    if not takes_width(config.arch):
        config = replace(config, width=None, stem=None)
    return replace(config, **_rates(published, config))


def _told(config: TrainConfig, train: str) -> TrainConfig:
    """The settings with those of --train; those of RATES only if they are among them."""
    blank: dict[str, Any] = dict.fromkeys(RATES)
    words = split_words("--train", train)
    told = read_options(TrainConfig, None, words, default=replace(config, **blank), prog="--train")
    for name in ("seed", "out", "resume"):
        if getattr(told, name) != getattr(config, name):
            raise UserError(f"--train {train!r}: {flag(name)} is what the sweep gives each of its runs: leave it out")
    for name in (field.name for field in fields(Cut) if field.name not in ("train", "evaluate")):
        if getattr(told, name) != getattr(config, name):
            raise UserError(f"--train {train!r}: {flag(name)} is given to the sweep itself: type it beside --train")
    return told


def _rates(published: TrainConfig, config: TrainConfig) -> dict[str, Any]:
    """The published ones that were not told: another batch of SGD changes lr in proportion; another optimizer has its
    own defaults."""
    if config.optimizer != published.optimizer:
        return {}
    lr = published.lr
    if config.optimizer in ("sgd", "lars") and lr and published.batch and config.batch:
        lr *= config.batch / published.batch
    rates = {"lr": lr, "weight_decay": published.weight_decay}
    return {name: rate for name, rate in rates.items() if getattr(config, name) is None}


def split_words(option: str, text: str) -> list[str]:
    """What was typed for an option, as a shell would split it. Raises UserError for a quotation mark on its own."""
    try:
        return shlex.split(text)
    except ValueError:
        raise UserError(f"{option} {text!r}: a quotation mark in it has no partner") from None


def _evaluation(published: Evaluation, cut: Cut, ratio: float) -> Evaluation:
    """With classifiers cut as the training was, and with what the user says of them."""
    settings: dict[str, Any] = dict(published.settings)
    if cut.epochs is not None:
        settings |= {f"{name}.epochs": max(1, round(ratio * epochs)) for name, epochs in _classifiers(published)}
    words = split_words("--evaluate", cut.evaluate)
    if len(words) % 2 or any(not word.startswith("--") for word in words[::2]):
        raise UserError(f"--evaluate {cut.evaluate!r}: type pairs, as in --evaluate='--probe-augmented.epochs 20'")
    told = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    return replace(published, settings=settings | told)


def _classifiers(evaluation: Evaluation) -> Iterator[tuple[str, int]]:
    """Those that an evaluation trains, with their epochs as published."""
    for name, default in (("probe-augmented", "moco"), ("finetune", "finetune")):
        if name in evaluation.protocols:
            yield name, CLASSIFIERS[evaluation.settings.get(f"{name}-as", default)].epochs


def fitting(cells: Sequence[Cell], length: int) -> list[Cell]:
    """With a queue of the default length where the published one is too long for so many images."""

    def fitted(run: Run, queue: int | None) -> Run:
        longer = queue is not None and queue == run.config.queue and queue > length // 8
        return replace(run, config=replace(run.config, queue=None)) if longer else run

    return [
        replace(cell, runs=tuple(fitted(run, cell.entry.settings.get("queue")) for run in cell.runs)) for cell in cells
    ]


def differences(cells: Sequence[Cell], images: int) -> dict[str, str]:
    """In which settings the runs differ from what was published: {"batch": "128 for 512"}.

    Args:
        images: that the runs train on.
    """
    changed: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for cell in cells:
        entry, run = cell.entry, cell.runs[0]
        found = _all_settings(run.config, run.evaluation, images)
        as_published = _all_settings(TrainConfig(**entry.settings), entry.evaluation, MANY)
        for name in as_published | found:
            now, was = found.get(name), as_published.get(name)
            if _shown(now) != _shown(was) and name not in ("epochs", "subset", "seed"):
                own, published = changed.setdefault(name, ({}, {}))  # in order, each value once
                own[_shown(now)], published[_shown(was)] = None, None
    return {name: f"{'/'.join(own)} for {'/'.join(published)}" for name, (own, published) in changed.items()}


def _all_settings(config: TrainConfig, evaluation: Evaluation | None, images: int) -> dict[str, Any]:
    """Of a run and its evaluation, with what some of those that matter come to where they are left to the defaults."""
    completed = complete(config, source=f"{config.data.partition(':')[0]}-train", length=images, world=1)
    settled = {name: getattr(completed, name) for name in (*RATES, "queue", "bn_splits")}
    if evaluation is None:
        return vars(config) | settled
    epochs = {f"{name}.epochs": epochs for name, epochs in _classifiers(evaluation)}
    return vars(config) | settled | epochs | dict(evaluation.settings)


def _shown(value: Any) -> str:
    """A setting's value; of a folder, and of NAME:FOLDER, the name alone."""
    if value is None:
        return "the default"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value).partition(":")[0]
    return Path(text).name if Path(text).is_absolute() or isinstance(value, Path) else text
