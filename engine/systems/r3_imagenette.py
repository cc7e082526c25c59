"""R3: MoCo v2 on Imagenette, whole, on a single GPU.

    python engine/sweep.py r3                                                   # downloads Imagenette if need be
    python engine/sweep.py r3 --width 16 --size 64 --subset 2000 --epochs 6 --train="--momentum 0.99"   # in minutes
    python engine/evaluate/run.py runs/r3/runs/imagenette-seed0/best.pt --protocols logistic         # any checkpoint
    sbatch docs/slurm/penstock.sbatch python engine/sweep.py r3             # goes on by itself after a pre-emption

github.com/AlexZaikin94/MoCo-v2. ResNeXt-50-32x4d, head 2048-2048-128 with ReLU and without BatchNorm, T .2, 16,384 keys
(more than the 9,469 images: as published), momentum .999, batch 32 in one piece (no shuffled BatchNorm). v2's list at
224 px (crop .2–1, jitter, gray, blur, flip). SGD of lr .03, momentum .9 and weight decay 1e-4, cosine to 5e-7, 600
epochs. After each epoch, logistic regression (scikit-learn) on the frozen 2048-d features: one crop and flip of each
training image, validation images resized to 256 and their centre of 224. The epoch in which it does best is kept (466
of 600 there). Linear phase on that: a layer that starts from the regression's weights, SGD of lr .03 without weight
decay, cosine, 200 epochs, batch 32, crop and flip. Top-1 of the 3,925 validation images, in per cent:

| phase | validation | training |
|---|---|---|
| logistic regression, best epoch | 92.37 | |
| linear layer, last epoch | 92.78 | |

Of which epoch the linear phase's figure is we do not know; ours is the last one's. Nothing is published of the training
images; ours are counted as they were cropped to be fitted to. It took 97 h and 5 h on GPUs like the GTX 1080 Ti.

OUT/runs/imagenette-seed0 has what is left of it: report.html with loss and top-1 of every epoch, epochs.csv, best.pt,
last.pt, and in downstream/ the linear phase's. Typed again, the command goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.engine.runs import Evaluation
from penstock.engine.systems.table import (
    Entry,
    Score,
    Settings,
    Table,
    best_logistic,
    best_logistic_on_training,
    evaluated,
)

SETTINGS: Settings = {
    "data": "imagenette", "method": "moco-v2", "recipe": "moco-v2", "arch": "resnext50_32x4d", "stem": "imagenet",
    "width": 64, "size": 224, "epochs": 600, "batch": 32, "optimizer": "sgd", "lr": 0.03, "weight_decay": 1e-4,
    "schedule": "cosine", "final_lr": 5e-7, "queue": 16384, "momentum": 0.999, "temperature": 0.2, "bn_splits": 1,
    "head": "mlp", "head_layers": 2, "hidden": 0, "dim": 128, "knn_every": 0, "logistic_every": 1,
    "keep_best": "logistic",
}  # fmt: skip
LINEAR_PHASE = Evaluation(
    protocols=("probe-augmented",), settings={"probe-augmented-as": "imagenette"}, checkpoint="best"
)
FIGURES: dict[str, dict[str, tuple[Score, float | None]]] = {  # by row and column
    "logistic regression, best epoch": {
        "validation": (best_logistic, 92.37), "training": (best_logistic_on_training, None),
    },
    "linear layer, last epoch": {
        "validation": (evaluated("probe-augmented"), 92.78),
        "training": (evaluated("probe-augmented", part="train"), None),
    },
}  # fmt: skip


def _entries() -> Iterator[Entry]:
    for row, columns in FIGURES.items():
        for column, (score, published) in columns.items():
            yield Entry(
                row=(row,), column=column, run="imagenette", settings=SETTINGS, score=score, evaluation=LINEAR_PHASE,
                published=published,
            )  # fmt: skip


TABLES = (
    Table(
        name="r3",
        title="MoCo v2 on Imagenette, on a single GPU",
        measure="top-1, %",
        source="github.com/AlexZaikin94/MoCo-v2",
        headings=("phase",),
        entries=tuple(_entries()),
        cost="97 h + 5 h on a GPU like the GTX 1080 Ti",
    ),
)
