"""The fused CPU executor against the reference: each operation alone, then whole chains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import Pixels, Recipe, Rows, draw, evaluation, load_recipe
from penstock.augment.fused_cpu import fused_cpu
from penstock.augment.recipe import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, RandomResizedCrop
from penstock.augment.reference import augment_one, reference
from penstock.augment.rows import PARAMETERS, Interpolation, Opcode

# Grey levels by which a fused operation may differ from torchvision's, fed the same bytes.
LEVELS = {
    Opcode.CROP: 1,  # torch's uint8 kernel rounds its weights to 16 bits and works the other way round
    Opcode.FLIP: 0,
    Opcode.BRIGHTNESS: 0,
    Opcode.CONTRAST: 1,
    Opcode.SATURATION: 1,
    Opcode.HUE: 1,
    Opcode.GRAY: 1,
    Opcode.BLUR: 1,
}
EVERYTHING = Recipe(
    name="everything",
    about="each operation always, to compare them one by one",
    operations=(
        RandomResizedCrop(scale=(0.05, 1.0)),
        ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.4),
        GaussianBlur(p=1.0),
        HorizontalFlip(p=1.0),
        Grayscale(p=1.0),
    ),
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)


def photographs(count=12, seed=0):
    """Smooth images with edges and noise, of several sizes, one of them grey, one saturated."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(count):
        height, width = (int(side) for side in rng.integers(20, 150, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height), Image.BICUBIC)
        image = np.asarray(coarse).astype(int) + rng.normal(0, 12, (height, width, 3))
        image = image.mean(axis=2, keepdims=True).repeat(3, axis=2) if i == 3 else image
        images.append(np.clip(image * (3 if i == 4 else 1), 0, 255).astype(np.uint8))
    return images


def rows_for(recipe, pixels, epoch=0):
    return draw(recipe, seed=1, epoch=epoch, index=np.arange(len(pixels)), height=pixels.height, width=pixels.width)


def run(executor, pixels, rows, recipe, dtype=torch.float32):
    out = torch.empty(
        recipe.views * len(pixels), 3, recipe.size, recipe.size, dtype=dtype, memory_format=torch.channels_last
    ).unflatten(0, (recipe.views, len(pixels)))
    executor(pixels, rows, recipe, out)
    return out


def levels(views):
    return (views * 255).round().int()


def alone(opcode, parameters, size):
    """Rows that run one operation on one image that already has the views' size."""
    rows = Rows(
        opcode=np.zeros((1, 1, 2), np.int32),
        parameters=np.zeros((1, 1, 2, PARAMETERS), np.float32),
        seed=np.zeros((1, 1, 2), np.uint64),
    )
    rows.opcode[0, 0] = Opcode.CROP, opcode
    rows.parameters[0, 0, 0, :6] = 0, 0, size, size, Interpolation.BILINEAR, 1
    rows.parameters[0, 0, 1] = parameters
    return rows


@pytest.mark.parametrize("size", [32, 61])
def test_each_operation_equals_the_reference(size):
    recipe = replace(EVERYTHING, size=size, views=1)
    seen = dict.fromkeys(LEVELS, 0)
    for epoch in range(6):
        pixels = Pixels.from_images(photographs(seed=epoch))
        rows = rows_for(recipe, pixels, epoch)
        for n in range(len(pixels)):
            image, program = pixels.image(n), rows.program(0, n)
            for k, (opcode, parameters, _) in enumerate(program):
                step = Rows(
                    opcode=rows.opcode[:1, n : n + 1, k : k + 1],
                    parameters=rows.parameters[:1, n : n + 1, k : k + 1],
                    seed=rows.seed[:1, n : n + 1, k : k + 1],
                )
                if opcode != Opcode.CROP:
                    step = alone(opcode, parameters, size)
                expected = augment_one(image, step, 0, 0, size)
                ours = levels(run(fused_cpu, Pixels.from_images([image]), step, recipe)[0, 0])
                seen[opcode] = max(seen[opcode], int((ours - expected.int()).abs().max()))
                image = np.ascontiguousarray(expected.permute(1, 2, 0).numpy())
    assert all(seen[opcode] <= LEVELS[opcode] for opcode in LEVELS), seen


@pytest.mark.parametrize(("name", "size"), [("moco-v1", 64), ("moco-v2", 64), ("moco-cifar", 32)])
def test_whole_chains_stay_close(name, size):
    recipe = replace(load_recipe(name, size=size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = Pixels.from_images(photographs())
    rows = rows_for(recipe, pixels)
    difference = (levels(run(fused_cpu, pixels, rows, recipe)) - levels(run(reference, pixels, rows, recipe))).abs()
    assert difference.float().mean() < 0.3 and difference.max() <= 12


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [7, 48, 150])
def test_resampling_up_and_down(antialias, size):
    crop = RandomResizedCrop(scale=(0.05, 1.0), antialias=antialias)
    recipe = replace(EVERYTHING, operations=(crop,), size=size)
    pixels = Pixels.from_images(photographs())
    rows = rows_for(recipe, pixels)
    difference = levels(run(fused_cpu, pixels, rows, recipe)) - levels(run(reference, pixels, rows, recipe))
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalisation_is_exact(dtype):
    pixels = Pixels.from_images([np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)])
    recipe = evaluation(32, fraction=1.0)
    rows = rows_for(recipe, pixels)
    assert torch.equal(run(fused_cpu, pixels, rows, recipe, dtype), run(reference, pixels, rows, recipe, dtype))


def test_odd_images_pass():
    recipe = load_recipe("moco-v2", size=16)
    pixels = Pixels.from_images([np.full((h, w, 3), 200, np.uint8) for h, w in [(1, 1), (1, 60), (60, 1), (500, 9)]])
    assert torch.isfinite(run(fused_cpu, pixels, rows_for(recipe, pixels), recipe)).all()
