"""The fused CPU executor against the reference: each operation alone, whole chains, and what routing asks of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import Pixels, Rows, draw, evaluation, fused_cpu, load_recipe, reference
from penstock.augment.fused_cpu.finish import normalisation
from penstock.augment.recipes import RECIPES
from penstock.augment.rows import PARAMETERS, Interpolation, Opcode

RECIPE = replace(evaluation(32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


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


def hard_images():
    """Noise, black-and-white noise, one pixel, one line, flat ones."""
    noise = np.random.default_rng(1).integers(0, 256, (90, 70, 3), np.uint8)
    flat = [np.full((40, 50, 3), level, np.uint8) for level in (0, 77, 255)]
    return [noise, np.where(noise > 127, 255, 0).astype(np.uint8), noise[:1, :1], noise[:1], noise[:, :1], *flat]


def program(*slots):
    """(opcode, parameters) slots as the arrays that `run_slots` takes."""
    opcode = np.array([slot[0] for slot in slots], np.int32)
    parameters = np.zeros((len(slots), PARAMETERS), np.float32)
    for k, (_, *values) in enumerate(slots):
        parameters[k, : len(values)] = values
    return opcode, parameters, np.arange(7, 7 + len(slots), dtype=np.uint64)


def difference(image, slots, size):
    """Grey levels between ours and the reference's, the whole program run by each."""
    opcode, parameters, seed = program(*slots)
    ours = fused_cpu.run_slots(image, opcode, parameters, seed, size)
    rows = Rows(opcode=opcode[None, None], parameters=parameters[None, None], seed=seed[None, None])
    return np.abs(ours.astype(int) - reference.augment_one(image, rows, 0, 0, size, RECIPE))


def rows_for(recipe, pixels, epoch=0):
    return draw(recipe, seed=1, epoch=epoch, index=np.arange(len(pixels)), height=pixels.height, width=pixels.width)


