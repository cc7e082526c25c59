"""How often a classifier is right: over all images, and class by class.

N images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

TOP = 5  # accuracy is also counted among so many classes, where there are more


def accuracy(ranked: torch.Tensor, labels: torch.Tensor, *, classes: int) -> dict[str, float]:
    """Per cent of images whose class is the first guess, `top1`, and of more than five classes among five, `top5`.

    Args:
        ranked: int64 [N, up to 5], each image's classes, the likeliest first.
        labels: int64 [N].
    """
    hits = ranked == labels[:, None]
    found = {"top1": 100 * hits[:, 0].double().mean().item()}
    return found | {"top5": 100 * hits.any(1).double().mean().item()} if classes > TOP else found


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """Precision, recall and F1 of each class, float64 [C], and its images, int64 [C], as scikit-learn counts them.

    Attributes:
        confusion: int64 [C, C]; row: the class that an image is of, column: the one it was taken for.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]
    confusion: NDArray[np.int64]


def class_report(predicted: torch.Tensor, labels: torch.Tensor, *, classes: int) -> ClassReport:
    """Of predictions int64 [N], -1 where there is none; a class that is never predicted has precision 0."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth, guess, known = labels.cpu().numpy(), predicted.cpu().numpy(), np.arange(classes)
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, labels=known, zero_division=0.0)
    confusion = confusion_matrix(truth, guess, labels=known)
    return ClassReport(precision=precision, recall=recall, f1=f1, support=support, confusion=confusion)
