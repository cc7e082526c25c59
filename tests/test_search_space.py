"""What a search may change in a recipe: bounds, names, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.augment import RECIPES, Recipe
from penstock.augment.operations import (
    Albumentations,
    ByEpoch,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    RandomChoice,
    RandomResizedCrop,
    Solarize,
)
from penstock.augment.recipe import View
from penstock.augment.recipes import dump_recipe, parse_recipe
from penstock.engine.search.space import ADDABLE, Space, space_of
from penstock.errors import UserError

SPACES = {name: space_of(recipe, ["solarize", "clahe"]) for name, recipe in RECIPES.items()}


def kinds(recipe: Recipe) -> list[list[str]]:
    return [[type(operation).__name__ for operation in view.operations] for view in recipe.views]


def moved(space: Space, **values: float) -> Recipe:
    """The recipe with some values changed; `__` in a name stands for the dot."""
    changed = {name.replace("__", "."): value for name, value in values.items()}
    assert changed.keys() <= space.own.keys()
    return space.recipe_of(space.own | changed)


def of_list(*operations: Any) -> Recipe:
    return Recipe(name="test", about="", views=(View(operations=operations, size=32, count=2),))


@pytest.mark.parametrize("name", RECIPES)
def test_own_values_give_the_recipe_itself(name: str) -> None:
    assert SPACES[name].recipe_of(SPACES[name].own) == RECIPES[name]


def test_what_is_not_touched_stays_to_the_last_digit() -> None:
    never, jitter = Solarize(p=0.0), ColorJitter(brightness=0.123456, hue=0.0123456, p=0.765432)
    recipe = of_list(RandomResizedCrop(scale=(0.123456, 1.0)), jitter, Grayscale(p=0.01), never)
    space = space_of(recipe)
    assert space.recipe_of(space.own) == recipe
    assert moved(space, Grayscale__p=0.5).views[0].operations == (*recipe.views[0].operations[:2], Grayscale(p=0.5))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_values_within_bounds_give_recipes_that_can_be_written_and_drawn(data: st.DataObject) -> None:
    space = SPACES[data.draw(st.sampled_from(sorted(SPACES)))]
    assert all(knob.low <= knob.own <= knob.high for knob in space.knobs.values())
    values = {name: data.draw(st.floats(knob.low, knob.high)) for name, knob in space.knobs.items()}
    recipe = space.recipe_of(values)  # its operations check their values as they are made
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    for before, after in zip(kinds(space.recipe), kinds(recipe), strict=True):
        allowed = iter([*before, *(type(operation).__name__ for operation in space.added)])
        assert after[0] == before[0]
        assert all(kind in allowed for kind in after)  # in the same order; some may be left out


@pytest.mark.parametrize("name", ADDABLE)
def test_every_operation_that_may_be_added_can_be_searched_at_both_ends(name: str) -> None:
    space = space_of(RECIPES["a"], [name])
    for end in ("low", "high"):
        recipe = space.recipe_of({knob: getattr(k, end) for knob, k in space.knobs.items()})
        assert len(recipe.views[0].operations) == (1 if end == "low" else 2)


def test_one_factor_for_jitter_up_to_each_limit() -> None:
    space = space_of(of_list(RandomResizedCrop(), ColorJitter(brightness=0.4, contrast=0.2, saturation=0.0, hue=0.3)))
    jitter = moved(space, ColorJitter__strength=2.0).views[0].operations[1]
    assert jitter == ColorJitter(brightness=0.8, contrast=0.4, saturation=0.0, hue=0.5)


def test_stages_are_multiplied_and_keep_their_epochs() -> None:
    space = space_of(RECIPES["gradual"])
    was, now = RECIPES["gradual"].views[0].operations[2], moved(space, ColorJitter__strength=0.5).views[0].operations[2]
    assert isinstance(was, ByEpoch) and isinstance(now, ByEpoch)
    for (start, before), (begin, after) in zip(was.stages, now.stages, strict=True):
        assert isinstance(before, ColorJitter) and isinstance(after, ColorJitter)
        assert begin == start and after.hue == before.hue / 2


def test_stages_of_different_probability_keep_them() -> None:
    stages = ((0, Grayscale(p=0.1)), (5, Grayscale(p=0.2)))
    recipe = of_list(RandomResizedCrop(), ByEpoch(stages=stages, of=10))
    assert list(space_of(recipe).knobs) == ["RandomResizedCrop.scale"]


def test_what_is_rarely_applied_is_left_out_of_a_list_but_not_of_a_choice() -> None:
    choice = RandomChoice(operations=(Solarize(), None), times=2)
    space = space_of(of_list(RandomResizedCrop(), Grayscale(), choice))
    operations = moved(space, Grayscale__p=0.04, Solarize__p=0.04).views[0].operations
    assert operations == (RandomResizedCrop(), replace(choice, operations=(Solarize(p=0.0), None)))


def test_operations_that_are_equal_stay_equal() -> None:
    assert not {"HorizontalFlip-2.p", "Grayscale-2.p"} & SPACES["byol"].knobs.keys()
    first, second = moved(SPACES["byol"], **{"Grayscale__p": 0.4, "GaussianBlur-2__p": 0.3}).views
    assert first.operations[3] == second.operations[3] == Grayscale(p=0.4)
    assert (first.operations[4].p, second.operations[4].p) == (1.0, 0.3)  # type: ignore[attr-defined]


def test_what_is_not_known_is_kept() -> None:
    rain = Albumentations(transform="RandomRain", arguments={"drop_length": 20}, p=0.1)
    blur = GaussianBlur(sigma=None, kernel=(3, 7))
    space = space_of(of_list(CenterCrop(), rain, blur))
    assert list(space.knobs) == ["RandomRain.p", "GaussianBlur.p"]
    assert moved(space, RandomRain__p=0.5).views[0].operations == (CenterCrop(), replace(rain, p=0.5), blur)
    with pytest.raises(UserError, match="nothing in it can be searched"):
        space_of(of_list(CenterCrop()))


def test_numbers_are_tidy_and_whole_ones_stay_whole() -> None:
    pool = moved(SPACES["pool-14"], Blur__radius=1.7, CoarseDropout__strength=0.7, Sharpen__alpha=0.87654)
    members = {str(member).partition("(")[0]: member for member in pool.operations()}
    assert (members["Blur"].radius, members["Sharpen"].alpha) == ((1, 2), (0.2, 0.877))  # type: ignore[attr-defined]
    assert members["CoarseDropout"].height == (6, 6)  # type: ignore[attr-defined]