def run(back_end, pixels, rows, recipe, size, dtype=torch.float32):
    views = rows.opcode.shape[:2]
    out = torch.zeros(views[0] * views[1], 3, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    out = out.unflatten(0, views)
    back_end.run(pixels, rows, recipe, out)
    return out


@pytest.mark.parametrize("antialias", [0, 1])
@pytest.mark.parametrize("how", Interpolation)
@pytest.mark.parametrize("size", [8, 32, 61, 150])
def test_a_crop_is_the_reference_s(size, how, antialias):
    for image in [*photographs(4), *hard_images()]:
        height, width = image.shape[:2]
        for box in [(0, 0, height, width), (height // 3, 0, max(1, height // 2), width), (0, width // 2, height, 1)]:
            off = difference(image, [(Opcode.CROP, *box, how, antialias)], size)
            assert off.max() <= 2 and off.mean() <= 0.5, (image.shape, box)


def test_a_huge_image_shrinks_without_drift():
    wide = np.random.default_rng(0).integers(0, 256, (90, 2500, 3), np.uint8)
    for how in Interpolation:
        for image in (wide, np.zeros_like(wide), np.full_like(wide, 255)):
            off = difference(image, [(Opcode.CROP, 0, 0, 90, 2500, how, 1)], 16)
            assert off.max() <= 1 and off.mean() <= 0.5


@pytest.mark.parametrize("factor", [0.0, 0.31, 0.97, 1.0, 1.28, 1.8, 2.0, 2.6, 11.0])
@pytest.mark.parametrize("opcode", [Opcode.BRIGHTNESS, Opcode.CONTRAST, Opcode.SATURATION])
def test_a_factor_is_the_reference_s(opcode, factor):
    limit = max(1, round(factor))  # beyond 2, saturation magnifies a luma that is off by one
    for image in photographs():
        off = difference(image[:20, :20], [(opcode, factor)], 20)
        assert off.max() <= limit and off.mean() <= 0.5


@pytest.mark.parametrize("shift", [-0.5, -0.21, -0.001, 0.0, 0.04, 1 / 3, 0.4, 0.5])
def test_hue_is_the_reference_s(shift):
    for image in [*photographs(), *(hard[:20, :20] for hard in hard_images()[:2])]:
        off = difference(image[:20, :20], [(Opcode.HUE, shift)], 20)
        assert off.max() <= 1 and off.mean() <= 0.1


@pytest.mark.parametrize("size", [16, 33, 70])
@pytest.mark.parametrize("sigma", [0.1, 0.25, 0.4, 1.0, 1.7, 2.0])
def test_blur_is_the_reference_s(sigma, size):
    radius = max(1, int(np.ceil(3 * sigma)))
    for image in [*(image for image in photographs(seed=3) if min(image.shape[:2]) >= size), *hard_images()[:2]]:
        off = difference(image[:size, :size], [(Opcode.GAUSSIAN_BLUR, sigma, radius)], size)
        assert off.max() <= 1 and off.mean() <= 0.1


def test_gray_and_flips_are_the_reference_s():
    for image in photographs():
        assert difference(image[:20, :20], [(Opcode.GRAY,)], 20).max() <= 1
        for flips in [
            (Opcode.HORIZONTAL_FLIP,),
            (Opcode.VERTICAL_FLIP,),
            (Opcode.HORIZONTAL_FLIP, Opcode.VERTICAL_FLIP),
        ]:
            assert difference(image[:20, :20], [(flip,) for flip in flips], 20).max() == 0


@pytest.mark.parametrize(
    "operation",
    [(Opcode.COARSE_DROPOUT, 3, 4, 6, 99), (Opcode.GAUSSIAN_NOISE, 9), (Opcode.CLAHE, 2, 8), (Opcode.BOX_BLUR, 2)],
    ids=lambda operation: operation[0].name,
)
@pytest.mark.parametrize("flips", [(), (Opcode.HORIZONTAL_FLIP,), (Opcode.VERTICAL_FLIP, Opcode.HORIZONTAL_FLIP)])
@pytest.mark.parametrize("size", [32, 35])
def test_what_a_flip_would_move_comes_after_it(size, flips, operation):
    if operation[0] in (Opcode.CLAHE, Opcode.BOX_BLUR):
        pytest.importorskip("albumentations", reason="the reference needs it: pip install 'penstock[albumentations]'")
    image = photographs(seed=5)[0][:size, :size]
    assert image.shape == (size, size, 3)
    off = difference(image, [*((flip,) for flip in flips), operation, (Opcode.HORIZONTAL_FLIP,)], size)
    assert off.mean() <= 1 and (off.max() <= 2 or operation[0] == Opcode.CLAHE)


@pytest.mark.parametrize(("name", "size"), [("moco-v1", 64), ("moco-v2", 64), ("moco-cifar", 32)])
def test_whole_chains_stay_close(name, size):
    recipe = replace(load_recipe(name, size=size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = Pixels.from_images(photographs())
    rows = rows_for(recipe, pixels)
    ours, theirs = (run(back_end, pixels, rows, recipe, size) for back_end in (fused_cpu, reference))
    off = (ours - theirs).abs() * 255
    assert off.mean() < 0.4 and np.percentile(off, 99.9) <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalisation_is_exact(dtype):
    image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    pixels, recipe = Pixels.from_images([image]), evaluation(32, fraction=1.0)
    rows = rows_for(recipe, pixels)
    expected = run(reference, pixels, rows, recipe, 32, dtype)
    assert torch.equal(run(fused_cpu, pixels, rows, recipe, 32, dtype), expected)
    written = torch.zeros_like(expected)
    fused_cpu.write(image[None], np.array([0]), np.array([0]), recipe, written)
    assert torch.equal(written, expected)


@pytest.mark.parametrize("size", [8, 15, 40])
@pytest.mark.parametrize("offset", [0, 1, 4, 15])
def test_views_may_lie_anywhere(offset, size):
    """What vectors do not reach is looked up, before and after them: the same bits, and nothing beyond."""
    recipe, pixels = load_recipe("moco-v2", size=size), Pixels.from_images(photographs(4))
    rows, numbers = rows_for(recipe, pixels), 2 * 4 * size * size * 3
    memory = torch.full((offset + numbers + 16,), 9.0)
    out = memory[offset : offset + numbers].view(2, 4, size, size, 3).permute(0, 1, 4, 2, 3)
    fused_cpu.run(pixels, rows, recipe, out)
    table = torch.from_numpy(fused_cpu._table(recipe.mean, recipe.std, torch.float32).view(np.float32))
    levels = run(fused_cpu, pixels, rows, replace(recipe, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), size) * 255
    for channel in range(3):
        assert torch.equal(out[:, :, channel], table[channel][levels[:, :, channel].round().long()])
    assert (memory[:offset] == 9).all() and (memory[offset + numbers :] == 9).all()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_arithmetic_normalises_as_the_table_or_not_at_all(recipe):
    table = fused_cpu._table(recipe.mean, recipe.std, torch.float32)
    assert len(normalisation(recipe.mean, recipe.std, table))
    table = table.copy()
    table[1, 77] ^= 1
    assert not len(normalisation(recipe.mean, recipe.std, table))


@pytest.mark.parametrize("how", Interpolation)
@pytest.mark.parametrize("shape", [(90, 77), (13, 9), (2, 40), (40, 2), (1, 1)])
def test_what_lies_behind_an_image_does_not_show(shape, how):
    """Sums are made in whole vectors, which reach over the end of a row."""
    height, width = shape
    image = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    crop = (Opcode.CROP, height // 2, width // 2, height - height // 2, width - width // 2, how, 1)
    opcode, parameters, seed = program(crop, (Opcode.GAUSSIAN_BLUR, 0.9, 3))
    rows = Rows(opcode=opcode[None, None], parameters=parameters[None, None], seed=seed[None, None])
    views = []
    for behind in (b"", bytes(300), bytes([255]) * 300):
        data = np.concatenate([image.reshape(-1), np.frombuffer(behind, np.uint8)])
        pixels = Pixels(data=data, offset=np.array([0]), height=np.array([height]), width=np.array([width]))
        views.append(run(fused_cpu, pixels, rows, RECIPE, 32))
    assert torch.equal(views[0], views[1]) and torch.equal(views[0], views[2])


def test_an_image_s_views_do_not_depend_on_its_batch():
    recipe = load_recipe("moco-v2", size=40)
    images = photographs()
    together = run(fused_cpu, Pixels.from_images(images), rows_for(recipe, Pixels.from_images(images)), recipe, 40)
    rows = rows_for(recipe, Pixels.from_images(images))
    for n in (0, 5, 11):
        one = slice(n, n + 1)
        alone = Rows(opcode=rows.opcode[:, one], parameters=rows.parameters[:, one], seed=rows.seed[:, one])
        assert torch.equal(run(fused_cpu, Pixels.from_images(images[one]), alone, recipe, 40)[:, 0], together[:, n])


def test_rows_without_a_program_are_left_alone():
    recipe = load_recipe("moco-v2", size=16)
    pixels = Pixels.from_images(photographs(3))
    rows = rows_for(recipe, pixels)
    rows.opcode[1, 2] = Opcode.NONE
    out = run(fused_cpu, pixels, rows, recipe, 16)
    assert not out[1, 2].any() and out[0, 2].any() and out[1, 1].any()


def test_odd_batches_pass():
    recipe = load_recipe("moco-v2", size=16)
    pixels = Pixels.from_images([np.full((h, w, 3), 200, np.uint8) for h, w in [(1, 1), (1, 60), (60, 1), (500, 9)]])
    assert torch.isfinite(run(fused_cpu, pixels, rows_for(recipe, pixels), recipe, 16)).all()
    nothing = Pixels.from_images([])
    assert run(fused_cpu, nothing, rows_for(recipe, nothing), recipe, 16).shape == (2, 0, 3, 16, 16)


def test_slots_may_be_run_in_pieces():
    image = photographs()[0]
    crop = (Opcode.CROP, 2, 3, 18, 17, Interpolation.BILINEAR, 1)
    others = [(Opcode.VERTICAL_FLIP,), (Opcode.BRIGHTNESS, 0.7), (Opcode.GAUSSIAN_BLUR, 0.9, 3)]
    whole = fused_cpu.run_slots(image, *program(crop, *others), 24)
    first = fused_cpu.run_slots(image, *program(crop), 24)
    assert np.array_equal(fused_cpu.run_slots(first, *program(*others), 24), whole)


def test_sizes_that_views_have_grown_out_of_leave_no_room_behind():
    recipe = load_recipe("multi-crop", size=64).growing(32, step=4)
    image = Pixels.from_images(photographs(1))
    for epoch in range(recipe.growth.of):
        now = recipe.at(epoch)
        rows = draw(now, seed=0, epoch=epoch, index=np.arange(1), height=image.height, width=image.width)
        for size, views in now.groups:
            out = torch.empty(views.stop - views.start, 1, size, size, 3).permute(0, 1, 4, 2, 3)
            fused_cpu.run(image, rows.views(views), now, out)
    assert recipe.growth.of > fused_cpu.SPACES == len(fused_cpu._kept.spaces)
    assert set(fused_cpu._kept.spaces) >= {size for size, _ in recipe.groups}
