"""What a run does where it is told nothing, and which settings go together.

A setting is looked for in this order: what was typed, the data's (`DATA`), for sets of small images the method's own
for them (`SMALL`), the method's as its paper has it on ImageNet (`METHODS`).
"""

from __future__ import annotations

import math
from typing import Any

from penstock.augment import load_recipe
from penstock.augment.executors import EXECUTORS, fallback_opcodes, split_names
from penstock.augment.recipe import SMALLEST
from penstock.augment.recipes import written_size
from penstock.counts import counted
from penstock.engine.backbones import choose_stem, takes_width
from penstock.engine.config import CompleteConfig, TrainConfig, flag
from penstock.engine.methods.heads import HEADS
from penstock.errors import UserError
from penstock.loaders.skipped import ON_ERROR
from penstock.sizes import parse_bytes

Settings = dict[str, Any]

# Settings that only some methods have. A method has those that its table below names.
OF_METHODS = ("symmetric", "queue", "momentum", "momentum_schedule", "temperature", "debias", "mochi", "redundancy",
              "prototypes", "epsilon", "queue_start", "frozen", "predictor")  # fmt: skip

_CONTRAST: Settings = {"debias": 0.0, "mochi": None}
_SGD: Settings = {"optimizer": "sgd", "base_lr": 0.03, "schedule": "cosine"}
_LARS: Settings = {"optimizer": "lars", "schedule": "cosine"}
_MOCO: Settings = _SGD | _CONTRAST | {
    "queue": None, "momentum": 0.999, "momentum_schedule": "constant", "dim": 128, "head_layers": 2, "hidden": 0,
}  # fmt: skip

# As the papers have them on ImageNet; base_lr is for 256 images. A queue of None: see _default_queue.
METHODS: dict[str, Settings] = {
    "moco-v1": _MOCO | {
        "recipe": "moco-v1", "head": "linear", "head_layers": 1, "temperature": 0.07, "schedule": "step",
        "symmetric": False,
    },
    "moco-v2": _MOCO | {"recipe": "moco-v2", "head": "mlp", "temperature": 0.2, "symmetric": False},
    "moco-v2+": _MOCO | {"recipe": "moco-v2", "head": "mlp", "temperature": 0.2},
    "simclr": _LARS | _CONTRAST | {  # Chen et al. 2020, section 2.2; BatchNorm in the head as in the authors' code
        "recipe": "simclr", "base_lr": 0.3, "temperature": 0.1, "head": "mlp-bn-all", "head_layers": 2, "hidden": 0,
        "dim": 128, "weight_decay": 1e-6,
    },
    "barlow-twins": _LARS | {  # Zbontar et al. 2021, section 2.2: .2 for weights, .0048 for biases and normalisation
        "recipe": "byol", "base_lr": 0.2, "bias_lr_ratio": 0.024, "redundancy": 5e-3, "head": "mlp-bn",
        "head_layers": 3, "hidden": 8192, "dim": 8192, "weight_decay": 1.5e-6,
    },
    "simsiam": _SGD | {  # Chen & He 2021, section 3
        "recipe": "moco-v2", "base_lr": 0.05, "head": "mlp-bn-all", "head_layers": 3, "hidden": 2048, "dim": 2048,
        "predictor": 512,
    },
    "byol": _LARS | {  # Grill et al. 2020, section 3.3
        "recipe": "byol", "base_lr": 0.2, "momentum": 0.996, "momentum_schedule": "cosine", "head": "mlp-bn",
        "head_layers": 2, "hidden": 4096, "dim": 256, "predictor": 4096, "weight_decay": 1.5e-6,
    },
    "swav": _LARS | {  # Caron et al. 2020, appendix A
        "recipe": "multi-crop", "base_lr": 0.3, "temperature": 0.1, "prototypes": 3000, "epsilon": 0.05, "queue": 0,
        "queue_start": None, "frozen": None, "head": "mlp-bn", "head_layers": 2, "hidden": 2048, "dim": 128,
        "weight_decay": 1e-6,
    },
}  # fmt: skip

