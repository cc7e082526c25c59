"""The draw: a pure function, distributed as torchvision's own parameters are."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms

from penstock.augment import RECIPES, Recipe, draw, evaluation, load_recipe
from penstock.augment.operations import (
    CLAHE,
    Albumentations,
    Blur,
    ByEpoch,
    CenterCrop,
    ChannelShuffle,
    CoarseDropout,
    ColorJitter,
    Flip,
    GaussianBlur,
    GaussNoise,
    Grayscale,
    HorizontalFlip,
    HueSaturationValue,
    RandomBrightnessContrast,
    RandomChoice,
    RandomResizedCrop,
    Sharpen,
    Solarize,
    VerticalFlip,
)
from penstock.augment.recipe import View
from penstock.augment.rows import Opcode

SAMPLES = 4000
ALPHA = 1e-4  # with fixed seeds a test either always passes or never does; this guards against a wrong law


def rows_of(operations, n=SAMPLES, height=375, width=500, seed=1, epoch=0, index=None):
    if Opcode.CROP not in operations[0].opcodes:
        operations = [CenterCrop(), *operations]
    recipe = Recipe(name="test", about="", views=(View(operations=tuple(operations), size=64, count=2),))
    index = np.arange(n) if index is None else index
    sizes = {"height": np.full(len(index), height), "width": np.full(len(index), width)}
    return draw(recipe, seed=seed, epoch=epoch, index=index, **sizes)


def values(rows, opcode, column=0):
    return rows.parameters[rows.opcode == opcode][:, column]


MOCO = load_recipe("moco-v2").views[0].operations


def test_a_row_depends_on_its_sample_alone():
    whole = rows_of(MOCO, n=100)
    part = rows_of(MOCO, index=np.array([70, 3]))
    for field in ("opcode", "parameters", "seed"):
        np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[:, [70, 3]])


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 1}, {"index": np.arange(100, 200)}])
def test_seed_epoch_and_sample_change_the_row(change):
    base, other = rows_of(MOCO, n=100), rows_of(MOCO, **({"n": 100} | change))
    assert (base.parameters[..., 0, :4] != other.parameters[..., 0, :4]).any(axis=-1).mean() > 0.95


def test_samples_beyond_32_bits_are_distinct():
    low, high = rows_of(MOCO, index=np.array([5])), rows_of(MOCO, index=np.array([5 + 2**32]))
    assert (low.parameters != high.parameters).any()


def test_views_differ():
    rows = rows_of(MOCO, n=200)
    assert (rows.parameters[0, :, 0, :4] != rows.parameters[1, :, 0, :4]).any(axis=-1).mean() > 0.95


def test_adding_an_operation_leaves_the_others_alone():
    crop, blur, flip = RandomResizedCrop(), GaussianBlur(p=1.0), HorizontalFlip(p=1.0)
    np.testing.assert_array_equal(
        values(rows_of([crop, blur]), Opcode.GAUSSIAN_BLUR),
        values(rows_of([crop, flip, Grayscale(p=0.5), blur]), Opcode.GAUSSIAN_BLUR),
    )


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (64, 64), (100, 400), (400, 90)])
def test_crop_boxes_follow_torchvision(height, width):
    ours = rows_of([RandomResizedCrop(scale=(0.2, 1.0))], height=height, width=width).parameters[..., 0, :4]
    ours = ours.reshape(-1, 4)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [transforms.RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(len(ours))]
    for ours_column, theirs_column in zip(ours.T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(ours_column, theirs_column).pvalue > ALPHA


def test_crop_boxes_lie_inside_the_image():
    rng = np.random.default_rng(0)
    height, width = rng.integers(1, 600, SAMPLES), rng.integers(1, 600, SAMPLES)
    recipe = load_recipe("moco-cifar", size=32)
    box = draw(recipe, seed=0, epoch=0, index=np.arange(SAMPLES), height=height, width=width).parameters[..., 0, :4]
    top, left, h, w = np.moveaxis(box, -1, 0)
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_jitter_factors_and_order_follow_torchvision():
    rows = rows_of([ColorJitter(brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1)])
    for opcode, low, high in [
        (Opcode.BRIGHTNESS, 0.6, 1.4),
        (Opcode.CONTRAST, 0.7, 1.3),
        (Opcode.SATURATION, 0.0, 2.5),
        (Opcode.HUE, -0.1, 0.1),
    ]:
        drawn = values(rows, opcode)
        assert len(drawn) == 2 * SAMPLES
        assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > ALPHA
    orders, counts = np.unique(rows.opcode[..., 1:].reshape(-1, 4), axis=0, return_counts=True)
    assert len(orders) == 24
    assert stats.chisquare(counts).pvalue > ALPHA


def test_a_zero_range_leaves_the_operation_out():
    rows = rows_of([ColorJitter(brightness=0.4, contrast=0, saturation=0, hue=0)])
    assert set(np.unique(rows.opcode)) == {Opcode.NONE, Opcode.CROP, Opcode.BRIGHTNESS}


@pytest.mark.parametrize(
    ("operation", "opcode", "p"),
    [
        (HorizontalFlip(p=0.5), Opcode.HORIZONTAL_FLIP, 0.5),
        (VerticalFlip(p=0.3), Opcode.VERTICAL_FLIP, 0.3),
        (Flip(p=0.6), Opcode.HORIZONTAL_FLIP, 0.4),
        (Flip(p=0.6), Opcode.VERTICAL_FLIP, 0.4),
        (Grayscale(p=0.2), Opcode.GRAY, 0.2),
        (GaussianBlur(p=0.5), Opcode.GAUSSIAN_BLUR, 0.5),
        (ColorJitter(p=0.8), Opcode.HUE, 0.8),
        (Solarize(p=0.2), Opcode.SOLARIZE, 0.2),
        (CLAHE(p=0.2), Opcode.CLAHE, 0.2),
        (Albumentations(transform="RandomRain", p=0.1), Opcode.ALBUMENTATIONS, 0.1),
    ],
)
def test_probabilities(operation, opcode, p):
    applied = (rows_of([operation]).opcode == opcode).any(axis=-1).ravel()
    assert stats.binomtest(int(applied.sum()), applied.size, p).pvalue > ALPHA


def test_blur_sigma_is_uniform_and_its_kernel_reaches_three_sigma():
    rows = rows_of([GaussianBlur(sigma=(0.1, 2.0), p=1.0)])
    sigma, radius = values(rows, Opcode.GAUSSIAN_BLUR), values(rows, Opcode.GAUSSIAN_BLUR, 1)
    assert stats.kstest(sigma, stats.uniform(0.1, 1.9).cdf).pvalue > ALPHA
    assert (radius >= 3 * sigma - 1e-5).all() and (radius <= 3 * sigma + 1).all()


INDEPENDENT = (Opcode.HORIZONTAL_FLIP, Opcode.GRAY, Opcode.GAUSSIAN_BLUR)


def test_operations_are_drawn_independently():
    rows = rows_of([HorizontalFlip(p=0.5), Grayscale(p=0.5), GaussianBlur(p=0.5)])
    flip, gray, blur = ((rows.opcode == o).any(axis=-1).ravel() for o in INDEPENDENT)
    for first, second in [(flip, gray), (flip, blur), (gray, blur)]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_evaluation_takes_the_centre():
    rows = draw(evaluation(224), seed=0, epoch=0, index=np.arange(1), height=np.array([256]), width=np.array([512]))
    assert rows.program(0, 0)[0][1][:4].tolist() == [16, 144, 224, 224]


def test_jitter_follows_torchvision_s_own_draw():
    """Order, factors and shift of one jitter against as many of `ColorJitter.get_params`, two samples each."""
    rows = rows_of([ColorJitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)])
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(0.4, 0.3, 0.2, 0.1)
    ranges = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    theirs = [transforms.ColorJitter.get_params(*ranges) for _ in range(SAMPLES)]
    for which in range(4):
        drawn = values(rows, Opcode.BRIGHTNESS + which)
        assert stats.ks_2samp(drawn, [params[1 + which] for params in theirs]).pvalue > ALPHA
        places = np.nonzero(rows.opcode[..., 1:] == Opcode.BRIGHTNESS + which)[-1]
        counts = (
            np.bincount(places, minlength=4),
            np.bincount([int(p[0].argsort()[which]) for p in theirs], minlength=4),
        )
        assert stats.chi2_contingency(counts).pvalue > ALPHA


def test_blur_follows_torchvision_s_own_draw():
    drawn = values(rows_of([GaussianBlur(sigma=(0.1, 2.0), p=1.0)]), Opcode.GAUSSIAN_BLUR)
    torch.manual_seed(0)
    assert stats.ks_2samp(drawn, [transforms.GaussianBlur.get_params(0.1, 2.0) for _ in range(SAMPLES)]).pvalue > ALPHA


@pytest.mark.parametrize(
    ("operation", "opcode", "column", "low", "high"),
    [
        (RandomBrightnessContrast(contrast=0.3, p=1.0), Opcode.BRIGHTNESS_CONTRAST, 0, 0.7, 1.3),
        (RandomBrightnessContrast(brightness=0.2, p=1.0), Opcode.BRIGHTNESS_CONTRAST, 1, -51.0, 51.0),
        (CLAHE(clip_limit=(1.0, 4.0), p=1.0), Opcode.CLAHE, 0, 1.0, 4.0),
        (Sharpen(alpha=(0.2, 0.5), p=1.0), Opcode.SHARPEN, 0, 0.2, 0.5),
        (Sharpen(lightness=(0.5, 1.0), p=1.0), Opcode.SHARPEN, 1, 0.5, 1.0),
        (HueSaturationValue(hue=20.0, p=1.0), Opcode.HSV_SHIFT, 0, -20.0, 20.0),
        (HueSaturationValue(saturation=30.0, p=1.0), Opcode.HSV_SHIFT, 1, -30.0, 30.0),
        (HueSaturationValue(value=10.0, p=1.0), Opcode.HSV_SHIFT, 2, -10.0, 10.0),
    ],
)
def test_parameters_are_uniform_in_their_ranges(operation, opcode, column, low, high):
    drawn = values(rows_of([operation]), opcode, column)
    assert len(drawn) == 2 * SAMPLES
    assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > ALPHA


@pytest.mark.parametrize(
    ("operation", "opcode", "column", "shares"),
    [
        (Blur(radius=(1, 3), p=1.0), Opcode.BOX_BLUR, 0, {1: 1 / 3, 2: 1 / 3, 3: 1 / 3}),
        # kernels of 3 to 7 pixels, even ones made odd: 3, 5, 5, 7, 7
        (GaussianBlur(sigma=None, kernel=(3, 7), p=1.0), Opcode.GAUSSIAN_BLUR, 1, {1: 0.2, 2: 0.4, 3: 0.4}),
        (CoarseDropout(holes=(2, 5), p=1.0), Opcode.COARSE_DROPOUT, 0, dict.fromkeys((2, 3, 4, 5), 0.25)),
        (CoarseDropout(height=(60, 100), p=1.0), Opcode.COARSE_DROPOUT, 1, dict.fromkeys((60, 61, 62, 63, 64), 0.2)),
        (ChannelShuffle(p=1.0), Opcode.CHANNEL_SHUFFLE, 1, dict.fromkeys((0, 1, 2), 1 / 3)),
    ],
)
def test_whole_parameters_are_equally_likely(operation, opcode, column, shares):
    drawn = values(rows_of([operation]), opcode, column)
    kinds, counts = np.unique(drawn, return_counts=True)
    assert kinds.tolist() == list(shares)
    assert stats.chisquare(counts, np.array(list(shares.values())) * len(drawn)).pvalue > ALPHA


def test_a_constant_is_not_drawn():
    assert set(values(rows_of([Solarize(threshold=100.0, p=1.0)]), Opcode.SOLARIZE)) == {100.0}


def test_noise_has_a_uniform_variance():
    sigma = values(rows_of([GaussNoise(variance=(10.0, 50.0), p=1.0)]), Opcode.GAUSSIAN_NOISE)
    assert stats.kstest(sigma.astype(np.float64) ** 2, stats.uniform(10, 40).cdf).pvalue > ALPHA


def test_channels_are_shuffled_into_all_six_orders():
    rows = rows_of([ChannelShuffle(p=1.0)])
    orders, counts = np.unique(
        rows.parameters[rows.opcode == Opcode.CHANNEL_SHUFFLE][:, :3], axis=0, return_counts=True
    )
    assert {tuple(order) for order in orders} == set(permutations(range(3)))
    assert stats.chisquare(counts).pvalue > ALPHA


def test_opencv_s_sigma_goes_with_a_kernel_without_one():
    rows = rows_of([GaussianBlur(sigma=None, kernel=(3, 7), p=1.0)])
    sigma, radius = values(rows, Opcode.GAUSSIAN_BLUR), values(rows, Opcode.GAUSSIAN_BLUR, 1)
    np.testing.assert_allclose(sigma, 0.3 * ((2 * radius + 1 - 1) * 0.5 - 1) + 0.8, rtol=1e-6)


def test_a_choice_picks_its_members_evenly_and_independently():
    members = (HorizontalFlip(p=1.0), Grayscale(p=0.6), None, GaussNoise(p=1.0))
    rows = rows_of([RandomChoice(operations=members, times=2)])
    used = np.stack(
        [(rows.opcode == o).sum(-1).ravel() for o in (Opcode.HORIZONTAL_FLIP, Opcode.GRAY, Opcode.GAUSSIAN_NOISE)]
    )
    for drawn, p in zip(used, (0.25, 0.15, 0.25), strict=True):  # how often in two picks: a binomial
        expected = stats.binom(2, p).pmf([0, 1, 2]) * len(drawn)
        assert stats.chisquare(np.bincount(drawn, minlength=3), expected).pvalue > ALPHA
    assert ((rows.opcode[..., 1:] == Opcode.NONE).argmax(-1) <= 2).all()  # no gap before a used slot


def test_the_same_operation_picked_twice_draws_twice():
    rows = rows_of([RandomChoice(operations=(GaussNoise(p=1.0),), times=2)])
    first, second = rows.parameters[..., 1, 0].ravel(), rows.parameters[..., 2, 0].ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert (rows.seed[..., 1] != rows.seed[..., 2]).all()


def test_strength_follows_the_epoch():
    stages = ((0, ColorJitter(brightness=0.1, p=1.0)), (5, ColorJitter(brightness=0.9, p=1.0)))
    jitter = ByEpoch(stages=stages, of=10)
    spread = [np.ptp(values(rows_of([jitter], epoch=epoch), Opcode.BRIGHTNESS)) for epoch in (0, 4, 5, 9)]
    np.testing.assert_allclose(spread, [0.2, 0.2, 1.8, 1.8], atol=0.01)


def test_a_run_of_another_length_scales_the_stages():
    gradual = load_recipe("gradual")
    for epochs, starts in ((200, [0, 50, 100, 150]), (20, [0, 5, 10, 15]), (2, [0, 1])):
        stages = gradual.over(epochs).views[0].operations[2].stages
        assert [start for start, _ in stages] == starts
        assert stages[-1][1].brightness == 1.0


@pytest.mark.parametrize("name", ["moco-v2", "albumentations-7-gradual", "pool-14", "multi-crop"])
def test_a_growing_recipe_is_drawn_as_the_recipe_of_the_epochs_size(name):
    recipe, n = load_recipe(name, size=64), 500
    growing, sizes = recipe.growing(32, step=16), {"height": np.full(n, 90), "width": np.full(n, 120)}
    for epoch, side in ((0, 32), (1, 48), (2, 64)):
        rows, plain = (
            draw(each, seed=3, epoch=epoch, index=np.arange(n), **sizes) for each in (growing, recipe.resized(side))
        )
        assert all(np.array_equal(a, b) for a, b in zip(vars(rows).values(), vars(plain).values(), strict=True))
        last = draw(recipe, seed=3, epoch=epoch, index=np.arange(n), **sizes)
        np.testing.assert_array_equal(rows.boxes(), last.boxes())  # what is seen does not depend on the size


def test_blurs_and_holes_are_kept_within_views_that_grow():
    operations = (CenterCrop(), GaussianBlur(sigma=(9.0, 9.0), p=1.0), CoarseDropout(height=(40, 40), p=1.0))
    recipe = Recipe(name="", about="", views=(View(operations=operations, size=64),)).growing(16, step=16)
    sizes = {"index": np.arange(1), "height": np.full(1, 90), "width": np.full(1, 90)}
    for epoch, side in enumerate((16, 32, 48, 64)):
        rows = draw(recipe, seed=0, epoch=epoch, **sizes)
        assert values(rows, Opcode.GAUSSIAN_BLUR, 0) == 9.0  # in pixels, whatever the size
        assert values(rows, Opcode.GAUSSIAN_BLUR, 1) == min(27, side - 1)
        assert values(rows, Opcode.COARSE_DROPOUT, 1) == min(40, side)


@pytest.mark.parametrize("name", RECIPES)
def test_no_epoch_replays_another_and_neighbours_are_uncorrelated(name):
    recipe = load_recipe(name)
    n = 2000
    options = {"seed": 0, "index": np.arange(n), "height": np.full(n, 375), "width": np.full(n, 500)}
    first, second = draw(recipe, epoch=0, **options), draw(recipe, epoch=1, **options)
    boxes, others = first.parameters[..., 0, :4].astype(np.float64), second.parameters[..., 0, :4]
    assert (boxes != others).any(axis=-1).mean() > 0.99
    for column in range(4):  # of the first view against the next epoch's, the next sample's, the second view's
        drawn = boxes[0, :, column]
        pairs = [(drawn, others[0, :, column]), (drawn[:-1], drawn[1:])]
        pairs += [(drawn, boxes[1, :, column])] if recipe.count > 1 else []
        for one, other in pairs:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.09, column  # four standard errors


@pytest.mark.parametrize("name", RECIPES)
def test_rows_hold_what_the_recipe_says(name):
    recipe = load_recipe(name)
    n = 300
    options = {"index": np.arange(n), "height": np.full(n, 40), "width": np.full(n, 30)}
    rows = [draw(recipe, seed=1, epoch=epoch, **options) for epoch in (0, 199)]
    assert {Opcode(o) for r in rows for o in np.unique(r.opcode)} - {Opcode.NONE} == recipe.opcodes
    for r in rows:
        assert r.opcode.shape[:2] == (recipe.count, n)
        assert (r.opcode[..., 0] == Opcode.CROP).all()
        assert not ((r.opcode[..., :-1] == Opcode.NONE) & (r.opcode[..., 1:] != Opcode.NONE)).any()
        assert np.isfinite(r.parameters).all()


def test_rain_and_fog_alone_route_fifteen_hundredths_of_pool_14():
    rows = draw(
        load_recipe("pool-14"),
        seed=0,
        epoch=0,
        index=np.arange(20000),
        height=np.full(20000, 9),
        width=np.full(20000, 9),
    )
    routed = (rows.opcode == Opcode.ALBUMENTATIONS).any(-1)
    assert stats.binomtest(int(routed.sum()), routed.size, 1 - (1 - 2 / 15 * 0.6) ** 2).pvalue > ALPHA
