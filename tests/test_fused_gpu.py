"""fused_gpu against the reference: on the GPU, or in Triton's interpreter; what its kernels take when compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from penstock.augment import RECIPES, Pixels, Rows, draw, load_recipe, reference
from penstock.augment.fused_gpu.plan import RECORD, SOURCE, TARGET, make_plan
from penstock.augment.fused_gpu.shape import Shape
from penstock.augment.rows import PARAMETERS, Opcode
from penstock.errors import UserError

pytest.importorskip("triton", reason="the fused GPU executor is written in Triton")
from penstock.augment import fused_gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEVELS = replace(RECIPES["moco-v2"], mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)  # what is written are grey levels
HALVES = Shape(whole=False, tile_x=16, tile_y=32, chunk_x=32, chunk_y=32, warps=1)
SIDE = 20

Slot = tuple[Opcode, tuple[float, ...]]

OPERATIONS: list[Slot] = [
    (Opcode.HORIZONTAL_FLIP, ()),
    (Opcode.VERTICAL_FLIP, ()),
    (Opcode.BRIGHTNESS, (1.37,)),
    (Opcode.BRIGHTNESS, (0.61,)),
    (Opcode.CONTRAST, (1.37,)),
    (Opcode.CONTRAST, (0.61,)),
    (Opcode.SATURATION, (1.37,)),
    (Opcode.SATURATION, (0.0,)),
    (Opcode.HUE, (0.1,)),
    (Opcode.HUE, (-0.43,)),
    (Opcode.GRAY, ()),
    (Opcode.GAUSSIAN_BLUR, (0.1, 1)),
    (Opcode.GAUSSIAN_BLUR, (1.7, 6)),
    (Opcode.GAUSSIAN_BLUR, (9.0, SIDE - 1)),
    (Opcode.SOLARIZE, (128,)),
    (Opcode.SOLARIZE, (256,)),
    (Opcode.BRIGHTNESS_CONTRAST, (1.17, -13.3)),
    (Opcode.BOX_BLUR, (1,)),
    (Opcode.BOX_BLUR, (3,)),
    (Opcode.SHARPEN, (0.4, 0.8)),
    (Opcode.CHANNEL_SHUFFLE, (2, 0, 1)),
    (Opcode.HSV_SHIFT, (13, -20, 17)),
    (Opcode.HSV_SHIFT, (-20, 30, -11)),
    (Opcode.COARSE_DROPOUT, (5, 3, 4, 9)),
    (Opcode.GAUSSIAN_NOISE, (7.0,)),
    (Opcode.CLAHE, (3.0, 4)),
    (Opcode.CLAHE, (2.0, 3)),
]


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """Soft shapes and a little noise, uint8 [H, W, 3], all levels in use."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 5, 5)))
    soft = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    soft = soft + rng.normal(0, 0.03, soft.shape)
    return (255 * (soft - soft.min()) / (np.ptp(soft) + 1e-9)).astype(np.uint8)


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def rows_of(*programs: list[Slot]) -> Rows:
    """Rows [1, N, K], a program for each."""
    slots = max(map(len, programs)) + 1
    rows = Rows(
        opcode=np.zeros((1, len(programs), slots), np.int32),
        parameters=np.zeros((1, len(programs), slots, PARAMETERS), np.float32),
        seed=np.random.default_rng(0).integers(0, 2**64, (1, len(programs), slots), np.uint64),
    )
    for n, program in enumerate(programs):
        for k, (opcode, parameters) in enumerate(program):
            rows.opcode[0, n, k] = opcode
            rows.parameters[0, n, k, : len(parameters)] = parameters
    return rows


def full_crop(image: np.ndarray, how: int = 0, antialias: int = 1) -> Slot:
    return Opcode.CROP, (0, 0, *image.shape[:2], how, antialias)


def blank(views, samples, size, dtype=torch.float32) -> torch.Tensor:
    """[V, N, 3, S, S], channels-last, all -7."""
    return torch.full((views, samples, size, size, 3), -7.0, dtype=dtype).permute(0, 1, 4, 2, 3)


