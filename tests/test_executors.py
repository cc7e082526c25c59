"""Executors by name, the way around them for rows that they cannot finish, and any recipe on any image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.augment import Pixels, Recipe, draw, load_recipe
from penstock.augment.executors import Executor, choose_executor, fallback_opcodes
from penstock.augment.operations import (
    Albumentations,
    CenterCrop,
    ColorJitter,
    HorizontalFlip,
    RandomResizedCrop,
    Solarize,
)
from penstock.augment.recipe import View
from penstock.augment.rows import Interpolation, Opcode
from penstock.errors import UserError
from tests.random_recipes import recipes

CPU_EXECUTORS = ("reference", "fused_cpu", "albumentations")


def images(n=4, height=40, width=30, seed=0):
    return Pixels.from_images(list(np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8)))


def rows_of(recipe, pixels, seed=0, epoch=0):
    index = np.arange(len(pixels))
    return draw(recipe, seed=seed, epoch=epoch, index=index, height=pixels.height, width=pixels.width)


def run(executor, recipe, pixels, seed=0, epoch=0, dtype=torch.float32):
    """Every group's views, a list of [V, N, 3, S, S]."""
    rows, outs = rows_of(recipe, pixels, seed, epoch), []
    for size, views in recipe.groups:
        count = views.stop - views.start
        flat = torch.full((count * len(pixels), 3, size, size), torch.nan, dtype=dtype)
        out = flat.to(memory_format=torch.channels_last).unflatten(0, (count, len(pixels)))
        executor(pixels, rows.views(views), recipe, out)
        outs.append(out)
    return outs


def one_view(*operations, size=16):
    return Recipe(name="test", about="", views=(View(operations=operations, size=size),))


@pytest.mark.parametrize("name", CPU_EXECUTORS)
def test_rows_around_the_executor_come_out_as_from_the_reference(name):
    """pool-14 with only rain and fog routed: the rows that are, are finished by the same code in every executor."""
    recipe, pixels = load_recipe("pool-14", size=32), images(40)
    (expected,) = run(choose_executor("reference", recipe), recipe, pixels)
    (out,) = run(choose_executor(name, recipe), recipe, pixels)
    assert out.isfinite().all()
    if name == "fused_cpu":
        levels = (out - expected).abs() * 255 * torch.tensor(recipe.std).view(3, 1, 1)
        assert levels.mean() < 1.0


@pytest.mark.parametrize("name", CPU_EXECUTORS)
@pytest.mark.parametrize("antialias", [True, False])
def test_nothing_is_read_outside_of_the_crops(name, antialias):
    """So loaders need not decode it. Small crops of large images, cubic ones too, reach beyond themselves if any do."""
    crops = [
        RandomResizedCrop(scale=(0.05, 0.3), interpolation=how, antialias=antialias)
        for how in (Interpolation.BILINEAR, Interpolation.BICUBIC)
    ]
    for recipe in (Recipe(name="", about="", views=(View(operations=(crop,), size=24, count=2),)) for crop in crops):
        pixels = images(6, height=60, width=50)
        spoilt = Pixels.from_images([pixels.image(n) for n in range(6)])
        for n, (top, left, bottom, right) in enumerate(rows_of(recipe, pixels).boxes()):
            inside = spoilt.image(n)[top:bottom, left:right].copy()
            spoilt.image(n)[:] = 255 - spoilt.image(n)
            spoilt.image(n)[top:bottom, left:right] = inside
        assert not np.array_equal(spoilt.data, pixels.data)
        executor = choose_executor(name, recipe)
        assert executor.within_crops
        torch.testing.assert_close(run(executor, recipe, spoilt), run(executor, recipe, pixels), rtol=0, atol=0)


def test_routing_is_per_row_and_counted():
    rain = Albumentations(transform="RandomRain", p=0.5)
    recipe, pixels = one_view(CenterCrop(), rain, HorizontalFlip(p=0.5), size=32), images(50)
    executor = choose_executor("fused_cpu", recipe)
    run(executor, recipe, pixels)
    held = (rows_of(recipe, pixels).opcode == Opcode.ALBUMENTATIONS).any(-1).sum()
    assert 10 < held < 40
    assert (executor.rows, executor.routed) == (50, held)


def test_operations_around_a_routed_one_keep_their_order():
    """Solarize by Albumentations between operations that do not commute with it."""
    steps = (CenterCrop(), ColorJitter(p=1.0), Solarize(p=1.0), ColorJitter(p=1.0))
    recipe, pixels = one_view(*steps), images()
    expected = run(choose_executor("fused_cpu", recipe), recipe, pixels)
    executor = choose_executor("fused_cpu", recipe, fallback=["solarize"])
    torch.testing.assert_close(run(executor, recipe, pixels), expected, rtol=0, atol=0)
    assert executor.routed == executor.rows == len(pixels)


def test_a_batch_of_routed_rows_alone():
    recipe, pixels = one_view(CenterCrop(), Solarize(p=1.0)), images()
    expected = run(choose_executor("fused_cpu", recipe), recipe, pixels)
    torch.testing.assert_close(
        run(choose_executor("fused_cpu", recipe, fallback=["Solarize"]), recipe, pixels), expected, rtol=0, atol=0
    )


