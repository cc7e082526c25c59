r"""R2: MoCo v2 (ImageNet-1k): its ablation, its temperatures, SimCLR beside it, and the authors' CIFAR-10 demo.

    python engine/sweep.py r2-ablation --data path/to/imagenet
    python engine/sweep.py r2-temperature --data path/to/imagenet
    python engine/sweep.py r2-simclr --data path/to/imagenet
    python engine/sweep.py r2-demo
    python engine/sweep.py r2-ablation --data imagenette --arch resnet18 --width 16 --size 64 --subset 2000 --epochs 2 \
        --batch 64 --train="--momentum 0.99" --evaluate="--probe-augmented.epochs 3"    # cut to minutes
    python engine/sweep.py r2-simclr --data cifar10 --arch resnet18 --stem cifar --width 16 --size 32 --batch 32 \
        --subset 5000 --epochs 2                                        # batches of 32, 512 and 1,024
    python engine/sweep.py r2-demo --subset 5000 --epochs 10 --width 16 --batch 128

Chen et al. 2020, arXiv 2003.04297. ResNet-50 at 224 px, batch 256, SGD of lr .03, momentum .9 and weight decay 1e-4,
65,536 keys, momentum .999. A tick under MLP: two layers 2048-2048-128 with ReLU instead of one, and T .2 instead of
.07; under aug+: v2's list (blur, hue of .1, jitter with p .8); under cos: a cosine instead of drops at .6 and .8 of the
run. Linear accuracy of the last epoch's backbone, frozen (lr 30, no weight decay, 100 epochs, drops at 60 and 80):

| MLP | aug+ | cos | epochs | linear | VOC AP50 / AP / AP75 |
|---|---|---|---|---|---|
| | | | 200 | 60.6 | 81.5 / 55.9 / 62.6 |
| ✓ | | | 200 | 66.2 | 82.0 / 56.4 / 62.6 (r) |
| | ✓ | | 200 | 63.4 | 82.2 / 56.8 / 63.2 (r) |
| ✓ | ✓ | | 200 | 67.3 | 82.5 / 57.2 / 63.9 (r) |
| ✓ | ✓ | ✓ | 200 | 67.5 | 82.4 / 57.0 / 63.6 |
| ✓ | ✓ | ✓ | 800 | 71.1 | 82.5 / 57.4 / 64.0 |

(r): quoted from memory, worth checking. VOC is detectron2's to measure: `engine/export/run.py` writes the backbone for
it. With MLP alone, 200 epochs, by temperature (r):

| T | linear |
|---|---|
| .07 | 62.9 |
| .1 | 64.9 |
| .2 | 66.2 |
| .3 | 65.7 |
| .4 | 65.0 |
| .5 | 64.3 |

SimCLR here: LARS of lr .3 times batch / 256, weight decay 1e-6, T .1, its own list and head with BatchNorm (arXiv
2002.05709). Its figures were found by its own linear protocol; we hold all to MoCo's:

| method | batch | epochs | linear |
|---|---|---|---|
| SimCLR | 256 | 200 | 61.9 |
| SimCLR | 8192 | 200 | 66.6 |
| MoCo v2 | 256 | 200 | 67.5 |
| SimCLR | 4096 | 1000 | 69.3 |
| MoCo v2 | 256 | 800 | 71.1 |

A sweep trains on one GPU; batches of thousands want many: `--dry-run` prints the commands, to be typed behind torchrun.
Memory and time on 8 V100 (r): MoCo 256 5.0 GB, 53 h; end-to-end 256 7.4 GB, 65 h; end-to-end 4096 93 GB (estimate).
`benchmarks/cost.py` measures the same on the machine at hand.

The demo is MoCo v1 with ResNet-18 and the settings of R0's first row. kNN (k = 200, T = .1, 128-d output), last epoch;
symmetric: the sum of both directions' losses, and both views' keys in the queue:

| loss | 200 epochs | 400 epochs | 800 epochs |
|---|---|---|---|
| asymmetric | 82.6 | 86.3 | 88.7 |
| symmetric | 85.3 | 88.5 | 89.7 |

The 200 asymmetric ones on their way (the log of one run):

| epoch | 1 | 10 | 20 | 50 | 100 | 150 | 200 |
|---|---|---|---|---|---|---|---|
| kNN | 31.98 | 48.03 | 61.38 | 73.30 | 78.06 | 81.18 | 82.58 |

About 25 s an epoch on a V100; a symmetric one costs twice as much.
"""

from __future__ import annotations

from penstock.engine.runs import Evaluation
from penstock.engine.systems.table import Entry, Settings, Table, evaluated, last_knn

_LINEAR = Evaluation(protocols=("probe-augmented",), settings={"probe-augmented-as": "moco"})
_IMAGENET: Settings = {
    "data": "imagenet", "arch": "resnet50", "stem": "imagenet", "width": 64, "size": 224, "hidden": 0, "dim": 128,
    "knn_every": 10,
}  # fmt: skip
_MOCO: Settings = {
    **_IMAGENET, "method": "moco-v2", "batch": 256, "optimizer": "sgd", "lr": 0.03, "weight_decay": 1e-4,
    "queue": 65536, "momentum": 0.999,
}  # fmt: skip
_SIMCLR: Settings = {
    **_IMAGENET, "method": "simclr", "recipe": "simclr", "head": "mlp-bn-all", "head_layers": 2, "temperature": 0.1,
    "optimizer": "lars", "weight_decay": 1e-6, "schedule": "cosine",
}  # fmt: skip
_DEMO: Settings = {
    "data": "cifar10", "method": "moco-v1", "recipe": "moco-cifar", "arch": "resnet18", "stem": "cifar", "width": 64,
    "size": 32, "batch": 512, "optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "schedule": "cosine", "queue": 4096,
    "momentum": 0.99, "temperature": 0.1, "head": "linear", "head_layers": 1, "dim": 128, "knn_features": "projection",
    "knn_every": 10,
}  # fmt: skip

