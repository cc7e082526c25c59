"""Evaluate a trained network on the training and the validation images.

    python engine/evaluate/run.py runs/NAME                     # kNN, logistic regression, linear probe, geometry
    python engine/evaluate/run.py runs/NAME/last.pt --untrained --features projection
    python engine/evaluate/run.py runs/NAME --protocols probe-augmented,finetune
    python engine/evaluate/run.py moco_v2_800ep_pretrain.pth.tar --arch resnet50 --data path/to/images

What it finds goes to the folder `evaluation` beside the checkpoint, figures as soon as a protocol is over;
`protocols.py` and `report.py` say what that is.
Figures of training images are of those that the classifier was fitted to; for kNN an image has no vote on itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: see the package, not this folder (whose names would shadow others)
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import errno
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from penstock.augment import Recipe, load_recipe
from penstock.augment.executors import split_names
from penstock.engine.config import flag
from penstock.engine.data import share_cpus
from penstock.engine.defaults import CHOICES
from penstock.engine.distributed import join
from penstock.engine.evaluate.classify import PROTOCOLS as CLASSIFIERS
from penstock.engine.evaluate.classify import Stopped
from penstock.engine.evaluate.data import (
    EVALUATION_BATCH,
    check_same_classes,
    labelled,
    large_views,
    open_validation,
)
from penstock.engine.evaluate.features import Features
from penstock.engine.evaluate.protocols import PROTOCOLS, VIEWS, Outcome, ProtocolsConfig, check_images
from penstock.engine.evaluate.report import Findings, table, write_figures, write_report
from penstock.engine.evaluate.subject import Subject
from penstock.engine.evaluate.trained import Said, Trained, digest, load_trained
from penstock.engine.precision import Precision, choose_precision
from penstock.errors import UserError, run_command
from penstock.loaders import Source, open_source
from penstock.loaders.skipped import ON_ERROR
from penstock.machine import describe_machine, machine_line, versions
from penstock.options import read_options

FEATURES = ("backbone", "projection")
END = 1 << 30  # an epoch after the last stage of any recipe


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is evaluated, on which images."""

    checkpoint: Positional[Path]
    """A run's folder, a checkpoint in it, or weights of torchvision, timm or the MoCo authors (with --arch)."""
    protocols: str = "knn,logistic,probe,geometry"
    """What to do, separated by commas: knn, logistic, probe, geometry, probe-augmented, finetune."""
    features: str = "backbone"
    """What is evaluated: the backbone's output, or the projection; probe-augmented and finetune take the backbone."""
    untrained: bool = False
    """Evaluate the same network freshly initialised, too."""

    data: str | None = None
    """Images: a folder, a shard, a name (shapes, cifar10, …) or NAME:FOLDER; default: those of the training."""
    val_data: str | None = None
    """Labelled images to validate on, where the data have no validation split of their own."""
    class_list: Path | None = None
    """A text file with one class folder on each line, to cut an image folder to."""
    subset: int | None = None
    """Use that many training images, a balanced choice; default: as many as the training, or all of other data."""
    size: int | None = None
    """Side of the views in pixels; default: as in training, or 224."""
    recipe: str | None = None
    """Augmentation whose geometry is measured; default: that of the training, or moco-v2."""
    on_error: str = "stop"
    """At an image that cannot be read: stop, or skip."""

    arch: str | None = None
    """Network of weights from elsewhere: a name of torchvision's, or timm:NAME. A checkpoint knows its own."""
    width: int | None = None
    """Channels of its first stage; default: 64."""
    stem: str | None = None
    """Its stem: imagenet (default), half or cifar."""
    method: str | None = None
    """Refuse a checkpoint that was trained by another method."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    amp: str = "auto"
    """Autocast: auto, off, bf16 or fp16."""
    batch: int = EVALUATION_BATCH
    """Images at a time."""
    workers: int | None = None
    """Threads that decode; default: one for each CPU."""
    seed: int = 0
    """Decides the crops, and the map."""
    map_images: int = 2000
    """Validation images on the map of embeddings, at most; 0: no map."""
    out: Path | None = None
    """Where results go; default: the folder `evaluation` beside the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Config(ProtocolsConfig, Target):
    """All settings."""


