"""Recipes: the published lists, YAML, and one clear line for each thing that can be wrong with them."""

from __future__ import annotations

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
from penstock.augment.recipe import View
from penstock.augment.recipes import dump_recipe, parse_recipe
from penstock.errors import UserError
from tests.random_recipes import recipes

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
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong_in_it(text, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_recipe(str(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
