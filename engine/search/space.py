"""What `engine/search/run.py` may change in a recipe: probabilities and strengths within bounds, nothing else.

Trial 0 is the recipe as it stands, so bounds reach out to its own values where those lie beyond them. A value that is
not touched stays as it is, to the last digit. Order is kept, and operations that are equal (a flip in both lists of
`byol`) stay equal.

    operation                   what is searched                                      within
    all but crops               p, of those that have one; below .05: left out        0 … 1 (added ones: 0 … .5)
    RandomResizedCrop           scale, its lower end                                  .05 … .8
    ColorJitter                 strength: brightness, contrast, saturation, hue       times 1/4 … 2
    RandomBrightnessContrast    strength: brightness, contrast                        times 1/4 … 2
    HueSaturationValue          strength: hue, saturation, value                      times 1/4 … 2
    CoarseDropout               strength: the holes' height and width                 times 1/4 … 2
    GaussianBlur                sigma, its upper end (none where the kernel rules)    .3 … 4 pixels
    Blur                        radius, its upper end                                 1 … 5 pixels
    Solarize                    threshold                                             32 … 224
    CLAHE                       clip_limit, its upper end                             1.5 … 8
    Sharpen                     alpha, its upper end                                  .1 … 1
    GaussNoise                  variance, its upper end                               1 … 500

A strength is one factor for all of an operation's ranges, each up to the limit that it has (a hue shift of half a
turn). A RandomChoice's members are searched one by one, and none is left out of it: that would give others its share.
Of a ByEpoch, what its stages have in common: strengths are multiplied in each. Whatever is not in the table is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from penstock.augment.operations import (
    CLAHE,
    OPERATIONS,
    Albumentations,
    Blur,
    ByEpoch,
    CoarseDropout,
    ColorJitter,
    GaussianBlur,
    GaussNoise,
    HueSaturationValue,
    Operation,
    RandomBrightnessContrast,
    RandomChoice,
    RandomResizedCrop,
    Sharpen,
    Solarize,
)
from penstock.augment.recipe import Recipe, View
from penstock.errors import UserError

Change = Callable[[Any, float], Operation]
LEAST_P = 0.05  # what is applied more rarely is left out: the length of the list is searched, too
MOST_ADDED_P = 0.5
FACTORS = (0.25, 2.0)
ADDABLE: dict[str, Any] = {
    name.lower(): kind
    for name, kind in OPERATIONS.items()
    if "p" in kind.__dataclass_fields__ and kind is not Albumentations
}


@dataclass(frozen=True, kw_only=True)
class Knob:
    """A number of an operation.

    Attributes:
        name: what it is called.
        own: its value in the recipe.
        low, high: its bounds.
        log: whether ratios count, not differences.
        change: the operation with another value of it.
    """

    name: str
    own: float
    low: float
    high: float
    change: Change
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Space:
    """A recipe, and what may be changed in it.

    Attributes:
        recipe: as it was given.
        added: operations that may follow each of its lists; their own p is 0.
    """

    recipe: Recipe
    added: tuple[Operation, ...] = ()

    def __post_init__(self) -> None:
        if not self.knobs:
            raise UserError(f"recipe {self.recipe.name}: nothing in it can be searched: --add operations to it")

    @cached_property
    def _found(self) -> dict[str, tuple[Operation, Knob]]:
        """By a name such as `ColorJitter.p`; the second operation of a kind is `ColorJitter-2`."""
        found: dict[str, tuple[Operation, Knob]] = {}
        seen: Counter[str] = Counter()
        listed = (part for view in self.recipe.views for operation in view.operations for part in _parts(operation))
        for operation in dict.fromkeys((*listed, *self.added)):
            kind = _kind(operation)
            seen[kind] += 1
            label = kind if seen[kind] == 1 else f"{kind}-{seen[kind]}"
            found |= {f"{label}.{knob.name}": (operation, knob) for knob in _knobs(operation, operation in self.added)}
        return found

    @property
    def knobs(self) -> dict[str, Knob]:
        return {name: knob for name, (_, knob) in self._found.items()}

    @property
    def own(self) -> dict[str, float]:
        """The values of the recipe as it was given."""
        return {name: knob.own for name, knob in self.knobs.items()}

    def recipe_of(self, values: Mapping[str, float]) -> Recipe:
        """The recipe with these values of all knobs."""
        if dict(values) == self.own:
            return self.recipe
        became: dict[Operation, Operation] = {}
        for name, (operation, knob) in self._found.items():
            if values[name] != knob.own:
                became[operation] = _changed(became.get(operation, operation), knob, values[name])
        return replace(self.recipe, views=tuple(self._view(view, became) for view in self.recipe.views))

    def _view(self, view: View, became: Mapping[Operation, Operation]) -> View:
        operations = (_renewed(operation, became) for operation in (*view.operations, *self.added))
        return replace(view, operations=tuple(o for o in operations if getattr(o, "p", None) != 0))


def space_of(recipe: Recipe, add: Sequence[str] = ()) -> Space:
    """What may be changed in a recipe, to which operations of these names may be added.

    Raises:
        UserError: an unknown name, or nothing to search.
    """
    if unknown := [name for name in add if name.lower() not in ADDABLE]:
        raise UserError(f"--add {unknown[0]!r} is not known: choose among {', '.join(ADDABLE)}")
    kinds = dict.fromkeys(ADDABLE[name.lower()] for name in add)
    return Space(recipe=recipe, added=tuple(kind(p=0.0) for kind in kinds))


def _parts(operation: Operation) -> Iterator[Operation]:
    """A choice's members, else the operation itself."""
    if isinstance(operation, RandomChoice):
        yield from (member for member in operation.operations if member is not None)
    else:
        yield operation