def main(arguments: list[str] | None = None) -> int:
    config = parse(arguments)
    names = check(config)
    team = join(config.device)
    if team.world > 1:
        raise UserError(f"an evaluation runs on one rank, not on {team.world}: start it without torchrun")
    share_cpus(team)
    torch.backends.cudnn.benchmark = True  # batches have few shapes: let it find the fastest kernels
    said = Said(arch=config.arch, width=config.width, stem=config.stem, method=config.method)
    trained = load_trained(config.checkpoint, said, team.device, size=config.size)
    if config.features == "projection" and trained.run is None:
        raise UserError(f"--features projection: {config.checkpoint} holds a backbone alone: leave it out")
    config = complete(config, trained)
    train, val = open_images(config)
    check_images(names, config, train, val, views_of(config, trained))
    precision = choose_precision(config.amp, team.device)
    try:
        findings, mapped = evaluate(config, names, trained, train, val, precision)
    except Stopped as stopped:
        print(f"penstock: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    show(findings)
    print(f"report: {write_report(folder(config), findings, mapped, seed=config.seed)}", flush=True)
    return 0


def parse(arguments: list[str] | None = None) -> Config:
    """The settings. Those of a published protocol hold where none are given beside its name."""
    config = read_options(Config, __doc__, arguments)
    for field, finetuned in (("probe_augmented", False), ("finetune", True)):
        name = getattr(config, f"{field}_as")
        known = [name for name, settings in CLASSIFIERS.items() if settings.finetune == finetuned]
        if name not in known:
            raise UserError(f"{flag(field)}-as {name!r} is not known: choose one of {', '.join(known)}")
    default = replace(
        config,
        probe_augmented=CLASSIFIERS[config.probe_augmented_as],
        finetune=CLASSIFIERS[config.finetune_as],
    )
    return read_options(Config, __doc__, arguments, default=default)


def check(config: Config) -> list[str]:
    """The names of the protocols. Raises UserError for what can be seen to be wrong before anything is opened."""
    names = split_names(config.protocols)
    for name in names or [""]:
        if name not in PROTOCOLS:
            raise UserError(f"--protocols {name!r} is not known: choose from {', '.join(PROTOCOLS)}")
    choices = {"features": FEATURES, "logistic_views": VIEWS, "probe_views": VIEWS, "amp": CHOICES["amp"],
               "on_error": ON_ERROR}  # fmt: skip
    for field, known in choices.items():
        if (value := getattr(config, field)) not in known:
            raise UserError(f"{flag(field)} {value!r} is not known: choose one of {', '.join(known)}")
    for field, least in LEAST.items():
        value = getattr(config, field)
        if value is not None and value < least:
            raise UserError(f"{flag(field)} {value}: this must be at least {least}")
    for field in ("knn_temperature", "logistic_c"):
        if not 0 < (value := getattr(config, field)) < math.inf:
            raise UserError(f"{flag(field)} {value}: this must be more than 0, and finite")
    if not 0 < config.geometry_share <= 1:
        raise UserError(f"--geometry-share {config.geometry_share}: a share is more than 0, and 1 at most")
    if config.map_images == 1:
        raise UserError("--map-images 1: a map shows at least two images: use 2 or more, or 0 for no map")
    return list(dict.fromkeys(names))


LEAST = {"knn_k": 1, "logistic_iterations": 1, "geometry_images": 2, "geometry_views": 2, "subset": 2, "size": 1,
         "batch": 1, "workers": 1, "seed": 0, "map_images": 0}  # fmt: skip


def complete(config: Config, trained: Trained) -> Config:
    """What was not said is as in the run that trained the network."""
    run = trained.run
    values: dict[str, Any] = {"size": run.size if run else 224}
    if run is not None and config.data is None:
        values |= {"data": run.data, "val_data": run.val_data, "class_list": run.class_list}
        values |= {"subset": run.subset} if run.split == "train" else {}
    return replace(config, **{name: value for name, value in values.items() if getattr(config, name) is None})


def open_images(config: Config) -> tuple[Source, Source]:
    """The labelled images of the training set and of the validation set.

    Raises:
        UserError: there are none, or their classes differ.
    """
    if config.data is None:
        raise UserError(
            f"{config.checkpoint}: weights from elsewhere do not say which images they are for: give --data"
        )
    train = labelled(open_source(config.data, class_list=config.class_list, limit=config.subset))
    if len(set(train.labels.tolist())) < 2:
        raise UserError(
            f"{config.data}: an evaluation needs training images with labels, of at least two classes, and labelled"
            " validation images, and these training images have no labels or one class alone: choose other --data"
        )
    val = open_validation(config.data, val_data=config.val_data, class_list=config.class_list)
    if val is None:
        raise UserError(f"{config.data}: has no labelled validation images: name some with --val-data")
    check_same_classes(train, val, name=config.val_data or config.data)
    return train, val


def folder(config: Config) -> Path:
    """Where results go. Raises UserError where nothing can be written."""
    beside = config.checkpoint if config.checkpoint.is_dir() else config.checkpoint.parent
    out = config.out or beside / "evaluation"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}): choose another --out") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: cannot be written ({os.strerror(errno.EACCES)}): choose another --out")
    return out


