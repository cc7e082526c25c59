"""What every loader gives and promises. `tests/test_loader_contract.py` holds each one to it.

N samples in a batch, V views of a size, S their side in pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from penstock.augment.executors import Executor
from penstock.augment.recipe import Recipe
from penstock.errors import UserError
from penstock.loaders.order import Order
from penstock.loaders.skipped import Skipped
from penstock.loaders.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a loader is told beside its source.

    Attributes:
        recipe: which views are made of each image; its stages are those of the run (`Recipe.over`).
        order: which images, in which order; its seed decides every drawn value, too.
        workers: threads (processes for `torchvision`) that decode and augment.
        device, dtype: where the views end up, and as what.
        executor, fallback: the code that moves the pixels, and the operations that it leaves to Albumentations, by
            name (`augment/executors.py`); nothing to a loader that brings its own augmentation.
        on_error: what to do about an image that cannot be read: `stop`, or `skip` (see `skipped.py`).
        budget: bytes that `resident` may hold; None: half of what is free.
    """

    recipe: Recipe
    order: Order
    workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    executor: str = "auto"
    fallback: tuple[str, ...] = ()
    on_error: str = "stop"
    budget: int | None = None


@dataclass(frozen=True, kw_only=True)
class Views:
    """One batch: the augmented views of N images. It owns its memory: keeping it never changes it.

    (But for `synthetic`'s, which share their noise.)

    Attributes:
        groups: one tensor [V·N, 3, S, S] for each group of views of equal size, normalised, channels-last
            (the torchvision baseline's on a CPU are not); where views grow, S is the epoch's: all batches of an epoch
            are of the same sizes;
            rows v·N … (v+1)·N - 1 are view v of every sample. Two views make one group.
        index: int64 [N], the samples' positions in the source.
        label: int64 [N], -1 where unlabelled.
    """

    groups: list[torch.Tensor]
    index: torch.Tensor
    label: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    def split(self) -> list[torch.Tensor]:
        """Each view of all samples, [N, 3, S, S], in the recipe's order: `query, key = views.split()`; N is not 0."""
        return [view for group in self.groups for view in group.unflatten(0, (-1, len(self))).unbind()]


@dataclass
class LoaderState:
    """Where a loader stands: enough to go on with the very next sample, on any number of ranks."""

    epoch: int = 0
    consumed: int = 0  # samples of this epoch handed out, over all ranks; what is only prefetched does not count


class Loader(ABC):
    """Endless epochs of `Views`.

    `epoch(e, consumed)` is a pure function of the seed: it yields the batches of epoch e that follow the first
    `consumed` samples. Iterating the loader itself walks epoch after epoch, one per `for` loop, and
    `state_dict()` remembers what was handed out.

    Attributes:
        executor: what makes the views, and counts how many of them went around it; None where the loader brings its
            own augmentation.
        skipped: the images that could not be read so far, by index, and why.
    """

    executor: Executor | None = None

    def __init__(self, source: Source, options: Options) -> None:
        self.source, self.options = source, options
        self.recipe, self.order, self.state = options.recipe, options.order, LoaderState()
        self.skipped = Skipped(source, options.on_error)

    @abstractmethod
    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Views]:
        """Yield this rank's batches of one epoch, from the first sample not among the `consumed` ones."""

    def __len__(self) -> int:
        """Batches in a whole epoch on this rank."""
        return self.order.steps()

    def __iter__(self) -> Iterator[Views]:
        start, steps = self.state, self.order.steps(self.state.consumed)
        for step, views in enumerate(self.epoch(start.epoch, start.consumed), 1):
            consumed = start.consumed + step * self.order.global_batch
            # Set with the last batch, not after it: who counts batches, as Lightning does, never asks for one more.
            self.state = LoaderState(start.epoch, consumed) if step < steps else LoaderState(start.epoch + 1)
            yield views

    def state_dict(self) -> dict[str, Any]:
        order = {"seed": self.order.seed, "order": self.order.name, "samples": self.order.length}
        return {**order, "epoch": self.state.epoch, "consumed": self.state.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, in the order it was taken in, also where this machine chose another.

        Raises:
            UserError: this loader's seed or set is another one, so some images would be seen twice and others never.
        """
        for name, now in (("seed", self.order.seed), ("samples", self.order.length)):
            if state[name] != now:
                raise UserError(f"this state is of a loader with {name} {state[name]}, not {now}: make that one again")
        self.order.follow(state["order"])
        epoch, consumed = state["epoch"], state["consumed"]
        # A larger global batch than before may not fit into what is left: then the next epoch begins.
        self.state = LoaderState(epoch, consumed) if self.order.steps(consumed) else LoaderState(epoch + 1)

    def close(self) -> None:  # noqa: B027 (a loader may have nothing to let go of)
        """Stop threads and let go of files. A closed loader cannot be iterated again."""

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
