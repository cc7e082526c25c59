"""Albumentations as the CPU fallback: replays by seed in any thread, refuses early what cannot work."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from penstock.augment import RECIPES, Pixels, Recipe, draw, load_recipe, reference
from penstock.augment.albumentations import NATIVE, apply, augment_one, check, run
from penstock.augment.operations import Albumentations, RandomResizedCrop
from penstock.augment.recipe import View
from penstock.augment.rows import PARAMETERS, Opcode
from penstock.benchmarks.parity_measure import photographs
from penstock.errors import UserError

RAIN = Albumentations(transform="RandomRain", arguments={"drop_length": 6}, p=1.0)
GRID = Albumentations(transform="GridDropout", p=1.0)
NOISE = Albumentations(transform="ISONoise", arguments={"color_shift": [0.1, 0.2]}, p=1.0)


def with_foreign(*operations, size=32):
    view = View(operations=(RandomResizedCrop(), *operations), size=size, count=2)
    return Recipe(name="foreign", about="", views=(view,))


def view_of_photograph(size=32):
    return np.ascontiguousarray(photographs()[0][:size, :size])


def parameters(*values):
    return np.array([*values, *[0] * (PARAMETERS - len(values))], np.float32)


def foreign(which, seed, recipe, image=None):
    image = view_of_photograph() if image is None else image
    return apply(image, Opcode.ALBUMENTATIONS, parameters(which), seed, recipe)


@pytest.fixture
def switching_often():
    """Threads take turns every few microseconds: one that shared its random state with another would show it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_a_seed_gives_the_same_pixels_whatever_ran_before():
    recipe = with_foreign(RAIN, GRID, NOISE)
    expected = {(which, seed): foreign(which, seed, recipe) for seed in range(8) for which in range(3)}
    for key in sorted(expected, reverse=True):  # by transform and not by seed: another order
        np.testing.assert_array_equal(foreign(*key, recipe), expected[key])
    for which in range(3):
        assert len({expected[which, seed].tobytes() for seed in range(8)}) == 8


def test_threads_that_run_at_once_do_not_disturb_each_other(switching_often):
    recipe, seeds, threads = with_foreign(RAIN, NOISE), range(60), 4
    expected = [foreign(1, seed, recipe) for seed in seeds]
    start = threading.Barrier(threads)

    def work(_):
        start.wait()
        return [foreign(1, seed, recipe) for seed in seeds]

    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(work, range(threads)):
            np.testing.assert_array_equal(found, expected)


def test_a_transform_always_applies_and_leaves_its_input_alone():
    recipe = with_foreign(RAIN)
    image = view_of_photograph()
    before = image.copy()
    for seed in range(40):  # at Albumentations' own p of .5, one of them would surely do nothing
        assert (foreign(0, seed, recipe, image) != before).any()
    np.testing.assert_array_equal(image, before)


def test_seeds_of_64_bits_are_taken():
    recipe = with_foreign(RAIN)
    np.testing.assert_array_equal(foreign(0, 2**64 - 1, recipe), foreign(0, 2**32 - 1, recipe))


@pytest.mark.parametrize("opcode", NATIVE - {Opcode.CROP, Opcode.ALBUMENTATIONS})
def test_operations_stay_near_the_references(opcode):
    """Those that are not the same function: OpenCV rounds grey where torch truncates it, and has hue in 180 steps."""
    values = {
        Opcode.HUE: (0.2,), Opcode.GAUSSIAN_BLUR: (1.1, 4), Opcode.SOLARIZE: (110,), Opcode.CLAHE: (2, 8),
        Opcode.BOX_BLUR: (2,), Opcode.BRIGHTNESS_CONTRAST: (0.8, 30), Opcode.SHARPEN: (0.4, 0.7),
        Opcode.CHANNEL_SHUFFLE: (1, 2, 0), Opcode.HSV_SHIFT: (10, -20, 15), Opcode.COARSE_DROPOUT: (4, 5, 7, 33),
        Opcode.GAUSSIAN_NOISE: (6,),
    }.get(opcode, (1.4,))  # fmt: skip
    most = {Opcode.HUE: 8, Opcode.SATURATION: 2, Opcode.CONTRAST: 1, Opcode.GRAY: 1, Opcode.GAUSSIAN_BLUR: 1}
    image, recipe = view_of_photograph(48), with_foreign()
    ours = apply(image, opcode, parameters(*values), 7, recipe)
    expected = reference.apply(image, opcode, parameters(*values), 7, 48, recipe)
    assert ours.dtype == np.uint8 and ours.shape == image.shape
    assert np.abs(ours.astype(int) - expected).max() <= most.get(opcode, 0)


def test_solarize_starts_at_the_very_threshold():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for threshold in (*range(257), 127.5, 255.5):
        found = apply(image, Opcode.SOLARIZE, parameters(threshold), 0, with_foreign())
        np.testing.assert_array_equal(found, np.where(image >= threshold, 255 - image, image), f"{threshold}")


def test_whole_rows_are_run_and_others_left_alone():
    recipe = load_recipe("pool-14", size=32)
    pixels = Pixels.from_images(photographs()[:6])
    rows = draw(recipe, seed=5, epoch=0, index=np.arange(6), height=pixels.height, width=pixels.width)
    rows.opcode[1, 3, 0] = Opcode.NONE
    out = torch.full((2, 6, 32, 32, 3), 77.0).permute(0, 1, 4, 2, 3)
    run(pixels, rows, recipe, out)
    assert (out[1, 3] == 77).all()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    for view, sample in [(0, 0), (1, 2), (0, 5)]:
        image = torch.from_numpy(augment_one(pixels.image(sample), rows, view, sample, 32, recipe)).permute(2, 0, 1)
        torch.testing.assert_close(out[view, sample], (image / 255 - mean) / std)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.foreign])
def test_transforms_of_our_recipes_pass_the_check(name):
    for operation in RECIPES[name].foreign:
        check(operation.transform, operation.arguments, size=32)


@pytest.mark.parametrize(
    ("transform", "arguments", "says"),
    [
        ("RandomRian", {}, "has no transform 'RandomRian': did you mean RandomRain"),
        ("Compose", {}, "has no transform 'Compose'"),
        ("RandomRain", {"slant_lower": -10}, "has no argument 'slant_lower': it takes slant_range, drop_length"),
        ("RandomRain", {"p": 0.3}, "RandomRain has no argument 'p'"),
        ("RandomRain", {"drop_length": "long"}, "RandomRain: drop_length: Input should be a valid integer"),
        ("RandomRain", {"drop_length": 40}, "RandomRain fails on views of 32 pixels"),
        (
            "RandomCrop",
            {"height": 8, "width": 8},
            r"RandomCrop turns a view, uint8 \[32, 32, 3\], into uint8 \[8, 8, 3\]",
        ),
        ("Normalize", {}, "Normalize turns a view.* into float32"),
        ("HistogramMatching", {}, "HistogramMatching fails on views of 32 pixels"),
    ],
)
def test_what_cannot_work_is_said_on_one_line(transform, arguments, says):
    with pytest.raises(UserError, match=says) as error:
        check(transform, arguments, size=32)
    assert "\n" not in str(error.value)


def test_a_transform_that_albumentations_warns_of_is_not_refused():
    with pytest.warns(UserWarning, match="special case of Affine"):
        check("ShiftScaleRotate", {"rotate_limit": 10}, size=32)