def run(module, images, rows, size, recipe=LEVELS, dtype=torch.float32) -> torch.Tensor:
    """[V, N, 3, S, S] on the CPU; -7 where nothing was written."""
    out = blank(rows.opcode.shape[0], len(images), size, dtype)
    out = out.to(DEVICE) if module is fused_gpu else out
    module.run(Pixels.from_images(images), rows, recipe, out)
    return out.cpu()


def distance(images, rows, size) -> np.ndarray:
    """Between fused_gpu and the reference, in levels, [V, N, 3, S, S]."""
    return (run(fused_gpu, images, rows, size) - run(reference, images, rows, size)).abs().numpy()


@pytest.fixture(params=["whole", "tiled"])
def cut(request, monkeypatch):
    """Views of this size as one tile, as the smallest are, and in tiles, as larger ones are."""
    if request.param == "tiled":
        monkeypatch.setattr(fused_gpu, "shape_for", lambda _: HALVES)
    return request.param


@pytest.mark.parametrize(("opcode", "parameters"), OPERATIONS, ids=lambda value: getattr(value, "name", None))
def test_each_operation_agrees_with_the_reference(opcode, parameters, cut):
    images = [photograph(SIDE, SIDE, 1), noise(SIDE, SIDE, 2)]
    images = images[:1] if opcode == Opcode.CLAHE else images
    rows = rows_of(*([full_crop(image), (opcode, parameters)] for image in images))
    found = distance(images, rows, SIDE)
    assert found.mean() <= (1.0 if opcode == Opcode.CLAHE else 0.02)
    assert found.max() <= (8 if opcode == Opcode.CLAHE else 1.01)


def test_every_native_operation_is_tested():
    assert {opcode for opcode, _ in OPERATIONS} | {Opcode.CROP} == fused_gpu.NATIVE


@pytest.mark.parametrize(("how", "antialias"), [(0, 1), (0, 0), (1, 1), (1, 0)])
@pytest.mark.parametrize("size", [8, 16, 33])
def test_crops_agree_with_the_reference(how, antialias, size):
    images = [photograph(20, 30, 1), noise(90, 61, 2), np.full((9, 1, 3), 77, np.uint8), noise(3, 40, 3)]
    boxes = [(2, 5, 17, 21), (0, 0, 90, 61), (1, 0, 8, 1), (0, 3, 3, 37)]
    used = 2 if size > 32 else 4  # of six tiles each, which take their time in the interpreter
    rows = rows_of(*([(Opcode.CROP, (*box, how, antialias))] for box in boxes[:used]))
    found = distance(images[:used], rows, size)
    assert found.mean() <= 0.05
    assert found.max() <= 1.01


def test_a_flat_image_stays_flat(cut):
    images = [np.full((23, 31, 3), level, np.uint8) for level in (0, 1, 127, 254, 255)]
    blur = (Opcode.GAUSSIAN_BLUR, (1.3, 4))
    out = run(fused_gpu, images, rows_of(*([full_crop(image), blur] for image in images)), SIDE)
    for image, view in zip(images, out[0], strict=True):
        assert (view.round() == image[0, 0, 0]).all()


def test_fields_of_numbers_follow_the_flips(cut):
    image = photograph(SIDE, SIDE, 1)
    holes, grain = (Opcode.COARSE_DROPOUT, (3, 5, 2, 0)), (Opcode.GAUSSIAN_NOISE, (20.0,))
    flips = [(Opcode.HORIZONTAL_FLIP, ()), (Opcode.VERTICAL_FLIP, ())]
    blur = (Opcode.BOX_BLUR, (1,))
    programs = [[holes, *flips, grain], [flips[0], holes, grain], [grain, flips[1], blur, holes, flips[0]]]
    rows = rows_of(*([full_crop(image), *program] for program in programs))
    assert distance([image] * 3, rows, SIDE).max() <= 1.01


