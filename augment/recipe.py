"""A recipe: which operations a method wants for each view. Data; nothing is drawn or moved here.

>>> print(load_recipe("moco-cifar"))
moco-cifar: 2 views of 32 px: RandomResizedCrop(scale .08-1) > HorizontalFlip(p .5) > ...
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from penstock.augment.operations import Albumentations, ByEpoch, CenterCrop, Operation, RandomChoice
from penstock.augment.rows import Opcode
from penstock.augment.stages import Stages, check_stages, in_force, scaled
from penstock.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALLEST = 8  # pixels of a view: what CLAHE's tiles and a blur's reflection still make sense on
SMALL = 64  # pixels: up to this size, ResNets have strides of 8 in all, above it of 32


@dataclass(frozen=True, kw_only=True)
class View:
    """One list of operations; the first is the crop, which decides the size.

    Attributes:
        operations: applied in this order, drawn anew for each view.
        size: the view's side, pixels.
        count: how many views are made by this list.
    """

    operations: tuple[Operation, ...]
    size: int = 224
    count: int = 1

    def __post_init__(self) -> None:
        if None in self.operations:
            raise UserError("a view's operations cannot be None: only a RandomChoice may do nothing")
        crops = [_puts(operation, Opcode.CROP) for operation in self.operations]
        if not crops or not crops[0] or any(crops[1:]):
            raise UserError("a view's operations begin with its one crop: RandomResizedCrop or CenterCrop")
        if not isinstance(self.size, int) or self.size < SMALLEST:
            raise UserError(f"views of {self.size} pixels are too small: --size {SMALLEST} is the least")
        if not isinstance(self.count, int) or not 1 <= self.count <= 64:
            raise UserError(f"a view's count is {self.count!r}: it must be a number from 1 to 64")

    def __str__(self) -> str:
        many = f"{self.count} views" if self.count > 1 else "a view"
        return f"{many} of {self.size} px: {' > '.join(map(str, self.operations))}"


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Sizes that first views grow through over a run: progressive resizing.

    A view of 160 pixels a side costs half of one of 224. Sizes are few: at each one, memory is allocated and kernels
    are chosen anew. (Tan, Le 2021, arXiv 2104.00298; FFCV's ImageNet configurations.)

    Attributes:
        sizes: (first epoch, counted from 0; side from then on, pixels), both rising, the first from epoch 0.
        of: the length of the run, in epochs, for which they are meant; shorter and longer runs are scaled.
    """

    sizes: Stages[int]
    of: int

    def __post_init__(self) -> None:
        if not isinstance(self.sizes, tuple) or not all(map(_is_size_of_stage, self.sizes)):
            raise UserError("growth: sizes are written as a list of [first epoch, pixels]: [[0, 160], [50, 224]]")
        check_stages("growth", self.sizes, self.of)
        sides = [side for _, side in self.sizes]
        if sides != sorted(set(sides)) or sides[0] < SMALLEST:
            raise UserError(f"views cannot grow by sizes {sides}: they must rise, from {SMALLEST} pixels on")

    def __str__(self) -> str:
        return f"growing ({'; '.join(f'from {start}: {side} px' for start, side in self.sizes)}; of {self.of})"

    def at(self, epoch: int) -> int:
        """The first view's side in an epoch, counted from 0, pixels."""
        return in_force(self.sizes, epoch)

    def over(self, epochs: int) -> Growth:
        """The same sizes in a run of so many epochs; where several would begin together, the last of them does."""
        return Growth(sizes=scaled(self.sizes, self.of, epochs), of=epochs)


