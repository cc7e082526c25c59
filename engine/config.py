"""What a training run can be told, and what it does where it is told nothing.

A field that is None takes the method's or the data's own value: `defaults.py` holds them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    """Labelled images for kNN and the regression, where the data have no validation split of their own."""
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
    multi-crop (2 large views, 6 small), albumentations-7, albumentations-6, albumentations-clahe,
    albumentations-solarize, pool-14, gradual, albumentations-7-gradual (jitter that grows), abcde, abcd, abc, ab, a,
    color-1, color-1/2, color-1/4, color-1/8, or a file NAME.yaml; default: the method's."""
    size: int | None = None
    """Side of the (large) views in pixels; default: what a recipe's file says; 32 for CIFAR, 64 for STL-10 and shapes,
    else the recipe's own."""
    first_size: int | None = None
    """Begin with views of this side and let them grow to --size over the run: early epochs then cost less."""
    executor: str = "auto"
    """The code that makes the views, for the loaders of ours (folder, ffcv, resident, dali, auto): reference,
    fused_cpu, fused_gpu, albumentations, dali, or auto: fused_gpu on a GPU, else fused_cpu."""
    fallback: str = ""
    """Operations to leave to Albumentations, separated by commas: clahe,solarize."""

    # Method
    method: str = "moco-v2"
    """moco-v1 (linear head, T .07, stepped schedule), moco-v2 (MLP head, T .2, blur, cosine schedule), moco-v2+ (v2 in
    both directions, two queues), simclr, barlow-twins, simsiam, byol or swav."""
    symmetric: bool = False
    """MoCo v1, v2: let each view be query and key in turn and sum both losses; a step costs twice as much."""
    queue: int | None = None
    """MoCo: keys to tell a query's own from, a multiple of the keys of one step; default: for an eighth of the images.
    SwAV: embeddings kept to balance small batches; default: none."""
    momentum: float | None = None
    """MoCo, BYOL: how much of itself the momentum encoder keeps at each step."""
    momentum_schedule: str | None = None
    """MoCo, BYOL: constant, or cosine: the momentum rises to 1 over the run."""
    temperature: float | None = None
    """MoCo, SimCLR, SwAV: what similarities are divided by in the loss."""
    debias: float | None = None
    """MoCo, SimCLR: the debiased contrastive loss, for this share of negatives that are of the query's class (.1 for
    ten classes)."""
    mochi: tuple[int, int, int] | None = None
    """MoCo, SimCLR: mix hard negatives: how many of the hardest to mix, mixtures of two of them, mixtures with the
    query (MoCHi: 1024 1024 128)."""
    redundancy: float | None = None
    """Barlow Twins: the weight of correlations between dimensions."""
    prototypes: int | None = None
    """SwAV: clusters."""
    epsilon: float | None = None
    """SwAV: how soft the assignment to clusters is."""
    queue_start: float | None = None
    """SwAV: epochs before the queue is used; default: 15 (a tenth of a shorter run)."""
    frozen: float | None = None
    """SwAV: epochs in which the prototypes stay as they are; default: 1 (a twentieth of a shorter run)."""
    head: str | None = None
    """Projection head: linear, mlp, mlp-bn (BatchNorm in front of each ReLU), or mlp-bn-all (and after the last
    layer)."""
    head_layers: int | None = None
    """Linear layers in the head."""
    hidden: int | None = None
    """Width of the head's hidden layers; 0: as wide as the features."""
    dim: int | None = None
    """Dimensions of the projection."""
    predictor: int | None = None
    """SimSiam, BYOL: width of the predictor's hidden layer."""
    bn_splits: int | None = None
    """Parts of a rank's batch that BatchNorm treats apart; default: for MoCo up to 8, of at least 32 images, on one
    rank; else 1."""
    sync_bn: bool | None = None
    """Whether several ranks share BatchNorm's statistics; default: yes, but for MoCo, which wants them apart."""

    # Network
    arch: str = "resnet18"
    """A network of torchvision's (resnet18, resnet50, resnext50_32x4d, convnext_tiny, …) or timm:NAME."""
    width: int | None = None
    """Channels of a ResNet's first stage; the published networks have 64."""
    stem: str | None = None
    """A ResNet's first layers: imagenet (7×7, stride 2, max-pool), half (3×3, stride 2), cifar (3×3, stride 1), or
    auto (default): cifar for views of up to 64 pixels."""
    init: Path | None = None
    """Weights to start the backbone from: a state dict (.pth, .safetensors), a checkpoint of ours, or a run's
    folder."""

    # Optimization
    epochs: int | None = None
    """Passes over the data."""
    batch: int | None = None
    """Images (pairs of views) in a step, over all ranks."""
    accumulate: int = 1
    """Compute each step's batch in so many parts, one after the other, in as much less memory. SimCLR's negatives,
    Barlow Twins' and SwAV's statistics, BatchNorm's, and the std in the logs are then those of a part."""
    optimizer: str | None = None
    """sgd, lars (for batches of thousands), adam or adamw; default: the method's."""
    lr: float | None = None
    """Peak learning rate, taken as it is; default: the method's, times batch / 256 for larger ones; 0.001 (Adam)."""
    bias_lr_ratio: float | None = None
    """LARS: the learning rate of biases and normalisation, as a multiple of the others'; default: 1 (barlow-twins:
    .024)."""
    sgd_momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float | None = None
    """Weight decay, on all parameters; LARS leaves biases and normalisation out."""
    schedule: str | None = None
    """cosine or step; default: the method's."""
    warmup_epochs: float | None = None
    """Epochs over which the learning rate rises from 0; default: 10 with LARS (a tenth of a shorter run), else 0."""
    final_lr: float = 0.0
    """Where the cosine ends."""
    drops: tuple[float, ...] = (0.6, 0.8)
    """Where the stepped schedule divides the learning rate by 10, as shares of the run."""

    # Machine
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    amp: str = "auto"
    """Autocast: auto, off, bf16 or fp16; auto takes bf16 where the hardware is faster at it, fp16 on older GPUs."""
    compile: str = "off"
    """torch.compile for the networks: off, default, reduce-overhead (CUDA graphs) or max-autotune; compiling delays the
    first step."""
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
    logistic_every: int = 0
    """Epochs between two logistic regressions on the backbone's output, fitted to one random crop and flip of each
    training image, others each time, and judged by plain validation images; 0: none. All features lie in memory."""
    keep_best: str | None = None
    """Keep the checkpoint of the epoch in which this was best so far as OUT/best.pt: knn or logistic."""


