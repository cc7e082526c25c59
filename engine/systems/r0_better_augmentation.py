"""R0: MoCo v1 with better augmentation (CIFAR-10, CIFAR-100, STL-10, ImageNet-100): one list after the other.

    python engine/sweep.py r0                                                       # 7 runs of 200 epochs
    python engine/sweep.py r0 --only "*-moco-cifar" "*-albumentations-7"            # the first list and the last
    python engine/sweep.py r0 --subset 5000 --epochs 10 --width 16 --stem half --batch 128          # cut to minutes
    python engine/sweep.py r0-cifar100
    python engine/sweep.py r0-stl10
    python engine/sweep.py r0-imagenet100 --data path/to/imagenet --class-list imagenet100.txt

github.com/soonwonh/Modified-Moco, on the ground of the MoCo authors' CIFAR-10 demo. ResNet-18 with the 3×3 stem, one
linear layer to 128 dimensions, batch 512, SGD of lr .06, momentum .9 and weight decay 5e-4, cosine, 200 epochs, 4,096
keys, momentum .99, T .1, BatchNorm in 8 parts, keys shuffled among them, one direction. kNN accuracy (k = 200, T = .1,
128-d output) of the last epoch, one run each, on CIFAR-10:

| list | constant | gradual |
|---|---|---|
| original | 82.71 | 83.06 |
| solarize | 83.71 | |
| CLAHE | 83.79 | |
| solarize, CLAHE | 84.31 | |
| albumentations-7 | 85.01 | 84.64 |

`original` is the demo's list: crop, flip, jitter, gray. `albumentations-7` has Albumentations' cubic crop, and behind
the others solarize, CLAHE and brightness-contrast, p .2 each. Of the steps between only the names are published; here
they are albumentations-7, cubic crop included, without what they do not name: so is the list of six in an earlier
version of the authors' code. `gradual` is jitter that grows with every quarter of the run.

The other sets have the same lists, and no figures that we could quote. CIFAR-100: as CIFAR-10. STL-10: the 5,000
labelled images, as in the authors' code (--train="--split unlabeled" takes the others), 50 px, 600 epochs, batch 256,
lr as it was. ImageNet-100: MoCo v1 as on ImageNet, 224 px, where `original` is its own list, which has no gradual form.

What the authors name as work to come:

    python engine/train.py --data cifar10 --method moco-v1 --recipe albumentations-7 --debias 0.1       # debiased loss
    python engine/train.py --data cifar10 --method moco-v1 --recipe albumentations-7 --mochi 1024 1024 128     # MoCHi
    python engine/train.py --data cifar10 --method moco-v1 --recipe multi-crop                             # multi-crop
    python engine/train.py --data cifar10 --method simclr --recipe albumentations-7                     # or byol, swav
    python engine/search/run.py --data cifar10 --method moco-v1 --recipe moco-cifar --add solarize clahe     # best list
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from penstock.engine.systems.table import Entry, Settings, Table, last_knn


class Step(NamedTuple):
    """A figure of the ladder: its row and column, the recipe, what is published for CIFAR-10."""

    row: str
    column: str
    recipe: str
    knn: float | None = None


CIFAR10 = (
    Step("original", "constant", "moco-cifar", 82.71),
    Step("original", "gradual", "gradual", 83.06),
    Step("solarize", "constant", "albumentations-solarize", 83.71),
    Step("CLAHE", "constant", "albumentations-clahe", 83.79),
    Step("solarize, CLAHE", "constant", "albumentations-6", 84.31),
    Step("albumentations-7", "constant", "albumentations-7", 85.01),
    Step("albumentations-7", "gradual", "albumentations-7-gradual", 84.64),
)
OTHERS = tuple(step._replace(knn=None) for step in CIFAR10)
IMAGENET = (Step("original", "constant", "moco-v1"), *OTHERS[2:])

_MOCO: Settings = {
    "method": "moco-v1", "width": 64, "epochs": 200, "optimizer": "sgd", "head": "linear", "head_layers": 1, "dim": 128,
    "knn_features": "projection", "knn_every": 10,
}  # fmt: skip
_SMALL: Settings = {
    **_MOCO, "arch": "resnet18", "stem": "cifar", "size": 32, "batch": 512, "lr": 0.06, "weight_decay": 5e-4,
    "schedule": "cosine", "queue": 4096, "momentum": 0.99, "temperature": 0.1,
}  # fmt: skip
_LARGE: Settings = {
    **_MOCO, "arch": "resnet50", "stem": "imagenet", "size": 224, "batch": 256, "lr": 0.03, "weight_decay": 1e-4,
    "schedule": "step", "queue": 65536, "momentum": 0.999, "temperature": 0.07,
}  # fmt: skip
_SOURCE, UNKNOWN = "github.com/soonwonh/Modified-Moco", "not published"


def _table(
    name: str,
    data: str,
    ladder: Iterable[Step],
    settings: Settings,
    *,
    source: str = _SOURCE,
    cost: str = "not published",
    classes: int | None = None,
) -> Table:
    """`data` is what its runs are called after."""
    entries = (
        Entry(
            row=(step.row,),
            column=step.column,
            run=f"{data}-{step.recipe}",
            settings={**settings, "recipe": step.recipe},
            score=last_knn,
            published=step.knn,
        )
        for step in ladder
    )
    return Table(
        name=name,
        title=f"MoCo v1 with better augmentation, {data}",
        measure="kNN accuracy (k 200, T .1, 128-d output), %, last epoch",
        source=source,
        headings=("list",),
        entries=tuple(entries),
        cost=cost,
        classes=classes,
    )


_NO_FIGURES = f"nothing that we could quote ({_SOURCE})"
_CIFAR_COST = "about 25 s an epoch on a V100"  # of the demo that all of it stands on
TABLES = (
    _table("r0", "cifar10", CIFAR10, {**_SMALL, "data": "cifar10"}, cost=_CIFAR_COST),
    _table("r0-cifar100", "cifar100", OTHERS, {**_SMALL, "data": "cifar100"}, source=_NO_FIGURES, cost=_CIFAR_COST),
    _table(
        "r0-stl10", "stl10", OTHERS, {**_SMALL, "data": "stl10", "size": 50, "epochs": 600, "batch": 256},
        source=_NO_FIGURES,
    ),
    _table(
        "r0-imagenet100", "imagenet100", IMAGENET, {**_LARGE, "data": "imagenet"}, source=_NO_FIGURES, classes=100,
    ),
)  # fmt: skip
