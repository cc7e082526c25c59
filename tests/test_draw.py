"""The draw: a pure function, distributed as torchvision's own parameters are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms

from penstock.augment import Recipe, draw, evaluation, load_recipe
from penstock.augment.recipe import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, RandomResizedCrop
from penstock.augment.rows import Opcode
from penstock.errors import UserError

SAMPLES = 4000
ALPHA = 1e-4  # with fixed seeds a test either always passes or never does; this guards against a wrong law


def rows_of(operations, n=SAMPLES, height=375, width=500, seed=1, epoch=0, index=None):
    recipe = Recipe(name="test", about="", operations=tuple(operations), size=64)
    index = np.arange(n) if index is None else index
    sizes = {"height": np.full(len(index), height), "width": np.full(len(index), width)}
    return draw(recipe, seed=seed, epoch=epoch, index=index, **sizes)


def values(rows, opcode, column=0):
    return rows.parameters[rows.opcode == opcode][:, column]


MOCO = load_recipe("moco-v2", size=64).operations


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
        values(rows_of([crop, blur]), Opcode.BLUR), values(rows_of([crop, flip, Grayscale(p=0.5), blur]), Opcode.BLUR)
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
    orders, counts = np.unique(rows.opcode.reshape(-1, 4), axis=0, return_counts=True)
    assert len(orders) == 24
    assert stats.chisquare(counts).pvalue > ALPHA


def test_a_zero_range_leaves_the_operation_out():
    rows = rows_of([ColorJitter(brightness=0.4, contrast=0, saturation=0, hue=0)])
    assert set(np.unique(rows.opcode)) == {Opcode.NONE, Opcode.BRIGHTNESS}


@pytest.mark.parametrize(
    ("operation", "opcode", "p"),
    [
        (HorizontalFlip(p=0.5), Opcode.FLIP, 0.5),
        (Grayscale(p=0.2), Opcode.GRAY, 0.2),
        (GaussianBlur(p=0.5), Opcode.BLUR, 0.5),
        (ColorJitter(p=0.8), Opcode.HUE, 0.8),
    ],
)
def test_probabilities(operation, opcode, p):
    applied = (rows_of([operation]).opcode == opcode).any(axis=-1).ravel()
    assert stats.binomtest(int(applied.sum()), applied.size, p).pvalue > ALPHA


def test_blur_sigma_is_uniform_and_its_kernel_reaches_three_sigma():
    rows = rows_of([GaussianBlur(sigma=(0.1, 2.0), p=1.0)])
    sigma, radius = values(rows, Opcode.BLUR), values(rows, Opcode.BLUR, 1)
    assert stats.kstest(sigma, stats.uniform(0.1, 1.9).cdf).pvalue > ALPHA
    assert (radius >= 3 * sigma - 1e-5).all() and (radius <= 3 * sigma + 1).all()


def test_operations_are_drawn_independently():
    rows = rows_of([HorizontalFlip(p=0.5), Grayscale(p=0.5), GaussianBlur(p=0.5)])
    flip, gray, blur = ((rows.opcode == o).any(axis=-1).ravel() for o in (Opcode.FLIP, Opcode.GRAY, Opcode.BLUR))
    for first, second in [(flip, gray), (flip, blur), (gray, blur)]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_evaluation_takes_the_centre():
    rows = draw(evaluation(224), seed=0, epoch=0, index=np.arange(1), height=np.array([256]), width=np.array([512]))
    assert rows.program(0, 0)[0][1][:4].tolist() == [16, 144, 224, 224]


def test_unknown_recipe_is_a_user_error():
    with pytest.raises(UserError, match="'mocov2' is not known: choose one of moco-v1"):
        load_recipe("mocov2", size=32)