def evaluate(
    config: Config, names: list[str], trained: Trained, train: Source, val: Source, precision: Precision
) -> tuple[Findings, Features | None]:
    """Every protocol on every network; and the features of the validation images that are to be on the map.

    Figures are written after each protocol, so that none is lost to what stops a later one.
    """
    out, recipe, size = folder(config), views_of(config, trained), config.size
    assert size is not None
    networks: dict[str, dict[str, Outcome]] = {}
    findings = Findings(networks=networks, classes=train.classes, about=about(config, names, trained, train, val))
    mapped = None
    for name in ("trained", *(["untrained"] * config.untrained)):
        first = name == "trained"
        subject = Subject(
            name=name, encoder=trained.encoder if first else trained.build(), on=config.features, train=train, val=val,
            recipe=recipe, size=size, precision=precision, out=out if first else out / name, batch=config.batch,
            workers=config.workers, on_error=config.on_error, seed=config.seed,
        )  # fmt: skip
        networks[name] = {}
        for protocol in names:
            networks[name][protocol] = timed(protocol, subject, config)
            write_figures(out, findings)
        if first and config.map_images and len(val) > 1:
            mapped = subject.plain_val.spread(config.map_images)
    return findings, mapped


def views_of(config: Config, trained: Trained) -> Recipe:
    """The views whose geometry is measured: as a staged recipe ends, normalised as in training."""
    recipe = load_recipe(config.recipe or "moco-v2") if config.recipe or not trained.recipe else trained.recipe
    like = trained.recipe or recipe
    recipe = replace(recipe.at(END), mean=like.mean, std=like.std)
    return large_views(recipe.resized(config.size or recipe.size))


def timed(protocol: str, subject: Subject, config: Config) -> Outcome:
    began = time.perf_counter()
    outcome = PROTOCOLS[protocol](subject, config)
    return replace(outcome, seconds=time.perf_counter() - began)


def about(config: Config, names: list[str], trained: Trained, train: Source, val: Source) -> dict[str, Any]:
    """What was evaluated, on what, and how."""
    own = {"probe": "probe", "probe_augmented": "probe-augmented", "finetune": "finetune"}
    unused = {field for field, protocol in own.items() if protocol not in names}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items() if k not in unused}
    return {
        "checkpoint": str(config.checkpoint),
        "network": f"{trained.about}; its {config.features}",
        "weights": digest(trained.encoder.backbone),
        "images": f"{train.name}, {len(train):,} images, and {val.name}, {len(val):,} images, of {len(train.classes)}"
        " classes",
        "settings": settings,
        "machine": {"machine": machine_line(describe_machine()), **versions()},
    }


def show(findings: Findings) -> None:
    """Print the table."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    columns, rows = table(findings.networks)
    console.print(f"{findings.about['network']}\n{findings.about['images']}\n", soft_wrap=True)
    shown = Table("protocol", "measure", box=None, pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="right")
    last = ""
    for protocol, measure, figures in rows:
        shown.add_row(protocol if protocol != last else "", measure, *(figures.get(column, "") for column in columns))
        last = protocol
    console.print(shown)
    for network, outcomes in findings.networks.items():
        if "logistic" in outcomes and not outcomes["logistic"].details["converged"]:
            print(
                f"{network}: the logistic regression has not converged: raise --logistic-iterations, or lower"
                " --logistic-c"
            )


if __name__ == "__main__":
    run_command(main)
