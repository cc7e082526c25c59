"""`synthetic`: batches that cost nothing to make; the ceiling every other loader is held against.

Labels, indices and order are the source's; the pixels are noise made once, copied for each batch (a batch owns its
memory), so what is measured with it is the consumer alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.augment.recipe import Group
from penstock.loaders.contract import Loader, Options, Views
from penstock.loaders.memory import Recycler
from penstock.loaders.sources.base import Source


class SyntheticLoader(Loader):
    """Normal noise of the recipe's shapes, on the device from the start."""

    def __init__(self, source: Source, options: Options) -> None:
        super().__init__(source, options)
        self.generator = torch.Generator().manual_seed(options.order.seed & (2**63 - 1))
        self.memory = Recycler()
        self.noise = [self._noise(group) for group in self.recipe.groups]

    def _noise(self, group: Group) -> torch.Tensor:
        """A group's views of a whole batch, [V·N, 3, S, S]."""
        views = (group.views.stop - group.views.start) * self.order.batch
        noise = torch.randn(views, 3, group.size, group.size, generator=self.generator)
        return noise.to(self.options.device, self.options.dtype, memory_format=torch.channels_last)

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Views]:
        for step in range(self.order.steps(consumed)):
            index = self.order.indices(epoch, step, consumed)
            yield Views(
                groups=[self._part(noise, len(index)) for noise in self.noise],
                index=torch.from_numpy(index),
                label=torch.from_numpy(self.source.labels[index]),
            )

    def _part(self, noise: torch.Tensor, samples: int) -> torch.Tensor:
        part = noise[: len(noise) // self.order.batch * samples]
        if part.device.type == "cpu":
            return self.memory.empty(tuple(part.shape), part.dtype).copy_(part)
        return part.clone(memory_format=torch.preserve_format)
