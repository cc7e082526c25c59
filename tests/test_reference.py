"""The reference executor is torchvision's and Albumentations' operations on the drawn values, and nothing else."""

from __future__ import annotations

import sys

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import functional as F

from penstock.augment import Pixels, Recipe, albumentations, draw, evaluation, fields, load_recipe
from penstock.augment.operations import ColorJitter, RandomResizedCrop
from penstock.augment.recipe import View
from penstock.augment.reference import NATIVE, apply, augment_one, run
from penstock.augment.rows import PARAMETERS, Interpolation, Opcode
from penstock.errors import MissingExtra

PLAIN = evaluation(32)
SEED = 0x0123456789ABCDEF


def pixels(sizes=((70, 90), (40, 33)), seed=0):
    return Pixels.from_images([noise(*size, seed=seed + i) for i, size in enumerate(sizes)])


def noise(height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def rows_for(recipe, px, epoch=0):
    return draw(recipe, seed=3, epoch=epoch, index=np.arange(len(px)), height=px.height, width=px.width)


def ran(recipe, px, dtype=torch.float32):
    out = torch.empty(recipe.count, len(px), 3, recipe.size, recipe.size, dtype=dtype)
    run(px, rows_for(recipe, px), recipe, out)
    return out


def one(image, opcode, *values, size=32, seed=SEED):
    parameters = np.array([*values, *[0] * (PARAMETERS - len(values))], np.float32)
    return apply(image, opcode, parameters, seed, size, PLAIN)


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)


def test_pixels_keep_each_image():
    images = [np.full((2, 3, 3), 7, np.uint8), np.arange(60, dtype=np.uint8).reshape(4, 5, 3)]
    px = Pixels.from_images(images)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(px.image(i), image)


def test_a_chain_equals_torchvision_called_by_hand():
    view = View(operations=(RandomResizedCrop(), ColorJitter(hue=0.3)), size=24, count=2)
    recipe, px = Recipe(name="t", about="", views=(view,)), pixels()
    rows = rows_for(recipe, px)
    calls = {
        Opcode.BRIGHTNESS: F.adjust_brightness,
        Opcode.CONTRAST: F.adjust_contrast,
        Opcode.SATURATION: F.adjust_saturation,
        Opcode.HUE: F.adjust_hue,
    }
    crop, *jitter = rows.program(1, 0)
    top, left, height, width = map(int, crop[1][:4])
    image = F.resized_crop(tensor(px.image(0)), top, left, height, width, [24, 24], antialias=True)
    for opcode, parameters, _ in jitter:
        image = calls[opcode](image, float(parameters[0]))
    assert len(jitter) == 4
    np.testing.assert_array_equal(augment_one(px.image(0), rows, 1, 0, 24, recipe), image.permute(1, 2, 0))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("how", Interpolation)
def test_crops_are_torchvisions_but_for_the_cubic_one_without_antialiasing(how, antialias):
    image = noise(60, 90)
    found = one(image, Opcode.CROP, 5, 7, 40, 70, how, antialias)
    if how == Interpolation.BICUBIC and not antialias:
        expected = cv2.resize(image[5:45, 7:77], (32, 32), interpolation=cv2.INTER_CUBIC)
    else:
        mode = F.InterpolationMode.BICUBIC if how else F.InterpolationMode.BILINEAR
        expected = F.resized_crop(tensor(image), 5, 7, 40, 70, [32, 32], mode, antialias).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected)


def test_operations_of_one_line():
    image, levels = noise(), noise().astype(int)
    np.testing.assert_array_equal(one(image, Opcode.HORIZONTAL_FLIP), image[:, ::-1])
    np.testing.assert_array_equal(one(image, Opcode.VERTICAL_FLIP), image[::-1])
    np.testing.assert_array_equal(one(image, Opcode.CHANNEL_SHUFFLE, 2, 0, 1), image[..., [2, 0, 1]])
    np.testing.assert_array_equal(one(image, Opcode.BRIGHTNESS, 1.5), np.minimum(1.5 * levels, 255).astype(np.uint8))
    np.testing.assert_array_equal(
        one(image, Opcode.BRIGHTNESS_CONTRAST, 0.75, -40), np.clip(0.75 * levels - 40, 0, 255).astype(np.uint8)
    )
    np.testing.assert_array_equal(one(image, Opcode.GRAY), F.rgb_to_grayscale(tensor(image), 3).permute(1, 2, 0))
    blurred = F.gaussian_blur(tensor(image), [7, 7], [1.25, 1.25]).permute(1, 2, 0)
    np.testing.assert_array_equal(one(image, Opcode.GAUSSIAN_BLUR, 1.25, 3), blurred)


@pytest.mark.parametrize("threshold", [0, 100, 127.5, 128, 255, 255.5, 256])
def test_solarize_inverts_from_the_threshold_on(threshold):
    image = np.arange(256, dtype=np.uint8).repeat(12).reshape(32, 32, 3)
    np.testing.assert_array_equal(
        one(image, Opcode.SOLARIZE, threshold), np.where(image >= threshold, 255 - image, image)
    )


@pytest.mark.parametrize(
    ("opcode", "values", "transform"),
    [
        (Opcode.BRIGHTNESS_CONTRAST, (1.3, 0.2 * 255), A.RandomBrightnessContrast((0.2, 0.2), (0.3, 0.3), p=1)),
        (Opcode.CLAHE, (2.5, 8), A.CLAHE((2.5, 2.5), (8, 8), p=1)),
        (Opcode.BOX_BLUR, (2,), A.Blur((5, 5), p=1)),
        (Opcode.SHARPEN, (0.375, 0.75), A.Sharpen((0.375, 0.375), (0.75, 0.75), p=1)),
        (Opcode.HSV_SHIFT, (-11.5, 20, -7), A.HueSaturationValue((-11.5, -11.5), (20, 20), (-7, -7), p=1)),
    ],
)
def test_what_torchvision_lacks_is_albumentations_transform(opcode, values, transform):
    image = np.asarray(cv2.GaussianBlur(noise(), (0, 0), 2))
    np.testing.assert_array_equal(one(image, opcode, *values), transform(image=image)["image"])


