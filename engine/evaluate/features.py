"""What a network makes of images: features, computed once, that every protocol on frozen features shares.

N images, V views of each, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.nn import functional

from penstock.engine.precision import Precision
from penstock.errors import UserError
from penstock.loaders import Loader, Views

Advance = Callable[[int], None]  # told how many images more are done


@dataclass(frozen=True, kw_only=True)
class Features:
    """Of N images, on the device that computed them.

    Attributes:
        values: float32 [N, D], as the network gives them, or of length 1 where they were asked for so.
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
    network: nn.Module,
    loader: Loader,
    precision: Precision,
    *,
    unit: bool = False,
    epoch: int = 0,
    advance: Advance | None = None,
) -> Features:
    """Features of every image of a loader, which keeps its tail: of the first view, where the recipe makes several.

    The network must be in evaluation mode.

    Args:
        unit: keep them at length 1 alone: ImageNet's by a ResNet-50 are 10 GB, which a GPU that trains may have once.
        epoch: of the loader, which decides the views where they are random.

    Raises:
        UserError: they are not finite.
    """
    values, labels, done = torch.empty(0), [], 0
    for views, output in embed(network, loader, precision, epoch=epoch, advance=advance):
        output = output[: len(views)]
        if not done:
            values = output.new_empty(loader.order.length, output.shape[1])
        values[done : done + len(views)] = functional.normalize(output) if unit else output
        labels.append(views.label)
        done += len(views)
    assert done == loader.order.length
    return Features(values=values, labels=torch.cat(labels).to(precision.device))


def embed(
    network: nn.Module, loader: Loader, precision: Precision, *, epoch: int = 0, advance: Advance | None = None
) -> Iterator[tuple[Views, torch.Tensor]]:
    """Each batch of an epoch, and what the network makes of its first group of views, float32 [V·n, D].

    Raises:
        UserError: some of it is not finite; said behind the last batch, so that the host need not wait for each.
    """
    precision = without_fp16(precision)
    finite = torch.ones((), dtype=torch.bool, device=precision.device)
    for views in loader.epoch(epoch):
        with precision.autocast():
            output = network(views.groups[0])
        output = output.float().flatten(1)
        finite &= output.isfinite().all()
        yield views, output
        if advance is not None:
            advance(len(views))
    if not finite:
        safer = "" if precision.dtype is None else ", or try --amp off"
        raise UserError(
            f"the network's features are not finite numbers: its weights are broken; take an earlier checkpoint{safer}"
        )


def without_fp16(precision: Precision) -> Precision:
    """In full precision instead: without running statistics (the untrained network) a deep one overflows fp16."""
    if precision.dtype == torch.float16:
        return Precision(device=precision.device, dtype=None)
    return precision