def test_foreign_transforms_replay_by_seed_in_any_thread_and_company():
    rain = Albumentations(transform="RandomRain", p=1.0)
    recipe, pixels = one_view(CenterCrop(), rain, size=32), images(8)
    executor = choose_executor("fused_cpu", recipe)
    (whole,) = run(executor, recipe, pixels)
    with ThreadPoolExecutor(4) as pool:
        for (again,) in pool.map(lambda _: run(executor, recipe, pixels), range(8)):
            assert torch.equal(again, whole)
    assert not torch.equal(run(executor, recipe, pixels, epoch=1)[0], whole)
    assert not torch.equal(whole[0, 0] - whole[0, 1], torch.zeros_like(whole[0, 0]))


def test_foreign_transforms_of_all_stages_keep_their_places():
    from penstock.augment.operations import ByEpoch

    early, late = (Albumentations(transform=name, p=1.0) for name in ("RandomRain", "ToSepia"))
    recipe, pixels = one_view(CenterCrop(), ByEpoch(stages=((0, early), (1, late)), of=2), size=32), images()
    (by_stage,) = run(choose_executor("fused_cpu", recipe), recipe, pixels, epoch=1)
    plain = one_view(CenterCrop(), late, size=32)
    torch.testing.assert_close(by_stage, run(choose_executor("fused_cpu", plain), plain, pixels, epoch=1)[0])


def test_groups_of_several_sizes():
    recipe, pixels = load_recipe("multi-crop", size=32), images(3)
    large, small = run(choose_executor("auto", recipe), recipe, pixels)
    assert (large.shape, small.shape) == ((2, 3, 3, 32, 32), (6, 3, 3, 14, 14))
    assert large.isfinite().all() and small.isfinite().all()


@pytest.mark.parametrize("name", [*CPU_EXECUTORS, "dali"])  # fused_gpu's: test_fused_gpu.py
def test_an_executor_follows_views_that_grow(name):
    """One that has made views of another size before makes the same ones as a new one on a recipe of that size."""
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    recipe, pixels = load_recipe("a", size=40), images(3)
    growing, executor = recipe.growing(16, step=16), choose_executor(name, recipe)
    for epoch, size in ((0, 16), (2, 40), (1, 32), (0, 16)):
        (made,) = run(executor, growing.at(epoch), pixels, epoch=epoch)
        (expected,) = run(choose_executor(name, recipe), recipe.resized(size), pixels, epoch=epoch)
        assert made.shape[-1] == size and torch.equal(made, expected)


def test_a_foreign_transform_is_tried_on_the_smallest_views():
    rain = Albumentations(transform="RandomRain", arguments={"drop_length": 20}, p=1.0)  # of more than 20 px
    recipe = one_view(CenterCrop(), rain, size=64)
    choose_executor("fused_cpu", recipe.growing(32, step=32))
    with pytest.raises(UserError, match="RandomRain fails on views of 16 pixels"):
        choose_executor("fused_cpu", recipe.growing(16, step=48))


def test_auto_takes_the_compiled_executor_on_a_cpu():
    assert choose_executor("auto", load_recipe("moco-v2")).name == "fused_cpu"


@pytest.mark.parametrize(
    ("names", "opcodes"),
    [
        (["clahe", "solarize"], {Opcode.CLAHE, Opcode.SOLARIZE}),
        (["CLAHE"], {Opcode.CLAHE}),
        (["ColorJitter"], {Opcode.BRIGHTNESS, Opcode.CONTRAST, Opcode.SATURATION, Opcode.HUE}),
        (["hue"], {Opcode.HUE}),
        ([], set()),
    ],
)
def test_fallback_takes_a_recipe_s_names_and_a_row_s(names, opcodes):
    assert fallback_opcodes(names) == opcodes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: choose_executor("fused", load_recipe("moco-v2")),
            "'fused' is not known: choose one of auto, reference",
        ),
        (lambda: fallback_opcodes(["clah"]), "'clah' is not an operation that can: choose among box_blur"),
        (lambda: fallback_opcodes(["crop"]), "'crop' is not an operation"),
        (lambda: fallback_opcodes(["RandomResizedCrop"]), "is not an operation"),
        (
            lambda: choose_executor("auto", one_view(CenterCrop(), Albumentations(transform="RandomRian"))),
            "no transform 'RandomRian': did you mean RandomRain",
        ),
        (
            lambda: choose_executor(
                "auto", one_view(CenterCrop(), Albumentations(transform="RandomRain", arguments={"drops": 3}))
            ),
            "no argument 'drops'",
        ),
        (lambda: choose_executor("auto", load_recipe("pool-14", size=16)), "fails on views of 16 pixels"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(
    recipe=recipes(),
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=3),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_any_recipe_on_any_image_gives_finite_views_in_range(recipe, sizes, seed, epoch, dtype):
    rng = np.random.default_rng(seed)
    pixels = Pixels.from_images([rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes])
    for out in run(Executor("fused_cpu"), recipe, pixels, seed, epoch, dtype):
        levels = out.float() * torch.tensor(recipe.std).view(3, 1, 1) + torch.tensor(recipe.mean).view(3, 1, 1)
        assert levels.isfinite().all()
        assert levels.min() > -0.02 and levels.max() < 1.02