@pytest.mark.parametrize("name", ["moco-v2", "simclr", "albumentations-7", "moco-cifar"])
def test_whole_chains_agree_with_the_reference(name, cut):
    recipe, images = load_recipe(name, size=SIDE), [photograph(31, 40, 1), noise(25, 22, 2)]
    rows = drawn(recipe, images)
    rows.opcode[np.isin(rows.opcode, (Opcode.CLAHE, Opcode.SOLARIZE)).any(-1)] = Opcode.NONE
    assert (rows.opcode[..., 0] != Opcode.NONE).any()
    found = distance(images, rows, SIDE)
    assert found.mean() <= 1
    assert np.quantile(found, 0.999) <= 4


def drawn(recipe, images, epoch=0) -> Rows:
    height, width = (np.array([image.shape[axis] for image in images]) for axis in (0, 1))
    return draw(recipe, seed=3, epoch=epoch, index=np.arange(len(images)), height=height, width=width)


def test_groups_of_two_sizes():
    images = [photograph(30, 20, 1), photograph(20, 30, 2)]
    recipe = load_recipe("multi-crop", size=40)
    rows = drawn(recipe, images)
    rows.opcode[np.isin(rows.opcode, (Opcode.SOLARIZE,)).any(-1)] = Opcode.NONE
    assert len(recipe.groups) == 2
    for group in recipe.groups:
        assert distance(images, rows.views(group.views), group.size).mean() <= 1


