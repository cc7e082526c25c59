"""How a classifier on a pre-trained backbone is trained: settings, published protocols, schedule, views."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from penstock.augment import Recipe, load_recipe
from penstock.augment.operations import RandomChoice
from penstock.augment.recipe import View
from penstock.engine.config import flag
from penstock.engine.evaluate.data import plain_view
from penstock.engine.schedule import scheduled
from penstock.errors import UserError
from penstock.loaders.make import check_name
from penstock.loaders.skipped import ON_ERROR

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "step")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Train a classifier on a pre-trained backbone. The defaults are MoCo's linear protocol.

    Raises:
        UserError: a value that no training can have.
    """

    finetune: bool = False
    """Train the whole network; otherwise the backbone is frozen, and a linear layer on its features is trained."""
    recipe: str = "probe"
    """The augmentation of the training images, or a file NAME.yaml; of several views the first is used."""
    size: int | None = None
    """Side of the views in pixels; default: as in pre-training."""
    draws: int | None = None
    """How many operations a recipe with a pool of them draws for a view; default: the recipe's own."""
    plain: bool = False
    """Train on each image twice in a step: augmented, and plain as in validation."""
    epochs: int = 100
    """Passes over the training images."""
    batch: int = 256
    """Images in a step; with --plain twice as many are classified."""
    optimizer: str = "sgd"
    """sgd, adam or adamw."""
    lr: float | None = None
    """Peak learning rate of the linear layer, taken as it is; default: batch / 256 times 30, or 0.05 to fine-tune;
    0.001 for adam and adamw."""
    backbone_lr: float | None = None
    """Peak learning rate of the backbone when it is fine-tuned; default: that of the linear layer."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay, on all parameters."""
    schedule: str = "step"
    """step (divide by 10 at each of the drops) or cosine."""
    drops: tuple[float, ...] = (0.6, 0.8)
    """Where the stepped schedule divides the learning rate by 10, as shares of the run."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from 0."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    val_every: int = 1
    """Epochs between two validations; there is one before the first epoch and one after the last in any case."""
    loader: str = "ffcv"
    """Who feeds the training: a name of `engine/train.py --loader`."""
    workers: int | None = None
    """Threads that decode and augment; default: one for each CPU."""
    on_error: str = "stop"
    """At an image that cannot be read: stop, or skip."""
    seed: int = 0
    """Decides the linear layer's first weights, order and augmentation."""

    def __post_init__(self) -> None:
        for field, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("on_error", ON_ERROR)):
            if (value := getattr(self, field)) not in choices:
                raise UserError(f"{flag(field)} {value!r} is not known: choose one of {', '.join(choices)}")
        check_name(self.loader)
        for field in ("size", "draws", "epochs", "batch", "lr", "backbone_lr", "val_every", "workers"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{flag(field)} {value}: this must be more than 0")
        for field in ("weight_decay", "warmup_epochs", "seed"):
            if not 0 <= (value := getattr(self, field)) < math.inf:
                raise UserError(f"{flag(field)} {value}: this must be at least 0")
        for field in ("label_smoothing", "momentum"):
            if not 0 <= (value := getattr(self, field)) < 1:
                raise UserError(f"{flag(field)} {value}: this must be at least 0, and less than 1")
        for drop in self.drops:
            if not 0 < drop < 1:
                raise UserError(f"--drops {drop:g}: these are shares of the run, such as 0.6 for epoch 60 of 100")
        if self.backbone_lr is not None and not self.finetune:
            raise UserError(
                f"--backbone-lr {self.backbone_lr}: the backbone is frozen: add --finetune, or leave it out"
            )

    @property
    def name(self) -> str:
        """What the run's files begin with."""
        return "finetune" if self.finetune else "probe-augmented"

    @property
    def head_lr(self) -> float:
        """Peak learning rate of the linear layer."""
        if self.lr is not None:
            return self.lr
        return (0.05 if self.finetune else 30.0) * self.batch / 256 if self.optimizer == "sgd" else 0.001


_POOL = ClassifierConfig(
    recipe="pool-14", draws=3, plain=True, batch=16, optimizer="adam", lr=1e-3, weight_decay=1e-4, schedule="cosine"
)
PROTOCOLS = {
    # He et al. 2020, arXiv 1911.05722, and Chen et al. 2020, arXiv 2003.04297: ImageNet, lr 30, drops at 60 and 80.
    "moco": ClassifierConfig(),
    # MoCo v2 on Imagenette, on one GPU: the layer starts from a logistic regression's weights, `start`.
    "imagenette": ClassifierConfig(lr=0.03, schedule="cosine", epochs=200, batch=32),
    # MoCo on Imagenette with a pool of 14 operations, 32 views a step: there the whole network was trained, through a
    # misspelt attribute that was meant to freeze it. Here are both.
    "pool-14-probe": _POOL,
    "pool-14-finetune": replace(_POOL, finetune=True),
    # Chen et al. 2020 (SimCLR), arXiv 2002.05709, B.5: lr .05 × batch / 256, crop and flip alone; the cosine is ours.
    "finetune": ClassifierConfig(finetune=True, schedule="cosine"),
}


def learning_rate_share(config: ClassifierConfig, epoch: float) -> float:
    """The share of the peak learning rate at an epoch (3.5: half-way through the fourth)."""
    return scheduled(
        epoch,
        schedule=config.schedule,
        epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        drops=config.drops,
    )


def training_recipe(config: ClassifierConfig, like: Recipe | None = None) -> Recipe:
    """What is done to the training images: one view, or two with --plain, normalised as in pre-training.

    Raises:
        UserError: no such recipe, or --draws for one that has no pool to draw from.
    """
    recipe = load_recipe(config.recipe)
    size = config.size or (like or recipe).size
    recipe = recipe.resized(size).over(config.epochs)
    view = replace(recipe.views[0], count=1)
    if config.draws is not None:
        view = _with_draws(view, config.draws, config.recipe)
    normalised = replace(recipe, views=(view,), mean=(like or recipe).mean, std=(like or recipe).std)
    return replace(normalised, views=(view, *plain_view(size, normalised).views)) if config.plain else normalised


def _with_draws(view: View, draws: int, recipe: str) -> View:
    if not any(isinstance(operation, RandomChoice) for operation in view.operations):
        raise UserError(f"--draws {draws}: --recipe {recipe} has no pool of operations to draw from: leave it out")
    changed = (replace(o, times=draws) if isinstance(o, RandomChoice) else o for o in view.operations)
    return replace(view, operations=tuple(changed))
