"""What a training run can be told, and what it does where it is told nothing.

A field that is None takes the method's or the data's own value: `METHODS` and `DATA` below hold them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.augment import load_recipe
from penstock.augment.executors import EXECUTORS, fallback_opcodes, split_names
from penstock.engine.backbones import choose_stem, takes_width
from penstock.errors import UserError
from penstock.loaders.skipped import ON_ERROR
from penstock.sizes import parse_bytes


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a self-supervised method on a set of images."""

    # Data
    data: str = "shapes"
    """What to train on: a folder of images, a shard (FILE.beton, FILE.tar), a name (shapes, cifar10, cifar100, stl10,
    imagenette) or NAME:FOLDER."""
    split: str = "train"
    """Which part of it: train, or unlabeled (stl10)."""
    val_data: str | None = None
    """Labelled images for kNN, where the data have no validation split of their own."""
    class_list: Path | None = None
    """A text file with one class folder on each line, to cut an image folder to (ImageNet-100)."""
    subset: int | None = None
    """Train on that many images, the same balanced choice each time."""
    loader: str = "ffcv"
    """Who feeds the training: auto (measures, and takes the fastest here), folder, ffcv, resident (all images in
    memory), dali, torchvision, ffcv-package or synthetic."""
    order: str = "auto"
    """In which order images are seen: full (a new permutation each epoch), quasi (a shard is read in long runs, which
    are shuffled within a window of memory; quasi:BLOCK:WINDOW in images), stored, or auto: quasi for a shard larger
    than memory, else full."""
    on_error: str = "stop"
    """At an image that cannot be read: stop, or skip: it is named and counted, and the next one takes its place."""
    memory_budget: str | None = None
    """What the loader resident may fill, such as 8GB; default: half of the memory that is free."""
    workers: int | None = None
    """Threads (processes for torchvision) that decode and augment; default: one for each CPU."""
    recipe: str | None = None
    """The augmentation: moco-v1, moco-v2, moco-small (v2 without blur, for small views), moco-cifar, simclr, byol,
    multi-crop (2 large views, 6 small), albumentations-7, pool-14, gradual, albumentations-7-gradual (jitter that
    grows), abcde, abcd, abc, ab, a, color-1, color-1/2, color-1/4, color-1/8, or a file NAME.yaml; default: the
    method's."""
    size: int | None = None
    """Side of the (large) views in pixels; default: 32 for CIFAR, 64 for STL-10 and shapes, else the recipe's own."""
    executor: str = "auto"
    """The code that makes the views, for the loaders of ours (folder, ffcv, resident, dali, auto): reference,
    fused_cpu, fused_gpu, albumentations, dali, or auto: fused_gpu on a GPU, else fused_cpu."""
    fallback: str = ""
    """Operations to leave to Albumentations, separated by commas: clahe,solarize."""

    # Method
    method: str = "moco-v2"
    """moco-v1 (linear head, T .07, stepped schedule) or moco-v2 (MLP head, T .2, blur, cosine schedule)."""
    symmetric: bool = False
    """Let each view be query and key in turn and sum both losses; a step costs twice as much."""
    queue: int | None = None
    """Keys to tell a query's own from, a multiple of the keys of one step; default: for an eighth of the images."""
    momentum: float | None = None
    """How much of itself the key encoder keeps at each step."""
    temperature: float | None = None
    """What similarities are divided by in the loss."""
    head: str | None = None
    """Projection head: linear or mlp."""
    dim: int = 128
    """Dimensions of the projection."""
    bn_splits: int | None = None
    """Parts of a rank's batch that BatchNorm treats apart; default: up to 8, of at least 32 images, on one rank; 1 on
    several."""

    # Network
    arch: str = "resnet18"
    """A network of torchvision's (resnet18, resnet50, resnext50_32x4d, convnext_tiny, …) or timm:NAME."""
    width: int | None = None
    """Channels of a ResNet's first stage; the published networks have 64."""
    stem: str | None = None
    """A ResNet's first layers: imagenet (7×7, stride 2, max-pool), half (3×3, stride 2), cifar (3×3, stride 1), or
    auto (default): cifar for views of up to 64 pixels."""
    init: Path | None = None
    """Weights to start the backbone from: a state dict (.pth, .safetensors) or a checkpoint of ours."""

    # Optimization
    epochs: int | None = None
    """Passes over the data."""
    batch: int | None = None
    """Images (pairs of views) in a step, over all ranks."""
    optimizer: str | None = None
    """sgd (default), adam or adamw."""
    lr: float | None = None
    """Peak learning rate, taken as it is; default: 0.03, times batch / 256 for larger ones (SGD); 0.001 (Adam)."""
    sgd_momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float | None = None
    """Weight decay, on all parameters."""
    schedule: str | None = None
    """cosine or step; default: the method's."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from 0."""
    final_lr: float = 0.0
    """Where the cosine ends."""
    drops: tuple[float, ...] = (0.6, 0.8)
    """Where the stepped schedule divides the learning rate by 10, as shares of the run."""

    # Machine
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    amp: str = "auto"
    """Autocast: auto, off, bf16 or fp16; auto takes bf16 where the hardware is faster at it, fp16 on older GPUs."""
    seed: int = 0
    """Decides weights, order, augmentation and shuffles."""

    # Output
    out: Path | None = None
    """Where logs, checkpoints and the report go; default: runs/DATA-METHOD-LOADER-TIME."""
    resume: str | None = None
    """Go on from this checkpoint, with its settings but for those given beside it; auto: from OUT/last.pt if it is
    there."""
    log_every: int = 20
    """Steps between two lines of the log."""
    save_every: int | None = None
    """Keep a checkpoint (epoch-N.pt) of every so many epochs, beside last.pt."""
    checkpoint_steps: int = 500
    """Write last.pt every so many steps too, not only at the end of an epoch."""

    # Evaluation
    knn_every: int | None = None
    """Epochs between two kNN evaluations (default: 1); 0: none."""
    knn_k: int = 200
    """Neighbours that vote."""
    knn_temperature: float = 0.1
    """How steeply a vote falls with distance."""
    knn_features: str = "backbone"
    """What is compared: the backbone's output, or the projection."""


