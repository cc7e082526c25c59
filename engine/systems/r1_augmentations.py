r"""R1: what augmentation does to contrastive learning (CIFAR-10): SimCLR, Barlow Twins, MoCo and SimSiam.

    python engine/sweep.py r1-subsets --seeds 3
    python engine/sweep.py r1-colors --seeds 3
    python engine/sweep.py r1-subsets --subset 10000 --epochs 24 --width 16 --stem half --batch 128 --seeds 1 \
        --train="--optimizer adamw --knn-every 4" --only "simclr-*" "moco-*"                         # cut to an hour

Huang et al., "Towards the Generalization of Contrastive Self-Supervised Learning" (arXiv 2111.00743), and its authors'
code. ResNet-18 with the 3×3 stem, 800 epochs, batch 512, SGD of momentum .9 and weight decay 5e-4, cosine, ImageNet's
normalisation. kNN accuracy (k = 200, T = .1, 512-d backbone) of the best epoch, mean ± std over seeds 0 to 2 (of the
three, not an estimate from them). A run took the authors about 10 h on a V100.

a crop, b blur, c gray, d jitter, e flip:

| subset | SimCLR | Barlow Twins | MoCo (later version) |
|---|---|---|---|
| abcde | 89.92 ± .05 | 83.93 ± .57 (at lr .11: 86.91) | 90.12 |
| abcd | 88.41 ± .11 | 83.37 ± .43 | 89.69 |
| abc | 83.62 ± .19 | 73.70 ± .99 | 86.78 |
| ab | 62.91 ± .25 | 49.56 ± .11 | 75.12 |
| a | 62.37 ± .09 | 48.54 ± .29 | 74.94 |

SimSiam has 90.59 on abcde (later version). With crop and jitter alone, by the jitter's strength:

| strength | SimCLR | Barlow Twins | MoCo (later version) |
|---|---|---|---|
| 1 | 82.64 ± .57 | 78.79 ± .54 | 86.68 |
| 1/2 | 78.49 ± .09 | 72.76 ± 1.50 | 84.30 |
| 1/4 | 76.25 ± .16 | 68.30 ± .15 | 82.76 |
| 1/8 | 73.60 ± .11 | 61.13 ± 2.81 | 81.20 |

The jitter's probability is .8, as in the version that SimCLR's and Barlow Twins' figures are of; the later one has 1.
What Barlow Twins' loss was multiplied by where its lr was .11 is not known; here it is the plain sum.
"""

from __future__ import annotations

from penstock.engine.systems.table import Entry, Settings, Table, best_knn

_COMMON: Settings = {
    "data": "cifar10", "arch": "resnet18", "stem": "cifar", "width": 64, "size": 32, "epochs": 800, "batch": 512,
    "optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "schedule": "cosine", "knn_features": "backbone",
    "knn_every": 1,
}  # fmt: skip
METHODS: dict[str, Settings] = {
    "simclr": {"method": "simclr", "temperature": 0.5, "head": "mlp", "head_layers": 2, "hidden": 512, "dim": 128},
    "barlow-twins": {
        "method": "barlow-twins", "lr": 1e-3, "redundancy": 5e-3, "head": "mlp-bn", "head_layers": 3, "hidden": 2048,
        "dim": 2048,
    },
    # The mean of both directions' losses, at lr .08 and weight decay 5e-4. Ours is their sum, and under SGD the same at
    # half the learning rate and twice the weight decay.
    "moco": {
        "method": "moco-v2", "symmetric": True, "lr": 0.04, "weight_decay": 1e-3, "temperature": 0.1,
        "momentum": 0.99, "queue": 4096, "head": "mlp", "head_layers": 2, "hidden": 512, "dim": 128,
    },
    "simsiam": {
        "method": "simsiam", "lr": 0.05, "head": "mlp-bn-all", "head_layers": 2, "hidden": 2048, "dim": 2048,
        "predictor": 512,
    },
    "barlow-twins, lr .11": {
        "method": "barlow-twins", "lr": 0.11, "redundancy": 5e-3, "head": "mlp-bn", "head_layers": 3, "hidden": 2048,
        "dim": 2048,
    },
}  # fmt: skip
Published = dict[str, tuple[float, float | None]]  # mean and std, by method

SUBSETS: dict[str, Published] = {
    "abcde": {
        "simclr": (89.92, 0.05), "barlow-twins": (83.93, 0.57), "moco": (90.12, None), "simsiam": (90.59, None),
        "barlow-twins, lr .11": (86.91, None),
    },
    "abcd": {"simclr": (88.41, 0.11), "barlow-twins": (83.37, 0.43), "moco": (89.69, None)},
    "abc": {"simclr": (83.62, 0.19), "barlow-twins": (73.70, 0.99), "moco": (86.78, None)},
    "ab": {"simclr": (62.91, 0.25), "barlow-twins": (49.56, 0.11), "moco": (75.12, None)},
    "a": {"simclr": (62.37, 0.09), "barlow-twins": (48.54, 0.29), "moco": (74.94, None)},
}  # fmt: skip
COLORS: dict[str, Published] = {
    "1": {"simclr": (82.64, 0.57), "barlow-twins": (78.79, 0.54), "moco": (86.68, None)},
    "1/2": {"simclr": (78.49, 0.09), "barlow-twins": (72.76, 1.50), "moco": (84.30, None)},
    "1/4": {"simclr": (76.25, 0.16), "barlow-twins": (68.30, 0.15), "moco": (82.76, None)},
    "1/8": {"simclr": (73.60, 0.11), "barlow-twins": (61.13, 2.81), "moco": (81.20, None)},
}


def _entries(rows: dict[str, Published], recipe: str) -> tuple[Entry, ...]:
    """`recipe` with a row's label in it is that row's augmentation."""
    return tuple(
        Entry(
            row=(label,),
            column=method,
            run=f"{method}-{recipe.format(label)}".replace(", ", "-").replace(" ", "").replace("/", "_"),
            settings={**_COMMON, **METHODS[method], "recipe": recipe.format(label)},
            score=best_knn,
            published=mean,
            published_std=std,
        )
        for label, published in rows.items()
        for method, (mean, std) in published.items()
    )


_MEASURE = "kNN accuracy (k 200, T .1, backbone's features), %, best epoch"
_SOURCE = "Huang et al., arXiv 2111.00743, and its authors' code"
TABLES = (
    Table(
        name="r1-subsets",
        title="What augmentation does to contrastive learning: subsets of a crop, b blur, c gray, d jitter, e flip",
        measure=_MEASURE,
        source=_SOURCE,
        headings=("augmentation",),
        entries=_entries(SUBSETS, "{}"),
        seeds=3,
        cost="about 10 h a run on a V100",
    ),
    Table(
        name="r1-colors",
        title="What augmentation does to contrastive learning: crop and jitter of growing strength",
        measure=_MEASURE,
        source=_SOURCE,
        headings=("colour strength",),
        entries=_entries(COLORS, "color-{}"),
        seeds=3,
        cost="about 10 h a run on a V100",
    ),
)
