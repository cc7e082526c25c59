"""CIFAR-10 and CIFAR-100 from their python batches (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).

A batch is a pickle, and a pickle may run any code; these are read by an unpickler that admits numpy arrays and Python's
own containers, numbers and strings, and nothing else.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import UserError
from penstock.loaders.sources.arrays import ImageArrays

SUBFOLDER = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
BATCHES = {
    "cifar10": {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]},
    "cifar100": {"train": ["train"], "val": ["test"]},
}
META = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}
LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}

_ARRAY = np.empty(0, np.uint8)
ADMITTED = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": _ARRAY.__reduce__()[0],  # asked of numpy itself, since the module it lives in was renamed
    "_frombuffer": _ARRAY.__reduce_ex__(5)[0],
}


def find_cifar(folder: Path, name: str) -> Path | None:
    """The folder of the batches: `folder` itself or the one of the official name inside it; None if neither is."""
    wanted = BATCHES[name]["train"] + [META[name][0]]
    places = (folder, folder / SUBFOLDER[name])
    return next((place for place in places if all((place / file).is_file() for file in wanted)), None)


def cifar_source(folder: Path, name: str, split: str) -> ImageArrays:
    """Open `cifar10` or `cifar100`, split `train` or `val` (the official test set); `folder` as of `find_cifar`."""
    batches = [_unpickle(folder / file, ("data", LABELS[name])) for file in BATCHES[name][split]]
    file, key = META[name]
    classes = [str(label) for label in _unpickle(folder / file, (key,))[key]]
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([batch[LABELS[name]] for batch in batches])
    return ImageArrays(np.ascontiguousarray(images), labels, classes, f"{name}-{split}")


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ADMITTED:
            return ADMITTED[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")


def _unpickle(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="latin1").load()
        return {key: batch[key] for key in keys}
    except Exception as error:  # damaged pickles raise nearly anything
        reason = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UserError(f"{path}: not a CIFAR python batch ({reason}); unpack the official archive anew") from error