def test_dropout_fills_the_holes_that_its_seed_names():
    image = np.full((32, 32, 3), 200, np.uint8)
    expected = image.copy()
    for which in range(5):
        top, left = fields.hole(np.uint64(SEED), which, 32, 8, 6)
        expected[top : top + 8, left : left + 6] = 9
    np.testing.assert_array_equal(one(image, Opcode.COARSE_DROPOUT, 5, 8, 6, 9), expected)
    assert (image == 200).all()
    assert (one(image, Opcode.COARSE_DROPOUT, 1, 32, 32, 0) == 0).all()


def test_noise_is_what_its_seed_names():
    sigma, level = np.float32(12.5), 100
    found = one(np.full((32, 32, 3), level, np.uint8), Opcode.GAUSSIAN_NOISE, sigma).reshape(-1, 3)
    for pixel in (0, 1, 2, 33, 1023):
        words = fields.noise_words(np.uint64(SEED), pixel // 2)
        expected = [np.floor(level + sigma * fields.normal(word, pixel) + np.float32(0.5)) for word in words]
        np.testing.assert_array_equal(found[pixel], expected)


def test_noise_is_normal_and_of_its_own_everywhere():
    grey = np.full((128, 128, 3), 128, np.uint8)
    first, second = (one(grey, Opcode.GAUSSIAN_NOISE, 20, size=128, seed=seed) - 128.0 for seed in (1, 2))
    assert abs(first.mean()) < 0.5 and abs(first.std() - 20) < 0.3  # 2.2 standard errors are .2 and .14
    values = [first[:, :-1].ravel(), first[:, 1:].ravel(), second[:, :-1].ravel()]
    values += [first[:-1, :, 0].ravel()[: len(values[0])], first[1:, :, 1].ravel()[: len(values[0])]]
    assert np.abs(np.corrcoef(values[:3]) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(values[3], values[4])[0, 1]) < 0.03


def test_noise_stays_within_bytes():
    for level in (0, 255):
        found = one(np.full((32, 32, 3), level, np.uint8), Opcode.GAUSSIAN_NOISE, 200)
        assert {0, 255} <= set(found.ravel()) and np.bincount(found.ravel()).max() > 1400  # about half is cut off


def test_bytes_that_must_not_be_written_are_taken():
    image = noise()
    image.flags.writeable = False  # as in a memory map
    np.testing.assert_array_equal(one(image, Opcode.HUE, 0.5), one(noise(), Opcode.HUE, 0.5))


def test_every_operation_is_known():
    assert set(NATIVE) == set(Opcode) - {Opcode.NONE}


def test_output_is_normalised():
    recipe, px = load_recipe("moco-v2", size=24), pixels()
    raw = augment_one(px.image(1), rows_for(recipe, px), 0, 1, 24, recipe)
    expected = F.normalize(tensor(raw).float() / 255, recipe.mean, recipe.std)
    torch.testing.assert_close(ran(recipe, px)[0, 1], expected, rtol=1e-6, atol=1e-6)


def test_half_precision_is_the_rounded_single_precision():
    recipe, px = load_recipe("moco-v2", size=24), pixels()
    assert torch.equal(ran(recipe, px, torch.bfloat16), ran(recipe, px).bfloat16())


def test_an_image_of_the_views_own_size_is_not_resampled():
    px = pixels(sizes=((32, 32),))
    out = ran(evaluation(32, fraction=1.0), px)
    expected = F.normalize(tensor(px.image(0)).float() / 255, PLAIN.mean, PLAIN.std)
    torch.testing.assert_close(out[0, 0], expected, rtol=1e-6, atol=1e-6)


def test_one_pixel_images_and_one_pixel_sides_pass():
    recipe, px = load_recipe("moco-v2", size=16), pixels(sizes=((1, 1), (1, 50), (50, 1)))
    assert torch.isfinite(ran(recipe, px)).all()


def test_rows_that_begin_with_none_are_left_alone():
    recipe, px = load_recipe("moco-v2", size=16), pixels()
    rows = rows_for(recipe, px)
    rows.opcode[0, 1, 0] = Opcode.NONE
    out = torch.full((2, 2, 3, 16, 16), 77.0)
    run(px, rows, recipe, out)
    assert (out[0, 1] == 77).all() and not (out[0, 0] == 77).any() and not (out[1] == 77).any()


@pytest.fixture
def without_albumentations(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)  # makes its import fail
    for cached in (albumentations.load_package, albumentations._functions):
        monkeypatch.setattr(albumentations, cached.__name__, cached.__wrapped__)


def test_without_albumentations_torchvisions_operations_go_on(without_albumentations):
    for opcode in (Opcode.HUE, Opcode.SOLARIZE, Opcode.GAUSSIAN_NOISE, Opcode.COARSE_DROPOUT):
        one(noise(), opcode, 0.25)
    one(noise(), Opcode.CROP, 0, 0, 20, 20, Interpolation.BICUBIC, 1)
    with pytest.raises(MissingExtra, match=r"albumentations is not installed: .*\[albumentations\]"):
        one(noise(), Opcode.CLAHE, 2, 8)
    with pytest.raises(MissingExtra):
        one(noise(), Opcode.CROP, 0, 0, 20, 20, Interpolation.BICUBIC, 0)