ABLATION = (  # MLP, aug+, cos, epochs, linear
    (False, False, False, 200, 60.6),
    (True, False, False, 200, 66.2),
    (False, True, False, 200, 63.4),
    (True, True, False, 200, 67.3),
    (True, True, True, 200, 67.5),
    (True, True, True, 800, 71.1),
)
TEMPERATURES = {0.07: 62.9, 0.1: 64.9, 0.2: 66.2, 0.3: 65.7, 0.4: 65.0, 0.5: 64.3}
BESIDE_SIMCLR = (  # method, batch, epochs, linear
    ("SimCLR", 256, 200, 61.9),
    ("SimCLR", 8192, 200, 66.6),
    ("MoCo v2", 256, 200, 67.5),
    ("SimCLR", 4096, 1000, 69.3),
    ("MoCo v2", 256, 800, 71.1),
)
DEMO = {"asymmetric": {200: 82.6, 400: 86.3, 800: 88.7}, "symmetric": {200: 85.3, 400: 88.5, 800: 89.7}}


def _moco(*, mlp: bool, aug: bool, cos: bool, epochs: int, temperature: float | None = None) -> tuple[str, Settings]:
    """A run's name and settings, by the table's ticks."""
    temperature = temperature or (0.2 if mlp else 0.07)
    head: Settings = {"head": "mlp", "head_layers": 2} if mlp else {"head": "linear", "head_layers": 1}
    ticks = [word for word, ticked in (("mlp", mlp), ("aug", aug), ("cos", cos)) if ticked]
    return "-".join(["moco", *ticks, f"t{temperature:g}", f"{epochs}"]), {
        **_MOCO, **head, "recipe": "moco-v2" if aug else "moco-v1", "schedule": "cosine" if cos else "step",
        "temperature": temperature, "epochs": epochs,
    }  # fmt: skip


def _linear(row: tuple[str, ...], run: tuple[str, Settings], published: float) -> Entry:
    name, settings = run
    score = evaluated("probe-augmented")
    return Entry(
        row=row, column="linear", run=name, settings=settings, score=score, evaluation=_LINEAR, published=published
    )


def _ablation() -> tuple[Entry, ...]:
    return tuple(
        _linear(
            (*("✓" if ticked else "" for ticked in (mlp, aug, cos)), str(epochs)),
            _moco(mlp=mlp, aug=aug, cos=cos, epochs=epochs),
            published,
        )
        for mlp, aug, cos, epochs, published in ABLATION
    )


def _temperatures() -> tuple[Entry, ...]:
    return tuple(
        _linear(
            (f"{t:g}".removeprefix("0"),), _moco(mlp=True, aug=False, cos=False, epochs=200, temperature=t), published
        )
        for t, published in TEMPERATURES.items()
    )


def _simclr(batch: int, epochs: int) -> tuple[str, Settings]:
    settings = {**_SIMCLR, "batch": batch, "lr": round(0.3 * batch / 256, 6), "epochs": epochs}
    return f"simclr-{batch}-{epochs}", settings


def _beside_simclr() -> tuple[Entry, ...]:
    moco_v2 = {"mlp": True, "aug": True, "cos": True}
    return tuple(
        _linear(
            (method, str(batch), str(epochs)),
            _simclr(batch, epochs) if method == "SimCLR" else _moco(**moco_v2, epochs=epochs),
            published,
        )
        for method, batch, epochs, published in BESIDE_SIMCLR
    )


def _demo() -> tuple[Entry, ...]:
    return tuple(
        Entry(
            row=(loss,),
            column=f"{epochs} epochs",
            run=f"{loss}-{epochs}",
            settings={**_DEMO, "symmetric": loss == "symmetric", "epochs": epochs},
            score=last_knn,
            published=published,
        )
        for loss, by_epochs in DEMO.items()
        for epochs, published in by_epochs.items()
    )


_MEASURE = "linear accuracy (MoCo's protocol), %, last epoch"
_SOURCE = "Chen et al. 2020, arXiv 2003.04297"
_COST = "53 h for 200 epochs on 8 V100"
TABLES = (
    Table(
        name="r2-ablation",
        title="MoCo v2: what each of its changes brings",
        measure=_MEASURE,
        source=_SOURCE,
        headings=("MLP", "aug+", "cos", "epochs"),
        entries=_ablation(),
        cost=_COST,
    ),
    Table(
        name="r2-temperature",
        title="MoCo v2: temperature, with the MLP head alone",
        measure=_MEASURE,
        source=f"{_SOURCE}, from memory",
        headings=("T",),
        entries=_temperatures(),
        cost=_COST,
    ),
    Table(
        name="r2-simclr",
        title="MoCo v2 beside SimCLR, at equal and at larger batch",
        measure=_MEASURE,
        source=f"{_SOURCE}; SimCLR by its own protocol",
        headings=("method", "batch", "epochs"),
        entries=_beside_simclr(),
        cost=_COST,
    ),
    Table(
        name="r2-demo",
        title="The MoCo authors' CIFAR-10 demo",
        measure="kNN accuracy (k 200, T .1, 128-d output), %, last epoch",
        source="colab/moco_cifar10_demo.ipynb in github.com/facebookresearch/moco",
        headings=("loss",),
        entries=_demo(),
        cost="about 25 s an epoch on a V100",
    ),
)