class Group(NamedTuple):
    """Views of equal size, which share a tensor."""

    size: int  # pixels
    views: slice


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to an image to make its views.

    Attributes:
        name, about: what it is called and where it comes from.
        views: one list of operations for each kind of view.
        mean, std: per RGB channel, for pixels scaled to 0 … 1.
        growth: where views are smaller in early epochs, the first one's sizes, up to its own; other views grow in
            proportion. What is counted in pixels (a blur's sigma, a hole's sides) stays as it is.
    """

    name: str
    about: str
    views: tuple[View, ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    growth: Growth | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.about, str):
            raise UserError(f"a recipe's name and about are texts, not {self.name!r} and {self.about!r}")
        if not self.views:
            raise UserError(f"recipe {self.name}: it makes no views: give it at least one")
        for what, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple) or len(values) != 3 or not all(map(_is_finite, values)):
                raise UserError(f"recipe {self.name}: {what} must be three numbers, not {values!r}")
        if min(self.std) <= 0:
            raise UserError(f"recipe {self.name}: std is {self.std}: each channel's must be more than 0")
        if self.growth:
            self._check_growth(self.growth)

    def _check_growth(self, growth: Growth) -> None:
        if (last := growth.sizes[-1][1]) != self.size:
            raise UserError(f"recipe {self.name}: it grows to {last} pixels, and its first view has {self.size}")
        groups = [group.views for group in self.groups]
        for start, side in growth.sizes:
            if [group.views for group in self.at(start).groups] != groups:
                raise UserError(f"recipe {self.name}: at {side} pixels, views of different sizes become one size")

    def __str__(self) -> str:
        name = f"{self.name}, {self.growth}" if self.growth else self.name
        return f"{name}: {' | '.join(map(str, self.views))}"

    @property
    def count(self) -> int:
        """Views of each image."""
        return sum(view.count for view in self.views)

    @property
    def size(self) -> int:
        """The side of the first view, pixels; of one that grows, at the end."""
        return self.views[0].size

    @property
    def smallest(self) -> int:
        """The side of the smallest view of any epoch, pixels."""
        return min(size for size, _ in self.at(0).groups)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Consecutive views of equal size: MoCo's two views are one group, multi-crop's large and small ones two.

        Of views that grow, at the end: `at(epoch).groups` are an epoch's.
        """
        groups: list[Group] = []
        first = 0
        for view in self.views:
            begin = groups.pop().views.start if groups and groups[-1].size == view.size else first
            first += view.count
            groups.append(Group(view.size, slice(begin, first)))
        return tuple(groups)

    @cached_property
    def foreign(self) -> tuple[Albumentations, ...]:
        """The Albumentations transforms it names, each once, whatever their p; a row names one by its place here."""
        found = (replace(o, p=1.0) for o in self.operations() if isinstance(o, Albumentations))
        return tuple(dict.fromkeys(found))

    @cached_property
    def opcodes(self) -> frozenset[Opcode]:
        """What its rows may hold."""
        return frozenset[Opcode]().union(*(operation.opcodes for operation in self.operations()))

    def operations(self) -> list[Operation]:
        """Every operation of every view, choices and stages taken apart."""
        return [leaf for view in self.views for operation in view.operations for leaf in leaves(operation)]

    def resized(self, size: int) -> Recipe:
        """The same with first views of `size` pixels; smaller views, and sizes to grow through, in proportion."""

        def in_proportion(side: int) -> int:
            return max(SMALLEST, round(side * size / self.size))

        first, *others = self.views
        views = (replace(first, size=size), *(replace(view, size=in_proportion(view.size)) for view in others))
        if self.growth is None:
            return replace(self, views=views)
        stages = [(start, in_proportion(side)) for start, side in self.growth.sizes]
        starts = {side: start for start, side in reversed(stages)}  # sizes that have become equal are one
        sizes = tuple((start, side) for side, start in reversed(starts.items()))
        return replace(self, views=views, growth=Growth(sizes=sizes, of=self.growth.of))

    def growing(self, first: int, *, step: int | None = None, most: int | None = None) -> Recipe:
        """The same with first views that grow from `first` pixels to their size, by way of the multiples of `step`.

        Each size has an equal part of the run; `over` says how long that is.

        Args:
            step: pixels; None: 32, for views of up to 64 pixels 8, as the strides of ResNets for such views have it.
            most: how many sizes there may be, 2 or more: no more than a run has epochs. The first and last are kept.

        Raises:
            UserError: `first` is more than their size, or under 8.
        """
        if first > self.size:
            raise UserError(f"--first-size {first} is more than the views' {self.size} pixels: they grow")
        if first == self.size:
            return replace(self, growth=None)
        step = step or (32 if self.size > SMALL else 8)
        sizes = (first, *range(first // step * step + step, self.size, step), self.size)
        if most is not None and len(sizes) > most:
            sizes = tuple(sizes[i * (len(sizes) - 1) // (most - 1)] for i in range(most))
        return replace(self, growth=Growth(sizes=tuple(enumerate(sizes)), of=len(sizes)))

    def at(self, epoch: int) -> Recipe:
        """The recipe in force in an epoch, counted from 0; itself, where nothing in it depends on the epoch."""
        sized = replace(self, growth=None).resized(self.growth.at(epoch)) if self.growth else self
        return sized._mapped(lambda operation: operation.at(epoch) if isinstance(operation, ByEpoch) else operation)

    def over(self, epochs: int) -> Recipe:
        """Its stages scaled to a run of so many epochs."""
        grown = replace(self, growth=self.growth.over(epochs)) if self.growth else self
        return grown._mapped(lambda operation: operation.over(epochs) if isinstance(operation, ByEpoch) else operation)

    def _mapped(self, change: Callable[[Operation], Operation]) -> Recipe:
        if not any(isinstance(operation, ByEpoch) for view in self.views for operation in view.operations):
            return self
        changed = (replace(view, operations=tuple(map(change, view.operations))) for view in self.views)
        return replace(self, views=tuple(changed))


def leaves(operation: Operation | None) -> list[Operation]:
    """The operations that one may turn into: itself, or a choice's members, or a schedule's stages."""
    match operation:
        case None:
            return []
        case RandomChoice(operations=members):
            return [leaf for member in members for leaf in leaves(member)]
        case ByEpoch(stages=stages):
            return [leaf for _, stage in stages for leaf in leaves(stage)]
    return [operation]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size_of_stage(pair: object) -> bool:
    whole = [isinstance(n, int) and not isinstance(n, bool) for n in pair] if isinstance(pair, tuple) else []
    return whole == [True, True]


def _puts(operation: Operation, opcode: Opcode) -> bool:
    return any(opcode in leaf.opcodes for leaf in leaves(operation))


def evaluation(size: int, fraction: float = 0.875, *, like: Recipe | None = None) -> Recipe:
    """One deterministic view: the central `fraction` of the image at `size` pixels, normalised as `like` does."""
    mean, std = (like.mean, like.std) if like else (IMAGENET_MEAN, IMAGENET_STD)
    view = View(operations=(CenterCrop(fraction=fraction),), size=size)
    about = "features for kNN and probes: resize, then centre crop"
    return Recipe(name="evaluation", about=about, views=(view,), mean=mean, std=std)
