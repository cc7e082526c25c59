"""The DALI executor against the reference: how near each operator is, and what DALI's graphs must not change."""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import Pixels, Rows, draw, load_recipe, reference
from penstock.augment.rows import PARAMETERS, Interpolation, Opcode
from penstock.errors import MissingExtra

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

from penstock.augment import dali

RECIPE = load_recipe("moco-v2")
PLAIN = replace(RECIPE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # views are levels / 255
SIZE = 48

# How near DALI's operators come, in grey levels: parameters to try, mean over all pixels, largest.
NEAR = [
    (Opcode.HORIZONTAL_FLIP, [()], 0, 0),
    (Opcode.VERTICAL_FLIP, [()], 0, 0),
    (Opcode.BRIGHTNESS, [(0.0,), (0.6,), (1.0,), (1.4,)], 0.01, 1),
    (Opcode.CONTRAST, [(0.0,), (0.6,), (1.0,), (1.4,)], 0.1, 1),
    (Opcode.SATURATION, [(0.0,), (0.6,), (1.4,)], 0.3, 1),
    (Opcode.HUE, [(-0.1,), (0.05,), (0.1,)], 14, 130),  # another function: see the module
    (Opcode.GRAY, [()], 0.7, 1),
    (Opcode.GAUSSIAN_BLUR, [(0.1, 1), (1.0, 3), (2.0, 6), (9.0, SIZE - 1)], 0.01, 1),
    (Opcode.SOLARIZE, [(0,), (128,), (127.5,), (256,)], 0, 0),
    (Opcode.BRIGHTNESS_CONTRAST, [(0.8, -51.0), (1.2, 30.5)], 0.01, 1),
    (Opcode.COARSE_DROPOUT, [(1, 48, 48, 7), (8, 8, 8, 0), (3, 1, 20, 255)], 0, 0),
]


def photographs(count=6, sides=(20, 150), seed=0):
    """Smooth images with edges and noise, of several sizes, one of them grey, one saturated."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(count):
        height, width = (int(side) for side in rng.integers(*sides, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height), Image.BICUBIC)
        image = np.asarray(coarse) + rng.normal(0, 12, (height, width, 3))
        image = image.mean(axis=2, keepdims=True).repeat(3, axis=2) if i == 3 else image
        images.append(np.clip(image * (3 if i == 4 else 1), 0, 255).astype(np.uint8))
    return images


def rows_of(programs):
    """Rows [1, N, K] of lists of (opcode, parameters); slot k has the seed k + 1."""
    shape = (1, len(programs), max(map(len, programs)))
    rows = Rows(
        opcode=np.zeros(shape, np.int32),
        parameters=np.zeros((*shape, PARAMETERS), np.float32),
        seed=np.zeros(shape, np.uint64) + np.arange(1, shape[2] + 1, dtype=np.uint64),
    )
    for n, program in enumerate(programs):
        for k, (opcode, parameters) in enumerate(program):
            rows.opcode[0, n, k] = opcode
            rows.parameters[0, n, k, : len(parameters)] = parameters
    return rows


def whole(image, antialias=1):
    """The crop that takes all of an image."""
    return Opcode.CROP, (0, 0, *image.shape[:2], Interpolation.BILINEAR, antialias)


def run(executor, images, rows, size=SIZE, recipe=PLAIN, dtype=torch.float32):
    views, count = rows.opcode.shape[:2]
    out = torch.full((views * count, 3, size, size), -7.0, dtype=dtype).contiguous(memory_format=torch.channels_last)
    out = out.unflatten(0, (views, count))
    executor.run(Pixels.from_images(images), rows, recipe, out)
    return out


def difference(images, rows, size=SIZE):
    """Grey levels between DALI and the reference."""
    return (run(dali, images, rows, size) - run(reference, images, rows, size)).abs() * 255


def drawn(recipe, images, epoch=0):
    height, width = np.array([image.shape[:2] for image in images]).T
    return draw(recipe, seed=1, epoch=epoch, index=np.arange(len(images)), height=height, width=width)


@pytest.mark.parametrize(("opcode", "tries", "mean", "most"), NEAR, ids=[opcode.name for opcode, *_ in NEAR])
def test_each_operation_is_near_the_reference(opcode, tries, mean, most):
    images = photographs(sides=(SIZE, SIZE + 1))
    rows = rows_of([[whole(image), (opcode, values)] for values in tries for image in images])
    levels = difference(images * len(tries), rows)
    assert levels.mean() <= mean + 1e-3 and levels.max() <= most + 1e-3


def test_every_operation_was_tried():
    assert {opcode for opcode, *_ in NEAR} | {Opcode.CROP} == dali.NATIVE


@pytest.mark.parametrize(
    ("interpolation", "antialias", "mean"),
    [
        (Interpolation.BILINEAR, 1, 0.05),
        (Interpolation.BILINEAR, 0, 0.05),
        (Interpolation.BICUBIC, 1, 0.05),
        (Interpolation.BICUBIC, 0, 1.0),  # another kernel: see the module
    ],
)
@pytest.mark.parametrize("size", [16, 90])
def test_crops_are_near_but_at_their_borders(interpolation, antialias, mean, size):
    images = photographs(sides=(60, 150))
    boxes = [(3, 5, 40, 50), (0, 0, 60, 60), (20, 10, 11, 48), (30, 30, 8, 8), (1, 2, 57, 30), (0, 7, 33, 44)]
    rows = rows_of([[(Opcode.CROP, (*box, interpolation, antialias))] for box in boxes])
    levels = difference(images, rows, size)
    inner = levels[..., size // 6 : -size // 6, size // 6 : -size // 6]
    assert inner.mean() <= mean and levels.max() < 60
    if (interpolation, antialias) != (Interpolation.BICUBIC, 0):
        assert inner.max() <= 1 + 1e-3


def test_operations_apply_in_the_rows_own_order():
    """Six orders of three operations that do not commute, all in one batch."""
    steps = [(Opcode.SOLARIZE, (100,)), (Opcode.BRIGHTNESS, (1.3,)), (Opcode.COARSE_DROPOUT, (5, 9, 9, 120))]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    images = photographs(1, sides=(SIZE, SIZE + 1)) * len(orders)
    rows = rows_of([[whole(images[0]), *(steps[i] for i in order)] for order in orders])
    assert difference(images, rows).max() <= 1.001
    views = run(dali, images, rows)[0]
    assert all((views[i] - views[j]).abs().max() > 0.1 for i in range(6) for j in range(i))


def test_an_operation_may_come_twice():
    images = photographs(2, sides=(SIZE, SIZE + 1))
    flip, up = (Opcode.HORIZONTAL_FLIP, ()), (Opcode.VERTICAL_FLIP, ())
    rows = rows_of([[whole(images[0]), flip, up, flip, up], [whole(images[1]), flip, flip, flip]])
    assert difference(images, rows).max() == 0


def test_hue_turns_the_same_way():
    images = photographs(sides=(SIZE, SIZE + 1))

    def shifted(shift):
        return rows_of([[whole(image), (Opcode.HUE, (shift,))] for image in images])

    wanted = run(reference, images, shifted(0.1))
    forth, back = ((run(dali, images, shifted(shift)) - wanted).abs().mean() for shift in (0.1, -0.1))
    assert forth < 0.7 * back


def test_whole_chains_stay_near_but_for_hue():
    images = photographs(24)
    rows = drawn(load_recipe("moco-v2", size=SIZE), images)
    rows.parameters[rows.opcode == Opcode.HUE] = 0
    levels = difference(images, rows)
    assert levels.mean() < 0.5 and levels.quantile(0.999) <= 8


def test_the_same_views_whatever_the_batch_and_the_thread():
    recipe = load_recipe("moco-v2", size=16)
    images = photographs(dali.BATCH // 2 + 5)  # two views of each: more than one batch
    rows = drawn(recipe, images)
    together = run(dali, images, rows, 16)

    def some(part):
        those = Rows(opcode=rows.opcode[:, part], parameters=rows.parameters[:, part], seed=rows.seed[:, part])
        return run(dali, images[part], those, 16)

    parts = [slice(first, first + 7) for first in range(0, len(images), 7)]
    with ThreadPoolExecutor(3) as pool:
        assert torch.equal(torch.cat(list(pool.map(some, parts)), dim=1), together)
    assert torch.equal(run(dali, images, rows, 16), together)


def test_rows_that_begin_with_none_are_left_alone():
    recipe = load_recipe("moco-v2", size=16)
    images = photographs()
    rows = drawn(recipe, images)
    every = run(dali, images, rows, 16)
    rows.opcode[0, 2:4, 0] = rows.opcode[1, 0, 0] = Opcode.NONE
    some = run(dali, images, rows, 16)
    skipped = torch.from_numpy(rows.opcode[:, :, 0] == Opcode.NONE)
    assert (some[skipped] == -7).all() and torch.equal(some[~skipped], every[~skipped])
    rows.opcode[:] = Opcode.NONE
    assert (run(dali, images, rows, 16) == -7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalisation_is_exact(dtype):
    image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    rows = rows_of([[whole(image), (Opcode.HORIZONTAL_FLIP, ())]])
    ours, theirs = (run(executor, [image], rows, 32, RECIPE, dtype) for executor in (dali, reference))
    assert ours.dtype == dtype and torch.equal(ours, theirs)


def test_what_a_gpu_writes_equals_what_a_cpu_writes():
    """That part of the way of a GPU's views that needs none."""
    finished = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    view, sample = np.array([0, 1, 1]), np.array([2, 0, 2])
    ours, theirs = (torch.zeros(2, 3, 8, 8, 3).permute(0, 1, 4, 2, 3) for _ in range(2))  # channels-last
    dali._write_on_device(torch.from_numpy(finished), view, sample, RECIPE, ours)
    dali.write(finished, view, sample, RECIPE, theirs)
    assert theirs.any() and torch.equal(ours, theirs)


def test_odd_images_pass():
    images = [np.full((height, width, 3), 200, np.uint8) for height, width in [(1, 1), (1, 60), (60, 1), (500, 9)]]
    recipe = load_recipe("moco-v2", size=16)
    assert torch.isfinite(run(dali, images, drawn(recipe, images), 16)).all()
    assert difference(images, rows_of([[whole(image)] for image in images])).max() <= 1.001  # flat stays flat


def test_without_dali_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "penstock.augment.dali")
    with pytest.raises(MissingExtra, match="dali-cuda13"):
        importlib.import_module("penstock.augment.dali")