# On sets of small images: the MoCo authors' CIFAR-10 demo, and Huang et al. (arXiv 2111.00743), who train all with SGD.
# Barlow Twins keeps its paper's LARS, whose steps hardly depend on the loss's scale: behind their .11 it is not known.
_SMALL_MOCO: Settings = {"temperature": 0.1, "momentum": 0.99}
SMALL: dict[str, Settings] = {
    "moco-v1": _SMALL_MOCO | {"schedule": "cosine"},
    "moco-v2": _SMALL_MOCO,
    "moco-v2+": _SMALL_MOCO,
    "simclr": _SGD | {"head": "mlp", "temperature": 0.5},
    "barlow-twins": {"hidden": 2048, "dim": 2048},
    "simsiam": _SGD | {"base_lr": 0.03, "head_layers": 2},
    "byol": _SGD | {"hidden": 1024, "predictor": 1024},
    "swav": _SGD | {"hidden": 512, "prototypes": 512},
}

# By the name of a set; the last one serves every other set.
DATA: dict[str, Settings] = {
    "shapes": {  # a demonstration in a few minutes on two CPU cores
        "size": 64, "width": 16, "stem": "imagenet", "epochs": 40, "batch": 64, "queue": 1024, "bn_splits": 1,
        "optimizer": "adamw", "lr": 1.5e-3, "weight_decay": 1e-4, "recipe": "moco-small", "knn_every": 5,
    },
    "cifar10": {
        "size": 32, "width": 64, "epochs": 200, "batch": 512, "weight_decay": 5e-4, "recipe": "moco-cifar",
    },
    "stl10": {"size": 64, "width": 64, "epochs": 200, "batch": 256, "weight_decay": 5e-4},
    "": {"size": None, "width": 64, "epochs": 200, "batch": 256},
}  # fmt: skip
DATA["cifar100"] = DATA["cifar10"]

# For every method: what none of the tables above has.
COMMON: Settings = {"stem": "auto", "knn_every": 1, "weight_decay": 1e-4, "bias_lr_ratio": 1.0}
# Epochs, and the share of a shorter run: LARS warms up; SwAV's queue is not used yet; its prototypes stay as they are.
BEGINNINGS = {"warmup_epochs": (10.0, 0.1), "queue_start": (15.0, 0.1), "frozen": (1.0, 0.05)}
BASE_LR = {"sgd": 0.03, "lars": 0.3, "adam": 1e-3, "adamw": 1e-3}  # of an optimizer that is not the method's own

CHOICES = {
    "split": ("train", "unlabeled"),
    "executor": EXECUTORS,
    "on_error": ON_ERROR,
    "method": tuple(METHODS),
    "momentum_schedule": ("constant", "cosine"),
    "head": HEADS,
    "stem": ("auto", "imagenet", "half", "cifar"),
    "optimizer": ("sgd", "lars", "adam", "adamw"),
    "schedule": ("cosine", "step"),
    "amp": ("auto", "off", "bf16", "fp16"),
    "compile": ("off", "default", "reduce-overhead", "max-autotune"),
    "knn_features": ("backbone", "projection"),
    "keep_best": ("knn", "logistic"),
}
POSITIVE = ("subset", "size", "temperature", "epsilon", "prototypes", "dim", "predictor", "head_layers",
            "bn_splits", "width", "epochs", "batch", "accumulate", "lr", "bias_lr_ratio", "log_every",
            "save_every", "checkpoint_steps", "knn_k", "knn_temperature", "workers")  # fmt: skip
NOT_NEGATIVE = ("queue", "queue_start", "frozen", "redundancy", "hidden", "weight_decay", "warmup_epochs", "final_lr",
                "knn_every", "logistic_every")  # fmt: skip
SHARES = ("debias", "momentum", "sgd_momentum")


def check_choices(config: TrainConfig) -> None:
    """What can be seen to be wrong before any data are opened.

    Raises:
        UserError: a name that is not among the choices, a setting of another method, or a number that must be positive
            and is not.
    """
    fallback_opcodes(split_names(config.fallback))
    parse_bytes(config.memory_budget)
    for field, choices in CHOICES.items():
        value = getattr(config, field)
        if value is not None and value not in choices:
            raise UserError(f"{flag(field)} {value!r} is not known: choose one of {', '.join(choices)}")
    _check_belongs(config)
    for fields, least, below, rule in (
        (POSITIVE, math.ulp(0), math.inf, "this must be more than 0"),
        (NOT_NEGATIVE, 0, math.inf, "this must be 0 or more"),
        (SHARES, 0, 1, "this is a share, from 0 to less than 1"),
        (("first_size",), SMALLEST, math.inf, f"views have {SMALLEST} pixels or more"),
        (("seed",), 0, 2**64, "a seed is at least 0, and less than 2^64"),
    ):
        for field in fields:
            value = getattr(config, field)
            if value is not None and not least <= value < below:
                raise UserError(f"{flag(field)} {value}: {rule}")
    for drop in config.drops:
        if not 0 < drop < 1:
            raise UserError(f"--drops {drop:g}: these are shares of the run, such as 0.6 for epoch 60 of 100")