METHODS: dict[str, dict[str, Any]] = {
    "moco-v1": {"recipe": "moco-v1", "head": "linear", "temperature": 0.07, "schedule": "step"},
    "moco-v2": {"recipe": "moco-v2", "head": "mlp", "temperature": 0.2, "schedule": "cosine"},
}

# By the name of a set; the last one serves every other set. Any setting that is None above may stand here, and
# goes before the method's. A size of None: the recipe's. A queue of None: see _default_queue.
DATA: dict[str, dict[str, Any]] = {
    "shapes": {  # a demonstration in a few minutes on two CPU cores
        "size": 64, "width": 16, "stem": "imagenet", "epochs": 40, "batch": 64, "queue": 1024, "momentum": 0.99,
        "temperature": 0.1, "bn_splits": 1, "optimizer": "adamw", "lr": 1.5e-3, "weight_decay": 1e-4,
        "recipe": "moco-small", "knn_every": 5,
    },
    "cifar10": {  # the MoCo authors' CIFAR-10 demo, with the method's head
        "size": 32, "width": 64, "epochs": 200, "batch": 512, "queue": None, "momentum": 0.99, "temperature": 0.1,
        "weight_decay": 5e-4, "recipe": "moco-cifar",
    },
    "stl10": {
        "size": 64, "width": 64, "epochs": 200, "batch": 256, "queue": None, "momentum": 0.99, "weight_decay": 5e-4,
    },
    "": {  # Chen et al. 2020, on ImageNet
        "size": None, "width": 64, "epochs": 200, "batch": 256, "queue": None, "momentum": 0.999, "weight_decay": 1e-4,
    },
}  # fmt: skip
DATA["cifar100"] = DATA["cifar10"]

CHOICES = {
    "split": ("train", "unlabeled"),
    "executor": EXECUTORS,
    "on_error": ON_ERROR,
    "method": tuple(METHODS),
    "head": ("linear", "mlp"),
    "stem": ("auto", "imagenet", "half", "cifar"),
    "optimizer": ("sgd", "adam", "adamw"),
    "schedule": ("cosine", "step"),
    "amp": ("auto", "off", "bf16", "fp16"),
    "knn_features": ("backbone", "projection"),
}
POSITIVE = ("subset", "size", "queue", "temperature", "dim", "bn_splits", "width", "epochs", "batch", "lr",
            "log_every", "save_every", "checkpoint_steps", "knn_k", "knn_temperature")  # fmt: skip