@dataclass(frozen=True, kw_only=True)
class CompleteConfig(TrainConfig):
    """A TrainConfig in which nothing is left to the method or the data, as `defaults.complete` makes it.

    What only some methods have (from `queue` to `frozen`, and `predictor`) stays None for the others, who do not read
    it; `hidden` is 0 where the head is as wide as the features.
    """

    recipe: str
    size: int
    queue: int
    momentum: float
    momentum_schedule: str
    temperature: float
    debias: float
    redundancy: float
    prototypes: int
    epsilon: float
    queue_start: float
    frozen: float
    head: str
    head_layers: int
    hidden: int
    dim: int
    predictor: int
    bn_splits: int
    sync_bn: bool
    width: int
    stem: str
    epochs: int
    batch: int
    optimizer: str
    lr: float
    bias_lr_ratio: float
    weight_decay: float
    schedule: str
    warmup_epochs: float
    knn_every: int


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
    parsed: dict[str, Any] = {"bias_lr_ratio": 1.0}  # as runs had it before there was a choice
    parsed |= {name: value for name, value in values.items() if name in known}
    for name, value in parsed.items():
        if value is not None and str(known[name]).startswith("Path"):
            parsed[name] = Path(value)
        elif isinstance(value, list):
            parsed[name] = tuple(value)
    return TrainConfig(**parsed)
