"""What a network makes of images: features, computed once, that every protocol on frozen features shares.

N images, V views of each, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.nn import functional

from penstock.engine.precision import Precision
from penstock.loaders import Loader

Advance = Callable[[int], None]  # told how many images more are done


@dataclass(frozen=True, kw_only=True)
class Features:
    """Of N images, on the device that computed them.

    Attributes:
        values: float32 [N, D], as the network gives them.
        labels: int64 [N].
    """

    values: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def unit(self) -> torch.Tensor:
        """The same at length 1, as kNN and geometry compare them."""
        return functional.normalize(self.values)

    def spread(self, count: int) -> Features:
        """Of so many of the images at most, at equal distances."""
        chosen = torch.linspace(0, len(self) - 1, min(count, len(self)), device=self.labels.device).round().long()
        return Features(values=self.values[chosen], labels=self.labels[chosen])


@torch.no_grad()
def extract_features(
    network: nn.Module, loader: Loader, precision: Precision, *, advance: Advance | None = None
) -> Features:
    """Features of the images of a loader's first epoch: of its first view, where the recipe makes several.

    The network must be in evaluation mode.
    """
    precision = without_fp16(precision)
    values, labels = [], []
    for views in loader.epoch(0):
        with precision.autocast():
            output = network(views.groups[0][: len(views)])
        values.append(output.float().flatten(1))
        labels.append(views.label)
        if advance is not None:
            advance(len(views))
    return Features(values=torch.cat(values), labels=torch.cat(labels).to(precision.device))


def without_fp16(precision: Precision) -> Precision:
    """In full precision instead: without running statistics (the untrained network) a deep one overflows fp16."""
    if precision.dtype == torch.float16:
        return Precision(device=precision.device, dtype=None)
    return precision
