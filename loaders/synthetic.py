"""`synthetic`: batches that cost nothing to make; the ceiling every other loader is held against.

Labels, indices and order are the source's; the pixels are noise made once, copied for each batch (a batch owns its
memory), so what is measured with it is the consumer alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from penstock.augment.recipe import Recipe
from penstock.loaders.contract import Loader, LoaderState, Views
from penstock.loaders.order import Order
from penstock.loaders.sources.base import Source


class SyntheticLoader(Loader):
    """Normal noise of the recipe's shape, on the device from the start."""

    def __init__(
        self,
        source: Source,
        *,
        recipe: Recipe,
        order: Order,
        workers: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.source, self.order, self.views, self.state = source, order, recipe.views, LoaderState()
        generator = torch.Generator().manual_seed(order.seed & (2**63 - 1))
        noise = torch.randn(recipe.views * order.batch, 3, recipe.size, recipe.size, generator=generator)
        self.noise = noise.to(device, dtype, memory_format=torch.channels_last)

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Views]:
        for step in range(self.order.steps(consumed)):
            index = self.order.indices(epoch, step, consumed)
            views = self.noise[: self.views * len(index)].clone(memory_format=torch.preserve_format)
            yield Views(
                groups=[views], index=torch.from_numpy(index), label=torch.from_numpy(self.source.labels[index])
            )