def test_views_that_grow():
    """From a size that one program holds to one that is cut into tiles."""
    images, recipe = [photograph(50, 44, 1)], load_recipe("a", size=40).growing(16, step=24)
    for epoch, size in ((0, 16), (2, 40)):
        assert recipe.at(epoch).size == size
        assert distance(images, drawn(recipe, images, epoch), size).mean() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_output_types(dtype):
    recipe, images = RECIPES["moco-v2"], [photograph(9, 9, 1)]
    rows = rows_of([full_crop(images[0])])
    ours, theirs = (run(module, images, rows, 9, recipe, dtype).float() for module in (fused_gpu, reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=2e-6)


def test_skipped_rows_are_left_alone(cut):
    images = [photograph(SIDE, SIDE, seed) for seed in range(3)]
    rows = rows_of([full_crop(images[0]), (Opcode.CONTRAST, (0.5,))], [], [full_crop(images[2])])
    out = run(fused_gpu, images, rows, SIDE)
    assert (out[0, 1] == -7).all()
    assert (out[0, [0, 2]] >= -1e-3).all()
    nothing = rows_of([], [], [])
    assert (run(fused_gpu, images, nothing, SIDE) == -7).all()


def test_runs_are_repeatable_and_leave_the_rows_as_they_were(cut):
    images = [photograph(31, 40, 1), noise(25, 22, 2)]
    rows = drawn(load_recipe("moco-v2", size=SIDE), images)
    before = rows.opcode.copy(), rows.parameters.copy()
    assert torch.equal(run(fused_gpu, images, rows, SIDE), run(fused_gpu, images, rows, SIDE))
    assert np.array_equal(before[0], rows.opcode)
    assert np.array_equal(before[1], rows.parameters)


def test_threads_get_the_pixels_that_one_gets():
    image = photograph(20, 20, 1)
    rows = rows_of([full_crop(image), (Opcode.CONTRAST, (0.5,))])
    alone, found = run(fused_gpu, [image], rows, 16), []
    threads = [threading.Thread(target=lambda: found.append(run(fused_gpu, [image], rows, 16))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(torch.equal(view, alone) for view in found)


def test_finished_views_are_written_into_their_places():
    finished = np.stack([noise(SIDE, SIDE, seed) for seed in range(3)])
    out = blank(2, 3, SIDE).to(DEVICE)
    view, sample = np.array([1, 0, 1]), np.array([0, 2, 2])
    fused_gpu.write(finished, view, sample, LEVELS, out)
    out = out.cpu()
    for r in range(3):
        assert np.array_equal(out[view[r], sample[r]].permute(1, 2, 0).round().numpy(), finished[r])
    assert (out[0, :2] == -7).all()
    assert (out[1, 1] == -7).all()


def test_pixels_may_be_a_tensor():
    image = photograph(20, 30, 1)
    pixels, rows = Pixels.from_images([image]), rows_of([full_crop(image)])
    out = blank(1, 1, 16).to(DEVICE)
    fused_gpu.run(replace(pixels, data=torch.from_numpy(pixels.data).to(DEVICE)), rows, LEVELS, out)
    assert torch.equal(out.cpu(), run(fused_gpu, [image], rows, 16))


def test_sources_and_batches_beyond_two_gigabytes():
    rows = rows_of([(Opcode.CROP, (10, 20, 30, 40, 0, 1))])
    start, target = 5 * 2**31 + 7, 3 * 2**31 + 11
    place = {"offset": np.array([start]), "height": np.array([375]), "width": np.array([500])}
    plan = make_plan(Pixels(data=np.empty(0, np.uint8), **place), rows, np.array([[target]]), whole=False)
    words = plan.words[:RECORD].view(np.uint32).astype(np.int64)
    assert words[SOURCE] | (words[SOURCE + 1] << 32) == start + 3 * (10 * 500 + 20)
    assert words[TARGET] | (words[TARGET + 1] << 32) == target


def test_moco_takes_at_most_three_passes_and_small_views_one():
    recipe = load_recipe("moco-v2", size=224)
    rows = draw(recipe, seed=0, epoch=0, index=np.arange(64), height=np.full(64, 375), width=np.full(64, 500))
    place = {"offset": np.arange(64) * 562500, "height": np.full(64, 375), "width": np.full(64, 500)}
    pixels, target = Pixels(data=np.empty(0, np.uint8), **place), np.arange(128).reshape(2, 64)
    tiled, whole = (make_plan(pixels, rows, target, whole=whole) for whole in (False, True))
    assert max(launch.level for launch in tiled.launches) == 2
    assert [(launch.level, launch.count) for launch in whole.launches] == [(0, 128)]
    assert whole.stored == 0


def test_other_layouts_are_refused():
    image = photograph(20, 30, 1)
    out = torch.empty(1, 1, 3, 16, 16, device=DEVICE)
    with pytest.raises(UserError, match="channels-last"):
        fused_gpu.run(Pixels.from_images([image]), rows_of([full_crop(image)]), LEVELS, out)


def test_the_environment_is_left_alone():
    image = photograph(20, 30, 1)
    run(fused_gpu, [image], rows_of([full_crop(image)]), 8)
    assert "TRITON_INTERPRET" not in os.environ


def test_a_missing_triton_is_named(monkeypatch):
    fused_gpu._kernels.cache_clear()
    for name in [name for name in sys.modules if name.startswith("penstock.augment.fused_gpu.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UserError, match="needs Triton"):
        fused_gpu._kernels()


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        (80, ("crop", "filter-rich", "contrast", "clahe", "view-rich")),
        (90, ("crop-rich", "filter", "clahe-tables", "view-cubic")),
    ],
)
def test_kernels_compile_and_fit_into_registers(arch, names):
    knobs = pytest.importorskip("triton").knobs
    try:
        assert knobs.nvidia.ptxas.path
    except RuntimeError:
        pytest.skip("this Triton comes without ptxas, so nothing can be compiled")
    found = fused_gpu.report(arch, names)
    assert set(found) == set(names)
    for name, use in found.items():
        assert use["spills"] <= 16, name  # bytes of a thread: some versions of Triton leave a word or two
        assert 0 < use["registers"] <= 255
        assert use["shared"] <= 48 * 1024


ALONE = """
import torch
from penstock.augment import draw, fused_gpu, load_recipe, Pixels
import numpy as np

pixels, recipe = Pixels.from_images([np.zeros((20, 20, 3), np.uint8)]), load_recipe("moco-v2", size=16)
rows = draw(recipe, seed=0, epoch=0, index=np.arange(1), height=pixels.height, width=pixels.width)
fused_gpu.run(pixels, rows, recipe, torch.empty(2, 1, 16, 16, 3).permute(0, 1, 4, 2, 3))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted only where there is no CUDA")
def test_kernels_are_interpreted_in_a_process_that_has_not_imported_triton():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
