"""The protocols by which a network is evaluated, by name. Each gives figures for training and validation images.

    knn              weighted kNN; a training image has no vote on itself
    logistic         logistic regression on frozen features (scikit-learn)
    probe            linear probe on frozen features, candidates trained at once
    geometry         alignment, uniformity, divergence of class centres, concentration of augmented data
    probe-augmented  MoCo's linear protocol: a linear layer on the frozen backbone, images augmented anew in each epoch
    finetune         the whole network trained on the labels

N validation images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from penstock.augment import Recipe
from penstock.engine.config import flag
from penstock.engine.evaluate.classifier_config import training_recipe
from penstock.engine.evaluate.classify import PROTOCOLS as CLASSIFIERS
from penstock.engine.evaluate.classify import ClassifierConfig, Figures, train_classifier
from penstock.engine.evaluate.data import spread
from penstock.engine.evaluate.features import Features
from penstock.engine.evaluate.geometry import check_several_classes, geometry
from penstock.engine.evaluate.knn import knn_rank
from penstock.engine.evaluate.linear import LinearClassifier
from penstock.engine.evaluate.linear_probe import ProbeConfig, train_linear_probe
from penstock.engine.evaluate.logistic import Logistic, fit_logistic
from penstock.engine.evaluate.scores import TOP, accuracy
from penstock.engine.evaluate.subject import Subject, bar
from penstock.errors import UserError
from penstock.loaders import Source

VIEWS = ("cropped", "plain")  # how training images are shown to a linear classifier


@dataclass(frozen=True, kw_only=True)
class ProtocolsConfig:
    """The settings of every protocol; each uses its own."""

    knn_k: int = 200
    """Neighbours that vote."""
    knn_temperature: float = 0.1
    """How steeply a vote falls with distance."""
    logistic_c: float = 1.0
    """Logistic regression: inverse of the regularisation's strength, for standardised features."""
    logistic_views: str = "cropped"
    """Its training images: cropped (one random crop and flip of each), or plain, as in validation."""
    logistic_iterations: int = 2000
    """Of L-BFGS, at most."""
    probe_views: str = "plain"
    """The linear probe's training images: plain, as in validation, or cropped (one random crop and flip of each)."""
    geometry_images: int = 2000
    """Images whose geometry is measured, of the training and of the validation set, at most."""
    geometry_views: int = 4
    """Augmented views of each."""
    geometry_share: float = 0.9
    """The share of a class whose concentration is measured (σ)."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """The linear probe on cached features."""
    probe_augmented_as: str = "moco"
    """Whose settings the augmented probe starts out from: moco, imagenette (which begins with the logistic regression)
    or pool-14-probe."""
    probe_augmented: ClassifierConfig = CLASSIFIERS["moco"]
    """The linear probe on images that are augmented anew in each epoch."""
    finetune_as: str = "finetune"
    """Whose settings fine-tuning starts out from: finetune (SimCLR's) or pool-14-finetune."""
    finetune: ClassifierConfig = CLASSIFIERS["finetune"]
    """Fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a protocol found.

    Attributes:
        train, val: figures by name, for the training and the validation images; `top1` and `top5` are per cent.
        details: what else is worth keeping, for results.json.
        predicted, labels: int64 [N], the class found for each validation image, and its own; None where nothing is
            classified.
        seconds: that it took, features included where it was the first to need them.
    """

    train: dict[str, float]
    val: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    predicted: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    seconds: float = 0.0


def check_images(
    names: Sequence[str], config: ProtocolsConfig, train: Source, val: Source, like: Recipe | None
) -> None:
    """See before any protocol runs whether one of them would refuse the images.

    Args:
        like: the recipe of the pre-training.

    Raises:
        UserError: too few images, or a recipe that no classifier can be trained by.
    """
    if "probe" in names:
        config.probe.held_out_of(len(train))
    if "geometry" in names:
        for source in (train, val):
            check_several_classes(torch.tensor(spread(source, config.geometry_images).labels))
    for name, settings in (("probe-augmented", config.probe_augmented), ("finetune", config.finetune)):
        if name in names:
            training_recipe(settings, like)
            if settings.batch > len(train):
                raise UserError(
                    f"{flag(name)}.batch {settings.batch} is larger than the training set ({len(train)} images): use"
                    f" {flag(name)}.batch {len(train)} or less"
                )


def knn(subject: Subject, config: ProtocolsConfig) -> Outcome:
    """top1 and top5 by the nearest training images' votes (Wu et al. 2018, arXiv 1805.01978)."""
    bank, queries = subject.plain_train, subject.plain_val
    voting: dict[str, Any] = {"k": config.knn_k, "temperature": config.knn_temperature}
    with bar(subject.title("kNN"), len(queries) + len(bank)) as advance:
        options = {"classes": subject.classes, "top": TOP, "advance": advance, **voting}
        found = knn_rank(queries.unit, bank.unit, bank.labels, **options)
        own = knn_rank(bank.unit, bank.unit, bank.labels, among_themselves=True, **options)
    return Outcome(
        train=accuracy(own, bank.labels, classes=subject.classes),
        val=accuracy(found, queries.labels, classes=subject.classes),
        details=voting,
        predicted=found[:, 0],
        labels=queries.labels,
    )


def logistic(subject: Subject, config: ProtocolsConfig) -> Outcome:
    """top1 and top5 of scikit-learn's regression on frozen features (`logistic.py`)."""
    found = _regression(subject, config)
    details = {"views": config.logistic_views, "c": config.logistic_c}
    return _outcome(subject, found.classifier, details | {"iterations": found.iterations, "converged": found.converged})


def _regression(subject: Subject, config: ProtocolsConfig) -> Logistic:
    train = _shown(subject, config.logistic_views)
    return fit_logistic(train, classes=subject.classes, c=config.logistic_c, iterations=config.logistic_iterations)


def probe(subject: Subject, config: ProtocolsConfig) -> Outcome:
    """top1 and top5 of the best of several linear layers, trained by SGD on frozen features (`linear_probe.py`)."""
    train = _shown(subject, config.probe_views)
    with bar(subject.title("linear probe"), config.probe.rounds) as advance:
        found = train_linear_probe(train, classes=subject.classes, config=config.probe, advance=advance)
    chosen = {"held_out_top1": found.held_out, "lr": found.chosen.lr, "weight_decay": found.chosen.weight_decay}
    return _outcome(subject, found.classifier, {"views": config.probe_views, **chosen})


def _shown(subject: Subject, views: str) -> Features:
    return subject.plain_train if views == "plain" else subject.cropped_train


def _outcome(subject: Subject, classifier: LinearClassifier, details: dict[str, Any]) -> Outcome:
    """Of a linear classifier, on plain views of both sets."""
    train, val = subject.plain_train, subject.plain_val
    found = classifier.rank(val.values, TOP)
    return Outcome(
        train=accuracy(classifier.rank(train.values, TOP), train.labels, classes=subject.classes),
        val=accuracy(found, val.labels, classes=subject.classes),
        details=details,
        predicted=found[:, 0],
        labels=val.labels,
    )


def geometry_of_views(subject: Subject, config: ProtocolsConfig) -> Outcome:
    """Alignment and uniformity (arXiv 2005.10242), divergence and concentration (2111.00743) of augmented views."""
    count, share = config.geometry_views, config.geometry_share
    train, val = (
        subject.views(source, images=config.geometry_images, views=count) for source in (subject.train, subject.val)
    )
    return Outcome(
        train=geometry(train, classes=subject.classes, share=share),
        val=geometry(val, classes=subject.classes, share=share),
        details={"images": [len(train.labels), len(val.labels)], "views": count, "share": share},
    )


def probe_augmented(subject: Subject, config: ProtocolsConfig) -> Outcome:
    """top1 and top5 of a linear layer on the frozen backbone and augmented images (MoCo, arXiv 1911.05722, 4.1)."""
    from_regression = config.probe_augmented_as == "imagenette"
    start = _regression(subject, config).classifier if from_regression else None
    return _trained(subject, replace(config.probe_augmented, finetune=False), start)


def finetune(subject: Subject, config: ProtocolsConfig) -> Outcome:
    """top1 and top5 of the whole network, trained on the labels (SimCLR, arXiv 2002.05709, B.5)."""
    return _trained(subject, replace(config.finetune, finetune=True), None)


def _trained(subject: Subject, config: ClassifierConfig, start: LinearClassifier | None) -> Outcome:
    """The figures of the last epoch: the best one was chosen by the images that it is judged by."""
    result = train_classifier(
        subject.encoder.backbone,
        subject.features,
        subject.train,
        subject.val,
        config,
        precision=subject.precision,
        out=subject.out,
        like=subject.recipe,
        start=start,
    )
    best = {"epoch": result.best.epoch, **_figures(result.best, subject.classes)}
    return Outcome(
        train=_figures(result.train, subject.classes),
        val=_figures(result.last, subject.classes),
        details={"best": best, "settings": asdict(config)},
        predicted=result.last.predicted,
        labels=result.last.label,
    )


def _figures(figures: Figures, classes: int) -> dict[str, float]:
    found = {"top1": figures.top1}
    return found | {"top5": figures.top5} if classes > TOP else found


PROTOCOLS: dict[str, Callable[[Subject, ProtocolsConfig], Outcome]] = {
    "knn": knn,
    "logistic": logistic,
    "probe": probe,
    "geometry": geometry_of_views,
    "probe-augmented": probe_augmented,
    "finetune": finetune,
}