def _kind(operation: Operation) -> str:
    if isinstance(operation, ByEpoch):
        return _kind(operation.at(0))
    return operation.transform if isinstance(operation, Albumentations) else type(operation).__name__


def _knobs(operation: Operation, added: bool = False) -> list[Knob]:
    if isinstance(operation, ByEpoch):
        first, *others = (_knobs(stage) for _, stage in operation.stages)
        return [knob for knob in first if all(knob in other for other in others)]
    makers = STRENGTHS.get(type(operation))
    strength = makers(operation) if makers else None
    p = getattr(operation, "p", None)
    own = [] if p is None else [Knob(name="p", own=p, low=0.0, high=MOST_ADDED_P if added else 1.0, change=_set_p)]
    return own if strength is None else [*own, strength]


def _changed(operation: Operation, knob: Knob, value: float) -> Operation:
    if isinstance(operation, ByEpoch):
        stages = tuple((start, knob.change(stage, value)) for start, stage in operation.stages)
        return replace(operation, stages=stages)
    return knob.change(operation, value)


def _renewed(operation: Operation, became: Mapping[Operation, Operation]) -> Operation:
    if isinstance(operation, RandomChoice):
        members = tuple(member and became.get(member, member) for member in operation.operations)
        return replace(operation, operations=members)
    return became.get(operation, operation)


def _set_p(operation: Any, value: float) -> Operation:
    return replace(operation, p=0.0 if value < LEAST_P else round(value, 2))


def _tidy(value: float) -> float:
    """Three digits: more would say more than a search can know."""
    return float(f"{value:.3g}")


def _factor(*fields: str, whole: bool = False) -> Callable[[Any], Knob]:
    """One factor for several fields."""
    tidy = round if whole else _tidy

    def scaled(operation: Any, field: str, factor: float) -> Any:
        least, most = operation.limits[field]
        value = getattr(operation, field)
        ends = [min(max(tidy(end * factor), least), most) for end in (value if isinstance(value, tuple) else (value,))]
        return tuple(ends) if isinstance(value, tuple) else ends[0]

    def change(operation: Any, factor: float) -> Operation:
        return replace(operation, **{field: scaled(operation, field, factor) for field in fields})

    return lambda operation: Knob(name="strength", own=1.0, low=FACTORS[0], high=FACTORS[1], log=True, change=change)


def _value(field: str, low: float, high: float) -> Callable[[Any], Knob]:
    """A field that is a number."""

    def change(operation: Any, value: float) -> Operation:
        return replace(operation, **{field: _tidy(value)})

    def knob(operation: Any) -> Knob:
        own = getattr(operation, field)
        return Knob(name=field, own=own, low=min(low, own), high=max(high, own), change=change)

    return knob


def _lower(field: str, low: float, high: float) -> Callable[[Any], Knob]:
    """The lower end of a range, up to the other one."""

    def change(operation: Any, value: float) -> Operation:
        return replace(operation, **{field: tuple(sorted((_tidy(value), getattr(operation, field)[1])))})

    def knob(operation: Any) -> Knob:
        own, other = getattr(operation, field)
        return Knob(name=field, own=own, low=min(low, own), high=max(min(high, other), own), change=change)

    return knob


def _upper(
    field: str, low: float, high: float, *, log: bool = True, whole: bool = False
) -> Callable[[Any], Knob | None]:
    """The upper end of a range, from the other one on."""
    tidy = round if whole else _tidy

    def change(operation: Any, value: float) -> Operation:
        return replace(operation, **{field: tuple(sorted((getattr(operation, field)[0], tidy(value))))})

    def knob(operation: Any) -> Knob | None:
        if getattr(operation, field) is None:
            return None
        other, own = getattr(operation, field)
        lowest = min(max(low, other), own)
        return Knob(name=field, own=own, low=lowest, high=max(high, own), change=change, log=log and lowest > 0)

    return knob


STRENGTHS: dict[type[Operation], Callable[[Any], Knob | None]] = {
    RandomResizedCrop: _lower("scale", 0.05, 0.8),
    ColorJitter: _factor("brightness", "contrast", "saturation", "hue"),
    RandomBrightnessContrast: _factor("brightness", "contrast"),
    HueSaturationValue: _factor("hue", "saturation", "value"),
    CoarseDropout: _factor("height", "width", whole=True),
    GaussianBlur: _upper("sigma", 0.3, 4.0),
    Blur: _upper("radius", 1, 5, log=False, whole=True),
    Solarize: _value("threshold", 32, 224),
    CLAHE: _upper("clip_limit", 1.5, 8.0),
    Sharpen: _upper("alpha", 0.1, 1.0, log=False),
    GaussNoise: _upper("variance", 1.0, 500.0),
}
