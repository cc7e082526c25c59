r"""R4: MoCo on Imagenette with a pool of 14 operations, of which each view draws two.

    python engine/sweep.py r4
    python engine/sweep.py r4 --width 16 --size 64 --subset 2000 --epochs 10 --batch 64 \
        --train="--momentum 0.99" --evaluate="--probe-augmented.epochs 4 --finetune.epochs 4"         # cut to minutes

The recipe `pool-14` names the operations; it is normalised by Imagenette's own mean and std. ResNet-50 at 112 px, head
2048-512-128 with BatchNorm and ReLU between, T .07, 4,096 keys, momentum .999, batch 256, Adam of lr 1e-3 and weight
decay 1e-4, 1,000 epochs. Not published, and as MoCo v2 has it: a cosine, BatchNorm in 8 parts with keys shuffled among
them. Downstream, 100 epochs of Adam, lr 1e-3, weight decay 1e-4, cosine, 16 images a step, each twice: plain, and by
three operations of the pool. There the whole network was trained, through a misspelt attribute that was to freeze it;
here are both. Top-1 in per cent, and the highest epoch's mean loss divided by the last epoch's:

| figure | validation | training | highest loss / last |
|---|---|---|---|
| linear layer on the frozen network | | | |
| whole network trained | 87 | | |
| pre-training | | | 10 |

Both are rounded: 87 is read off a plot, and the loss "falls tenfold". What it cost is not published.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.engine.runs import Evaluation
from penstock.engine.systems.table import Entry, Score, Settings, Table, evaluated, fall_of_loss

SETTINGS: Settings = {
    "data": "imagenette", "method": "moco-v2", "recipe": "pool-14", "arch": "resnet50", "stem": "imagenet", "width": 64,
    "size": 112, "epochs": 1000, "batch": 256, "optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-4,
    "schedule": "cosine", "queue": 4096, "momentum": 0.999, "temperature": 0.07, "head": "mlp-bn", "head_layers": 2,
    "hidden": 512, "dim": 128, "knn_every": 10,
}  # fmt: skip
DOWNSTREAM = Evaluation(
    protocols=("probe-augmented", "finetune"),
    settings={"probe-augmented-as": "pool-14-probe", "finetune-as": "pool-14-finetune"},
)
FIGURES: dict[str, dict[str, tuple[Score, float | None]]] = {  # by row and column
    "linear layer on the frozen network": {
        "validation": (evaluated("probe-augmented"), None),
        "training": (evaluated("probe-augmented", part="train"), None),
    },
    "whole network trained": {
        "validation": (evaluated("finetune"), 87.0), "training": (evaluated("finetune", part="train"), None),
    },
    "pre-training": {"highest loss / last": (fall_of_loss, 10.0)},
}  # fmt: skip


def _entries() -> Iterator[Entry]:
    for row, columns in FIGURES.items():
        for column, (score, published) in columns.items():
            yield Entry(
                row=(row,), column=column, run="imagenette-pool-14", settings=SETTINGS, score=score,
                evaluation=DOWNSTREAM, published=published,
            )  # fmt: skip


TABLES = (
    Table(
        name="r4",
        title="MoCo on Imagenette with a pool of 14 operations",
        measure="top-1, %, last epoch; fall of the loss",
        source="a project that trained on Imagenette alone; figures read off its plots",
        headings=("figure",),
        entries=tuple(_entries()),
    ),
)
