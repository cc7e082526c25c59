"""Classifiers on a pre-trained backbone, trained on augmented images: MoCo's linear protocol, and fine-tuning.

    python engine/evaluate/run.py runs/NAME/last.pt

The linear protocol (He et al. 2020, arXiv 1911.05722, section 4.1) freezes the backbone, BatchNorm statistics included,
and trains one linear layer on its features; since images are augmented anew in each epoch, features cannot be kept.
Fine-tuning trains the whole network. `classifier_config.py` has the published settings. Files, NAME being
`probe-augmented` or `finetune`:

    OUT/NAME.csv      each epoch, and before the first: loss and accuracy on training and validation images
    OUT/NAME-last.pt  everything the next step depends on; a run that was stopped goes on from here
    OUT/NAME-best.pt  the weights of the epoch that did best on the validation images

The best epoch is chosen by the images that it is then judged by, so its accuracy flatters it: say which one you report.

N images in a step, S the side of a view, D features, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.augment import Recipe
from penstock.engine.checkpoint import load_checkpoint
from penstock.engine.config import flag
from penstock.engine.csv_log import CsvLog
from penstock.engine.evaluate.classifier_config import PROTOCOLS, ClassifierConfig, training_recipe
from penstock.engine.evaluate.data import check_same_classes, in_order, labelled, plain_view
from penstock.engine.evaluate.linear import LinearClassifier
from penstock.engine.evaluate.supervised import COLUMNS, Figures, Stopped, Training, Validation, build_classifier
from penstock.engine.evaluate.trained import digest
from penstock.engine.precision import Precision
from penstock.engine.screen import Screen
from penstock.engine.signals import Interrupts
from penstock.errors import UserError
from penstock.loaders import Loader, Source, make_loader

__all__ = ["PROTOCOLS", "ClassifierConfig", "ClassifierResult", "Figures", "Stopped", "Validation", "train_classifier"]

MAY_CHANGE = ("val_every", "loader", "workers", "on_error")  # between a run and its resumption


@dataclass(frozen=True, kw_only=True)
class ClassifierResult:
    """What a training came to.

    Attributes:
        train: of the last epoch's augmented images, each as it was trained on.
        last, best: on the validation images, after the last epoch, and after the first of those with the highest top-1.
        last_weights, best_weights: checkpoints; `network` in them is the linear layer's state dict, or the whole
            `Classifier`'s where it was fine-tuned.
        log: the CSV file.
    """

    train: Figures
    last: Validation
    best: Validation
    last_weights: Path
    best_weights: Path
    log: Path


def train_classifier(
    backbone: nn.Module,
    features: int,
    train_source: Source,
    val_source: Source,
    config: ClassifierConfig,
    *,
    precision: Precision,
    out: Path,
    like: Recipe | None = None,
    start: LinearClassifier | None = None,
    resume: bool = True,
    progress: bool = True,
) -> ClassifierResult:
    """Train a linear layer on a frozen backbone, or a backbone with a linear layer on it, and validate it.

    Args:
        backbone: pre-trained, [N, 3, S, S] -> [N, D]. A frozen one is moved to the device and left in evaluation mode;
            its weights stay as they are. Fine-tuning works on a copy.
        features: D.
        train_source, val_source: labelled images of the same classes; those without a label are left out.
        precision: what the backbone computes in, and on which device.
        out: the folder for logs and weights; it is made.
        like: the recipe of the pre-training, which decides the size, and the mean and std that images are normalised
            by; None: the training recipe's own.
        start: the linear layer at the start, such as a logistic regression on the same features; None: weights normal
            with std 0.01, biases 0.
        resume: go on from `out` where a run lies there, or return at once what it came to; False: start anew.
        progress: show a bar on a terminal, or a line for each epoch elsewhere.

    Raises:
        UserError: images without labels or of different classes, a batch larger than the training set, a run in `out`
            with other settings or of another backbone, a loss that is no number any more.
        Stopped: Ctrl-C or SIGTERM; the state is saved.
    """
    train_source, val_source = _with_labels(train_source), _with_labels(val_source)
    check_same_classes(train_source, val_source, name=val_source.name)
    recipe = training_recipe(config, like)
    identity = _identity(config, recipe, train_source, val_source, backbone, start)
    state = _saved(out / f"{config.name}-last.pt", identity) if resume else None
    classifier = build_classifier(backbone, features, len(train_source.classes), config, precision, start)
    with ExitStack() as stack:
        loaders = _loaders(config, recipe, train_source, val_source, precision.device)
        train, val = (stack.enter_context(loader) for loader in loaders)
        out.mkdir(parents=True, exist_ok=True)  # now that nothing is left to refuse
        run = Training(classifier, train, val, config, identity, out)
        if state is not None:
            run.load_state_dict(state)
        log = out / f"{config.name}.csv"
        run.log = CsvLog(log, COLUMNS, key="epoch", keep=None if state is None else run.epoch)
        stack.callback(run.log.close)
        if progress:
            run.screen = Screen(epochs=config.epochs, steps=config.epochs * len(train), done=run.step, of=config.name)
            stack.callback(run.screen.close)
        run.interrupts = stack.enter_context(Interrupts())
        run.fit()
    assert run.figures is not None and run.last is not None and run.best is not None
    paths = {"last_weights": run.path("last"), "best_weights": run.path("best"), "log": log}
    return ClassifierResult(train=run.figures, last=run.last, best=run.best, **paths)


def _with_labels(source: Source) -> Source:
    known = labelled(source)
    if not len(known):
        raise UserError(f"{source.name}: none of its images has a label, and a classifier needs them: name another set")
    return known


def _loaders(
    config: ClassifierConfig, recipe: Recipe, train: Source, val: Source, device: torch.device
) -> Iterator[Loader]:
    """Of the augmented training images, and of the validation images as they are."""
    shared: dict[str, Any] = {"workers": config.workers, "device": device, "on_error": config.on_error}
    yield make_loader(config.loader, train, recipe=recipe, batch=config.batch, seed=config.seed, **shared)
    yield in_order(val, plain_view(recipe.size, recipe), **shared)


def _identity(
    config: ClassifierConfig,
    recipe: Recipe,
    train: Source,
    val: Source,
    backbone: nn.Module,
    start: LinearClassifier | None,
) -> dict[str, object]:
    """What a run has in common with the one that goes on with it, under names that an error can say."""
    given = {
        flag(f"{config.name}.{field}"): value for field, value in asdict(config).items() if field not in MAY_CHANGE
    }
    return given | {
        "a backbone with the digest": digest(backbone),
        "given weights at the start:": start is not None,
        "the recipe": f"{recipe}, mean {recipe.mean}, std {recipe.std}",
        "classes with the digest": hashlib.sha256(repr(train.classes).encode()).hexdigest()[:16],
        "so many training images:": len(train),
        "so many validation images:": len(val),
    }


def _saved(path: Path, identity: dict[str, object]) -> dict[str, Any] | None:
    """The state that a run left, or None where there is none.

    Raises:
        UserError: it is of another run, or no checkpoint.
    """
    if not path.exists():
        return None
    state = load_checkpoint(path, what="")
    was = state.get("identity", {})
    for name, value in identity.items():
        if was.get(name) != value:
            raise UserError(
                f"{path}: it was trained with {name} {was.get(name)}, not {value}: choose another --out, or delete it"
                " to start anew"
            )
    return state
