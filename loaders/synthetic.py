"""`synthetic`: batches that cost nothing to make; the ceiling every other loader is held against.

Labels, indices and order are the source's; the pixels are noise made once, which every batch hands out: no byte is
copied, so what is measured with it is the consumer alone. Its batches share that memory: do not write into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from penstock.augment.recipe import Group
from penstock.loaders.contract import Loader, Options, Views
from penstock.loaders.sources.base import Source


class SyntheticLoader(Loader):
    """Normal noise of the recipe's shapes, on the device from the start."""

    def __init__(self, source: Source, options: Options) -> None:
        super().__init__(source, options)
        self.generator = torch.Generator().manual_seed(options.order.seed & (2**63 - 1))
        self.noise = [self._noise(_shape(group, self.order.batch)) for group in self.recipe.groups]

    def _noise(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Enough for a group's views of a whole batch at their largest, flat."""
        return torch.randn(prod(shape), generator=self.generator).to(self.options.device, self.options.dtype)

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Views]:
        groups = self.recipe.at(epoch).groups
        for step in range(self.order.steps(consumed)):
            index = self.order.indices(epoch, step, consumed)
            parts = zip(self.noise, groups, strict=True)
            yield Views(
                groups=[_part(noise, _shape(group, len(index))) for noise, group in parts],
                index=torch.from_numpy(index),
                label=torch.from_numpy(self.source.labels[index]),
            )


def _part(noise: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The first of the noise, as views [V·N, 3, S, S], channels-last."""
    samples, channels, height, width = shape
    return noise[: prod(shape)].view(samples, height, width, channels).permute(0, 3, 1, 2)


def _shape(group: Group, samples: int) -> tuple[int, ...]:
    """Of a group's views of so many samples, [V·N, 3, S, S]."""
    return (group.views.stop - group.views.start) * samples, 3, group.size, group.size
