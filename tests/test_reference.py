"""The reference executor is torchvision's chain on the drawn values, and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import functional as F

from penstock.augment import Pixels, Recipe, draw, evaluation, load_recipe
from penstock.augment.recipe import ColorJitter, RandomResizedCrop
from penstock.augment.reference import augment_one, reference
from penstock.augment.rows import Opcode


def pixels(sizes=((70, 90), (40, 33)), seed=0):
    rng = np.random.default_rng(seed)
    return Pixels.from_images([rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes])


def rows_for(recipe, px, epoch=0):
    return draw(recipe, seed=3, epoch=epoch, index=np.arange(len(px)), height=px.height, width=px.width)


def run(recipe, px, dtype=torch.float32):
    out = torch.empty(recipe.views, len(px), 3, recipe.size, recipe.size, dtype=dtype)
    reference(px, rows_for(recipe, px), recipe, out)
    return out


def test_pixels_keep_each_image():
    images = [np.full((2, 3, 3), 7, np.uint8), np.arange(60, dtype=np.uint8).reshape(4, 5, 3)]
    px = Pixels.from_images(images)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(px.image(i), image)


def test_a_chain_equals_torchvision_called_by_hand():
    recipe = Recipe(name="t", about="", size=24, operations=(RandomResizedCrop(), ColorJitter(hue=0.3)))
    px = pixels()
    rows = rows_for(recipe, px)
    image = torch.from_numpy(px.image(0)).permute(2, 0, 1)
    calls = {
        Opcode.BRIGHTNESS: F.adjust_brightness,
        Opcode.CONTRAST: F.adjust_contrast,
        Opcode.SATURATION: F.adjust_saturation,
        Opcode.HUE: F.adjust_hue,
    }
    crop, *jitter = rows.program(1, 0)
    top, left, height, width = map(int, crop[1][:4])
    image = F.resized_crop(image, top, left, height, width, [24, 24], antialias=True)
    for opcode, parameters, _ in jitter:
        image = calls[opcode](image, float(parameters[0]))
    assert torch.equal(augment_one(px.image(0), rows, 1, 0, 24), image)


def test_output_is_normalised():
    recipe, px = load_recipe("moco-v2", size=24), pixels()
    raw = augment_one(px.image(1), rows_for(recipe, px), 0, 1, 24)
    expected = F.normalize(raw.float() / 255, recipe.mean, recipe.std)
    torch.testing.assert_close(run(recipe, px)[0, 1], expected, rtol=1e-6, atol=1e-6)


def test_half_precision_is_the_rounded_single_precision():
    recipe, px = load_recipe("moco-v2", size=24), pixels()
    assert torch.equal(run(recipe, px, torch.bfloat16), run(recipe, px).bfloat16())


def test_an_image_of_the_views_own_size_is_not_resampled():
    px = pixels(sizes=((32, 32),))
    out = run(evaluation(32, fraction=1.0), px)
    expected = F.normalize(torch.from_numpy(px.image(0)).permute(2, 0, 1).float() / 255, *_imagenet())
    torch.testing.assert_close(out[0, 0], expected, rtol=1e-6, atol=1e-6)


def _imagenet():
    recipe = evaluation(32)
    return recipe.mean, recipe.std


def test_one_pixel_images_and_one_pixel_sides_pass():
    recipe, px = load_recipe("moco-v2", size=16), pixels(sizes=((1, 1), (1, 50), (50, 1)))
    assert torch.isfinite(run(recipe, px)).all()
