"""Recipes: the published lists, YAML, and one clear line for each thing that can be wrong with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings

from penstock.augment import RECIPES, Recipe, load_recipe
from penstock.augment.operations import (
    CLAHE,
    Albumentations,
    Blur,
    ByEpoch,
    ColorJitter,
    GaussianBlur,
    HorizontalFlip,
    RandomChoice,
    RandomResizedCrop,
    Solarize,
)
from penstock.augment.recipe import Growth, View
from penstock.augment.recipes import dump_recipe, parse_recipe
from penstock.errors import UserError
from tests.random_recipes import growing_recipes, recipes

CROP = RandomResizedCrop()


def after_crop(operation):
    """The YAML of a recipe of a crop and one operation."""
    return f"views: [{{operations: [RandomResizedCrop, {operation}]}}]"


def lines(name):
    return [str(view) for view in load_recipe(name).views]


def test_a_recipe_is_one_readable_line():
    assert str(load_recipe("moco-v2")) == (
        "moco-v2: 2 views of 224 px: RandomResizedCrop(scale .2-1) > ColorJitter(brightness .4, contrast .4,"
        " saturation .4, hue .1, p .8) > Grayscale(p .2) > GaussianBlur(sigma .1-2, p .5) > HorizontalFlip(p .5)"
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_is_after(name):
    assert RECIPES[name].about
    assert "\n" not in str(RECIPES[name])


def test_subsets_nest():
    whole = load_recipe("abcde").views[0].operations
    for name in ("abcd", "abc", "ab", "a"):
        assert [o for o in whole if o in load_recipe(name).views[0].operations] == list(
            load_recipe(name).views[0].operations
        )
        assert len(load_recipe(name).views[0].operations) == len(name)


def test_color_strength_scales_the_jitter():
    for name, strength in (("color-1", 1), ("color-1/2", 0.5), ("color-1/4", 0.25), ("color-1/8", 0.125)):
        _, jitter = load_recipe(name).views[0].operations
        assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.p) == (
            0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, 0.8,
        )  # fmt: skip


def test_byol_views_differ_in_blur_and_solarisation_and_share_a_tensor():
    first, second = load_recipe("byol").views
    assert [o.p for o in first.operations if isinstance(o, GaussianBlur | Solarize)] == [1.0]
    assert [o.p for o in second.operations if isinstance(o, GaussianBlur | Solarize)] == [0.1, 0.2]
    assert load_recipe("byol").groups == ((224, slice(0, 2)),)


def test_multi_crop_has_two_groups_that_are_resized_in_proportion():
    assert load_recipe("multi-crop").groups == ((224, slice(0, 2)), (96, slice(2, 8)))
    assert load_recipe("multi-crop", size=112).groups == ((112, slice(0, 2)), (48, slice(2, 8)))


GROWING = Growth(sizes=((0, 160), (60, 192), (75, 224)), of=90)


def growing(name="moco-v2", growth=GROWING):
    return replace(load_recipe(name), growth=growth)


def test_a_growing_recipe_is_the_recipe_of_the_epochs_size():
    recipe, plain = growing("multi-crop"), load_recipe("multi-crop")
    for epoch, large, small in (
        (0, 160, 69),
        (59, 160, 69),
        (60, 192, 82),
        (74, 192, 82),
        (75, 224, 96),
        (89, 224, 96),
    ):
        assert recipe.at(epoch) == plain.resized(large)
        assert recipe.at(epoch).groups == ((large, slice(0, 2)), (small, slice(2, 8)))
    assert recipe.at(0).at(75) == recipe.at(0)  # plain: nothing in it depends on the epoch any more
    assert recipe.groups == plain.groups and recipe.size == 224 and recipe.smallest == 69


def test_growth_and_strength_depend_on_the_epoch_together():
    recipe = load_recipe("gradual").growing(16).over(200)
    assert [(recipe.at(e).size, recipe.at(e).views[0].operations[2].brightness) for e in (0, 66, 100, 133, 150)] == [
        (16, 0.4), (24, 0.6), (24, 0.8), (32, 0.8), (32, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "last", "step", "epochs", "expected"),
    [
        (160, 224, None, 90, [(0, 160), (30, 192), (60, 224)]),
        (160, 224, 16, 100, [(0, 160), (20, 176), (40, 192), (60, 208), (80, 224)]),
        (100, 200, None, 5, [(0, 100), (1, 128), (2, 160), (3, 192), (4, 200)]),
        (100, 200, None, 4, [(0, 128), (1, 160), (2, 192), (3, 200)]),  # a size more than epochs: the first one goes
        (160, 224, None, 1, [(0, 224)]),
        (16, 32, None, 9, [(0, 16), (3, 24), (6, 32)]),
        (31, 32, None, 9, [(0, 31), (4, 32)]),
    ],
)
def test_sizes_have_equal_parts_of_a_run(first, last, step, epochs, expected):
    growth = load_recipe("moco-v2", size=last).growing(first, step=step).over(epochs).growth
    assert list(growth.sizes) == expected and growth.of == epochs


def test_growing_from_the_last_size_is_not_growing():
    assert growing().growing(224) == load_recipe("moco-v2")


def test_growth_over_a_run_of_another_length():
    assert GROWING.over(90) == GROWING
    assert GROWING.over(18).sizes == ((0, 160), (12, 192), (15, 224))
    assert GROWING.over(1).sizes == ((0, 224),)


def test_another_size_is_grown_to_in_proportion():
    half = growing("multi-crop").resized(112)
    assert [half.at(epoch).groups for epoch in (0, 60, 75)] == [
        ((size, slice(0, 2)), (small, slice(2, 8))) for size, small in ((80, 34), (96, 41), (112, 48))
    ]
    assert growing().resized(224) == growing()
    assert growing(growth=Growth(sizes=((0, 222), (1, 223), (2, 224)), of=3)).resized(32).growth.sizes == ((0, 32),)


def test_growth_is_in_a_recipes_line():
    assert str(growing("a", Growth(sizes=((0, 16), (7, 32)), of=9))) == (
        "a, growing (from 0: 16 px; from 7: 32 px; of 9): 2 views of 32 px: RandomResizedCrop(scale .08-1)"
    )


def test_a_recipe_that_does_not_grow_is_written_as_ever():
    assert "growth" not in dump_recipe(load_recipe("moco-v2"))
    assert yaml.safe_load(dump_recipe(growing()))["growth"] == {"sizes": [[0, 160], [60, 192], [75, 224]], "of": 90}


@settings(max_examples=50, deadline=None)
@given(growing_recipes())
def test_yaml_reads_any_growing_recipe_back_equal(recipe):
    assert recipe.growth and parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_pool_14_has_fourteen_operations_and_none():
    choice = load_recipe("pool-14").views[0].operations[1]
    assert (len(choice.operations), choice.operations.count(None), choice.times) == (15, 1, 2)
    assert {o.p for o in choice.operations if o} == {0.6}


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_reads_back_equal(name, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(RECIPES[name]))
    assert load_recipe(str(path)) == RECIPES[name]


@settings(max_examples=50, deadline=None)
@given(recipes())
def test_yaml_reads_any_recipe_back_equal(recipe):
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_the_example_of_the_documentation_loads(tmp_path):
    from penstock.augment import recipes

    example = recipes.__doc__.split("writes the built-in ones:")[1]
    path = tmp_path / "mine.yaml"
    path.write_text(example)
    recipe = load_recipe(str(path))
    assert recipe.views[0].operations[1] == ColorJitter(p=0.8)
    assert recipe.foreign == (Albumentations(transform="RandomRain", arguments={"drop_length": 20}, p=1.0),)
    assert recipe.growth == GROWING


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HorizontalFlip(p=1.2), r"HorizontalFlip: p 1.2 is outside 0 … 1"),
        (lambda: HorizontalFlip(p="often"), "HorizontalFlip: p must be a number, not 'often'"),
        (lambda: HorizontalFlip(p=True), "p must be a number"),
        (lambda: HorizontalFlip(p=float("nan")), "p must be a number"),
        (lambda: RandomResizedCrop(scale=(1.0, 0.2)), "scale 1-.2 is the wrong way round"),
        (lambda: RandomResizedCrop(scale=0.2), "scale must be two numbers"),
        (lambda: ColorJitter(hue=0.7), r"ColorJitter: hue .7 is outside 0 … .5"),
        (lambda: ColorJitter(brightness=-1.0), r"ColorJitter: brightness -1 is outside"),
        (lambda: Blur(radius=(1.5, 2)), "Blur: radius must be two whole numbers"),
        (lambda: CLAHE(tiles=0), "CLAHE: tiles 0 is outside"),
        (lambda: GaussianBlur(sigma=None), "neither sigma nor kernel"),
        (lambda: RandomChoice(operations=()), "at least one operation"),
        (lambda: RandomChoice(operations=(CROP,)), "RandomResizedCrop cannot be one of its operations"),
        (lambda: ByEpoch(stages=((5, CROP),), of=10), "they begin at 0"),
        (lambda: View(operations=(HorizontalFlip(),)), "begin with its one crop"),
        (lambda: View(operations=(CROP, CROP)), "begin with its one crop"),
        (lambda: View(operations=(CROP,), size=4), "--size 8 is the least"),
        (lambda: View(operations=(CROP,), count=0), "count is 0"),
        (lambda: Recipe(name="r", about="", views=()), "it makes no views"),
        (lambda: Recipe(name="r", about="", views=(View(operations=(CROP,)),), std=(1, 0, 1)), "must be more than 0"),
        (
            lambda: Recipe(name="r", about="", views=(View(operations=(CROP,)),), mean=(1,)),
            "mean must be three numbers",
        ),
        (lambda: load_recipe("mocov2"), "'mocov2' is not known: choose one of moco-v1"),
        (lambda: load_recipe("no-such.yaml"), "no-such.yaml: cannot be read"),
        (lambda: load_recipe("moco-v2", size=4), "--size 8 is the least"),
        (lambda: load_recipe("moco-v2").growing(256), "--first-size 256 is more than the views' 224 pixels"),
        (lambda: load_recipe("moco-v2").growing(4), "they must rise, from 8 pixels on"),
        (lambda: growing(growth=Growth(sizes=((0, 16), (1, 32)), of=2)), "grows to 32 pixels, and its first view has"),
        (lambda: Growth(sizes=((1, 16),), of=2), "growth: stages start at epochs .1. of 2: they begin at 0"),
        (lambda: Growth(sizes=((0, 16), (2, 32)), of=2), "they begin at 0, rise, and end before"),
        (lambda: Growth(sizes=((0, 32), (1, 16)), of=2), "they must rise, from 8 pixels on"),
        (lambda: load_recipe("multi-crop").growing(8), "at 8 pixels, views of different sizes become one size"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=f"{path}: is not YAML"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a recipe is written as a mapping"),
        ("[1, 2", "is not YAML"),
        ("name: x", "a recipe needs views"),
        ("view: []", "unknown field 'view': choose one of name, about, views"),
        ("views: [{size: 32}]", "a view needs operations"),
        ("views: [{operations: 3}]", "a view needs operations: a list"),
        ("views: [{operations: [Crop]}]", "unknown operation 'Crop': choose one of RandomResizedCrop"),
        (after_crop("{ColorJitter: {p: 1.2}}"), r"ColorJitter: p 1.2 is outside 0 … 1"),
        (after_crop("{ColorJitter: {q: 1}}"), "ColorJitter: unknown field 'q'"),
        (after_crop("{ColorJitter: 0.5}"), "ColorJitter is written as a mapping"),
        ("views: [{operations: [{RandomResizedCrop: {interpolation: lanczos}}]}]", "'lanczos' is not known"),
        ("views: [{operations: [{RandomResizedCrop: {scale: [1, 0.5]}}]}]", "the wrong way round"),
        (after_crop("{Albumentations: {p: 1}}"), "Albumentations needs transform"),
        (after_crop("{RandomChoice: {operations: 3}}"), "RandomChoice"),
        (after_crop("{ByEpoch: {stages: [3], of: 2}}"), "ByEpoch"),
        ("views: [{operations: [RandomResizedCrop, null]}]", "only a RandomChoice may do nothing"),
        ("views: [{operations: [[a, b]]}]", "an operation is written as NAME"),
        ("views: [{operations: [{RandomResizedCrop: {}, HorizontalFlip: {}}]}]", "an operation is written as NAME"),
        ("views: [{operations: [{RandomResizedCrop: {antialias: 3}}]}]", "antialias must be true or false"),
        ("views: [{operations: [{RandomResizedCrop: {interpolation: [1]}}]}]", "is not known"),
        (after_crop("{RandomChoice: {operations: [Blur], times: x}}"), "times from 1 to 16"),
        (after_crop("{RandomChoice: {operations: [Blur], times: 300}}"), "times from 1"),
        (after_crop("{ByEpoch: {stages: [[0, Blur]], of: x}}"), "a number of epochs"),
        (after_crop("{ByEpoch: {stages: [[0, null]], of: 2}}"), "a stage is one operation"),
        (after_crop("{Albumentations: {transform: 5}}"), "transform must be a class's name"),
        (after_crop("{Albumentations: {transform: A, arguments: null}}"), "a mapping of names"),
        (after_crop("{Albumentations: {transform: A, arguments: {1: 2}}}"), "of names"),
        (
            after_crop("{Albumentations: {transform: A, arguments: {a: {b: 1}}}}"),
            "an argument cannot be a mapping",
        ),
        ("{mean: 0.5, views: [{operations: [RandomResizedCrop]}]}", "mean must be three numbers"),
        ("{std: [.nan, 1, 1], views: [{operations: [RandomResizedCrop]}]}", "std must be three numbers"),
        ("{std: [true, 1, 1], views: [{operations: [RandomResizedCrop]}]}", "std must be three numbers"),
        ("{name: [a], views: [{operations: [RandomResizedCrop]}]}", "name and about are texts"),
        ("views: [{count: 300, operations: [RandomResizedCrop]}]", "a number from 1 to 64"),
        ("views: [{size: big, operations: [RandomResizedCrop]}]", "too small|must be"),
        ("{growth: 160, views: [{operations: [RandomResizedCrop]}]}", "growth is written as a mapping"),
        ("{growth: {of: 3}, views: [{operations: [RandomResizedCrop]}]}", "growth needs sizes"),
        ("{growth: {sizes: 160, of: 3}, views: [{operations: [RandomResizedCrop]}]}", "a list of .first epoch, pixels"),
        ("{growth: {sizes: [160, 224], of: 3}, views: [{operations: [RandomResizedCrop]}]}", "a list of .first epoch"),
        ("{growth: {sizes: [[0, x]], of: 3}, views: [{operations: [RandomResizedCrop]}]}", "a list of .first epoch"),
        ("{growth: {sizes: [], of: 3}, views: [{operations: [RandomResizedCrop]}]}", "they begin at 0"),
        ("{growth: {sizes: [[0, 224]], of: x}, views: [{operations: [RandomResizedCrop]}]}", "a number of epochs"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong_in_it(text, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_recipe(str(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