def check_choices(config: TrainConfig) -> None:
    """What can be seen to be wrong before any data are opened.

    Raises:
        UserError: a name that is not among the choices, or a number that must be positive and is not.
    """
    fallback_opcodes(split_names(config.fallback))
    parse_bytes(config.memory_budget)
    for field, choices in CHOICES.items():
        value = getattr(config, field)
        if value is not None and value not in choices:
            raise UserError(f"{flag(field)} {value!r} is not known: choose one of {', '.join(choices)}")
    for field in POSITIVE:
        value = getattr(config, field)
        if value is not None and not value > 0:
            raise UserError(f"{flag(field)} {value}: this must be more than 0")
    if config.seed < 0:
        raise UserError(f"--seed {config.seed}: a seed is 0 or more")
    if config.workers is not None and config.workers < 1:
        raise UserError(f"--workers {config.workers}: at least one thread must load the data")


@dataclass(frozen=True, kw_only=True)
class CompleteConfig(TrainConfig):
    """A TrainConfig in which nothing is left to the method or the data."""

    recipe: str
    size: int
    queue: int
    momentum: float
    temperature: float
    head: str
    bn_splits: int
    width: int
    stem: str
    epochs: int
    batch: int
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    knn_every: int


def complete(config: TrainConfig, *, source: str, length: int, world: int) -> CompleteConfig:
    """Fill in what was left to the method and the data, and check that the numbers go together.

    Args:
        source: the name of the data's source, such as `cifar10-train`.
        length: images in it.
        world: ranks that train together.

    Raises:
        UserError: a batch larger than the data, or sizes that do not divide each other.
    """
    of_data = DATA.get(source.rpartition("-")[0], DATA[""])
    values: dict[str, Any] = {"stem": "auto"} | METHODS[config.method] | of_data
    values |= {name: value for name, value in vars(config).items() if value is not None}
    if values["size"] is None:
        values["size"] = load_recipe(values["recipe"]).size
    if takes_width(values["arch"]):  # settled now, so that a checkpoint's network does not hang on the size
        values["stem"] = choose_stem(values["stem"], values["size"])
    elif config.width is None and config.stem is None:
        values |= {"width": 64, "stem": "auto"}
    batch = values["batch"]
    keys = 2 * batch if config.symmetric else batch
    for name, value in {"stem": "auto", "optimizer": "sgd", "knn_every": 1}.items():
        values.setdefault(name, value)
    values.setdefault("lr", 0.03 * max(1, batch / 256) if values["optimizer"] == "sgd" else 0.001)
    values.setdefault("bn_splits", _default_splits(batch) if world == 1 else 1)
    if values["queue"] is None:
        values["queue"] = _default_queue(length, keys)
    completed = CompleteConfig(**values)
    _check_sizes(completed, length, world, keys)
    return completed


def _default_splits(batch: int) -> int:
    """Up to 8 parts of at least 32 images: the paper's 256 images on 8 GPUs."""
    return next(splits for splits in (8, 4, 2, 1) if batch % splits == 0 and (batch >= 32 * splits or splits == 1))


def _default_queue(length: int, keys: int) -> int:
    """An eighth of the data, to a power of two: 65,536 on ImageNet, 4,096 on CIFAR-10, as their authors have it.

    A longer one holds the query's own image and keys of an encoder long gone.
    """
    longest = min(65536, 1 << max(0, (length // 8).bit_length() - 1))
    return max(keys, longest // keys * keys)


def _check_sizes(config: CompleteConfig, length: int, world: int, keys: int) -> None:
    batch, queue, splits = config.batch, config.queue, config.bn_splits
    if batch > length:
        raise UserError(f"--batch {batch} is larger than the data ({length} images): use --batch {length} or less")
    if batch % world:
        raise UserError(f"--batch {batch} does not divide among {world} ranks: use a multiple of {world}")
    if queue % keys:
        raise UserError(
            f"--queue {queue} is not a multiple of the {keys} keys that a step brings"
            f"{' (both views of each image)' if config.symmetric else ''}:"
            f" use --queue {max(keys, queue // keys * keys)}, or another --batch"
        )
    if (batch // world) % splits:
        raise UserError(
            f"--bn-splits {splits} does not divide the batch ({batch // world} images"
            f"{' on each rank' if world > 1 else ''}): use --bn-splits 1, or another --batch"
        )


def flag(field: str) -> str:
    """`bn_splits` as it is typed: `--bn-splits`."""
    return "--" + field.replace("_", "-")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The settings as plain values, for JSON and checkpoints."""
    values = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The settings that `to_dict` wrote; what this version does not know is left out."""
    known = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    parsed = {name: value for name, value in values.items() if name in known}
    for name, value in parsed.items():
        if value is not None and str(known[name]).startswith("Path"):
            parsed[name] = Path(value)
        elif isinstance(value, list):
            parsed[name] = tuple(value)
    return TrainConfig(**parsed)