def _check_belongs(config: TrainConfig) -> None:
    """Hold that no setting is given that the method would ignore."""
    for field in OF_METHODS:
        given = getattr(config, field)
        if given is not None and given is not False and field not in METHODS[config.method]:
            owners = ", ".join(name for name, settings in METHODS.items() if field in settings)
            raise UserError(f"{flag(field)} is a setting of {owners}; {config.method} has none: leave it out")
    if config.head == "linear" and (config.head_layers or 1) > 1:
        raise UserError(f"--head linear is one layer, not --head-layers {config.head_layers}: use --head mlp")
    if config.keep_best is not None and getattr(config, f"{config.keep_best}_every") == 0:
        every = flag(f"{config.keep_best}_every")
        raise UserError(f"--keep-best {config.keep_best}: {every} 0 computes none to go by: use {every} 1")


def complete(config: TrainConfig, *, source: str, length: int, world: int) -> CompleteConfig:
    """Fill in what was left to the method and the data, and check that the numbers go together.

    Args:
        source: the name of the data's source, such as `cifar10-train`.
        length: images in it.
        world: ranks that train together.

    Raises:
        UserError: a batch larger than the data, or sizes that do not divide each other.
    """
    values = _of_tables(config, source.rpartition("-")[0])
    values |= {name: value for name, value in vars(config).items() if value is not None}
    _settle_network(values, config)
    _settle_schedule(values)
    moco = config.method.startswith("moco")
    part = values["batch"] // values["accumulate"]
    values.setdefault("bn_splits", _default_splits(part) if world == 1 and moco else 1)
    values.setdefault("sync_bn", not moco)
    keys = values["batch"] * (2 if config.symmetric else 1)  # that a step brings to MoCo's queue
    if moco and config.queue is None and (values["queue"] is None or values["queue"] > length // 2):
        values["queue"] = _default_queue(length, keys)
    completed = CompleteConfig(**values)
    _check_sizes(completed, length, world)
    _check_queue(completed, keys)
    return completed


def _settle_network(values: Settings, config: TrainConfig) -> None:
    if config.size is None:  # what a recipe's file says is the user's word, and goes before the data's own size
        values["size"] = written_size(values["recipe"]) or values["size"] or load_recipe(values["recipe"]).size
    if config.head_layers is None:
        values["head_layers"] = 1 if values["head"] == "linear" else max(2, values["head_layers"])
    if takes_width(values["arch"]):  # settled now, so that a checkpoint's network does not hang on the size
        values["stem"] = choose_stem(values["stem"], values["size"])
    elif config.width is None and config.stem is None:
        values |= {"width": 64, "stem": "auto"}


def _settle_schedule(values: Settings) -> None:
    """The learning rate, and for how many epochs a run begins otherwise than it goes on."""
    values.setdefault("lr", _scaled(values.pop("base_lr"), values["batch"], values["optimizer"]))
    values.setdefault("warmup_epochs", None if values["optimizer"] == "lars" else 0.0)
    for name, (epochs, share) in BEGINNINGS.items():
        if name in values and values[name] is None:
            values[name] = min(epochs, share * values["epochs"])


def _of_tables(config: TrainConfig, data: str) -> Settings:
    """What the tables say of a method on a set of data; nothing of what another method or optimizer has."""
    own, of_data = METHODS[config.method], dict(DATA.get(data, DATA[""]))
    values = COMMON | own | (SMALL[config.method] if data in DATA else {})
    optimizer: str = config.optimizer or of_data.get("optimizer") or values["optimizer"]
    if optimizer != values["optimizer"]:
        values |= {"base_lr": BASE_LR[optimizer], "weight_decay": COMMON["weight_decay"]}
    if optimizer != "lars":
        values["bias_lr_ratio"] = 1.0
    if optimizer != of_data.get("optimizer"):
        of_data.pop("lr", None)
    if own.get("queue", 0) is not None:  # the data's is for those whose length depends on them
        of_data.pop("queue", None)
    return values | of_data


def _scaled(base_lr: float, batch: int, optimizer: str) -> float:
    """The linear rule of SGD (Goyal et al. 2017, arXiv 1706.02677), for batches of more than 256 images."""
    return base_lr * max(1, batch / 256) if optimizer in ("sgd", "lars") else base_lr


def _default_splits(batch: int) -> int:
    """Up to 8 parts of at least 32 images: the paper's 256 images on 8 GPUs."""
    return next(splits for splits in (8, 4, 2, 1) if batch % splits == 0 and (batch >= 32 * splits or splits == 1))


def _default_queue(length: int, keys: int) -> int:
    """An eighth of the data, to a power of two: 65,536 on ImageNet, 4,096 on CIFAR-10, as their authors have it.

    A longer one holds the query's own image and keys of an encoder long gone.
    """
    longest = min(65536, 1 << max(0, (length // 8).bit_length() - 1))
    return max(keys, longest // keys * keys)


def _check_sizes(config: CompleteConfig, length: int, world: int) -> None:
    batch, parts = config.batch, config.accumulate
    images = counted(length, "image")
    if length < 2:
        raise UserError(
            f"{images} to train on, where a step compares 2 or more: use a larger --subset, or other --data"
        )
    if batch > length:
        raise UserError(f"--batch {batch} is larger than the data ({images}): use --batch {length} or less")
    if batch % world:
        raise UserError(f"--batch {batch} does not divide among {world} ranks: use a multiple of {world}")
    if (batch // world) % parts:
        raise UserError(
            f"--accumulate {parts} does not divide the batch ({counted(batch // world, 'image')}"
            f"{' on each rank' if world > 1 else ''}): use another number of parts, or another --batch"
        )
    if (batch // world // parts) % config.bn_splits:
        raise UserError(
            f"--bn-splits {config.bn_splits} does not divide the batch ({counted(batch // world // parts, 'image')}"
            f"{' on each rank' if world > 1 else ''}{' in each part' if parts > 1 else ''}): use --bn-splits 1, or"
            " another --batch"
        )
    if batch // world // parts < 2:
        split = f" on {world} ranks" * (world > 1) + f" in {parts} parts" * (parts > 1)
        raise UserError(f"--batch {batch}{split}: each part needs 2 images or more to compare")
    negatives = config.queue if config.method.startswith("moco") else 2 * batch // parts - 2
    if config.mochi is not None and config.mochi[0] > negatives:
        raise UserError(f"--mochi {config.mochi[0]}: there are only {negatives} negatives to find the hardest among")
    for field in BEGINNINGS:
        value = getattr(config, field)
        if value is not None and value >= config.epochs:
            all_of_it = counted(config.epochs, "epoch")
            raise UserError(f"{flag(field)} {value:g}: the run is over after {all_of_it}: use fewer")
    if config.final_lr > config.lr:
        raise UserError(f"--final-lr {config.final_lr:g} is more than --lr {config.lr:g}: a learning rate only falls")
    if config.bias_lr_ratio != 1 and config.optimizer != "lars":
        raise UserError(
            f"--bias-lr-ratio {config.bias_lr_ratio:g} is a setting of LARS, and this run's optimizer is"
            f" {config.optimizer}: leave it out{'' if config.resume else ', or add --optimizer lars'}"
        )
    if config.first_size is not None and config.epochs < 2:
        raise UserError(
            f"--first-size {config.first_size}: one epoch has no time to grow: leave it out, or add --epochs"
        )
    if config.first_size is not None and config.first_size > config.size:
        raise UserError(
            f"--first-size {config.first_size} is more than --size {config.size}: views grow, they do not shrink"
        )


def _check_queue(config: CompleteConfig, keys: int) -> None:
    """Hold that `keys`, what a step brings, fill a whole part of MoCo's queue, and that SwAV's takes in a batch."""
    if config.method.startswith("moco") and (config.queue < keys or config.queue % keys):
        both = " (both views of each image)" if config.symmetric else ""
        wrong = f"is not a multiple of the {keys} keys that a step brings{both}"
        remedy = f"--queue {max(keys, config.queue // keys * keys)}, or another --batch"
    elif config.method == "swav" and 0 < config.queue < config.batch:
        wrong = f"is shorter than a batch of {config.batch}"
        remedy = f"--queue {15 * config.batch} (15 batches, as in the paper), or 0 for none"
    else:
        return
    if config.resume not in (None, "auto"):  # the queue is the checkpoint's; auto may begin anew
        remedy = "another --batch"
    raise UserError(f"--queue {config.queue} {wrong}: use {remedy}")
