"""Every executor against the reference, on the same rows: each operation alone, each recipe's steps, whole chains.

On photographs of `PENSTOCK_TEST_DATA` (a folder, or any set that `--data` takes) where that is set, on embedded ones
where it is not, and on images that are not photographs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.augment import RECIPES, Pixels
from penstock.augment.rows import Opcode
from penstock.benchmarks import parity, parity_measure
from penstock.benchmarks.parity import COMMAND, PAGE
from penstock.benchmarks.parity_measure import STEPS, back_end, chain_difference, step_difference
from penstock.errors import MissingExtra
from penstock.loaders import open_source

MEAN, MOST = 0.5, 2  # grey levels, of one operation
CLAHE_MEAN = 1.0  # its lightness goes through 8-bit LAB: a level there is several in blue
CHAIN_MEAN, CHAIN_MOST = 1.0, 4.0  # of a whole chain; the latter for 999 values of 1000

SIZE = 45
EXACT = [name for name in parity_measure.available(interpreted=False) if name in ("fused_cpu", "fused_gpu")]


@cache
def photographs() -> Sequence[np.ndarray]:
    data = os.environ.get("PENSTOCK_TEST_DATA")
    if not data:
        return parity_measure.photographs()
    source = open_source(data)
    return [source.decode(int(i)) for i in np.linspace(0, len(source) - 1, min(12, len(source)))]


@cache
def odd_images() -> Sequence[np.ndarray]:
    """Noise, one level, one pixel wide, grey, saturated, huge."""
    rng = np.random.default_rng(0)
    flat = [np.full((40, 50, 3), level, np.uint8) for level in (0, 128, 255)]
    thin = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in [(1, 60), (60, 1), (1, 1)]]
    noise = rng.integers(0, 256, (70, 60, 3), np.uint8)
    grey = photographs()[0].mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, axis=2)
    saturated = np.where(photographs()[1] > 110, 255, 0).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(photographs()[2]).resize((3000, 2000)))
    huge = smooth // 2 + np.tile(noise[:50, :60], (40, 50, 1)) // 2
    return [noise, *flat, *thin, grey, saturated, huge]


def check(opcode, off):
    """Grey levels off the reference [..., S, S, 3], against the limits of the operation."""
    if opcode == Opcode.CLAHE:
        assert off.mean() <= CLAHE_MEAN
    else:
        assert off.mean() <= MEAN and off.max() <= MOST, Opcode(opcode).name


def check_operation(name, label, images, size):
    """Each view by itself: one kind of image does not make up for another."""
    step = parity_measure.last_step(label, Pixels.from_images(images), size)
    for opcode, off in zip(
        step.opcode, step_difference(name, step, parity_measure.step_recipe(label, size), size), strict=True
    ):
        check(opcode, off)


def check_chain(name, recipe, images, size):
    off = chain_difference(name, Pixels.from_images(images), RECIPES[recipe].resized(size))
    assert off.mean() <= CHAIN_MEAN and np.percentile(off, 99.9) <= CHAIN_MOST


@pytest.mark.parametrize("images", [photographs, odd_images])
@pytest.mark.parametrize("label", STEPS)
@pytest.mark.parametrize("name", EXACT)
def test_an_operation_is_the_references(name, label, images):
    check_operation(name, label, images(), SIZE)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", EXACT)
def test_each_step_of_a_recipe_is_the_references(name, recipe):
    """Fed what the reference made of the steps before it, unlike in a chain, where differences add up."""
    recipe, pixels = RECIPES[recipe].resized(SIZE), Pixels.from_images(photographs())
    rows = parity_measure.rows_of(recipe, pixels)
    for group in recipe.groups:
        for step in parity_measure.steps(pixels, rows.views(group.views), recipe, group.size):
            step = step.only(step.opcode != Opcode.ALBUMENTATIONS)
            off = step_difference(name, step, recipe, group.size)
            for opcode in np.unique(step.opcode):
                check(opcode, off[step.opcode == opcode])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", EXACT)
def test_a_whole_chain_is_close_to_the_references(name, recipe):
    check_chain(name, recipe, photographs(), SIZE)


# The GPU's kernels in Triton's interpreter, which takes its time: few and small views.

needs_triton = pytest.mark.skipif(
    "fused_gpu" not in parity_measure.available(interpreted=True), reason="Triton is not installed"
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the GPU, above")


@needs_triton
@without_gpu
@pytest.mark.parametrize("label", STEPS)
def test_an_operation_is_the_references_in_the_interpreter(label):
    check_operation("fused_gpu", label, [photographs()[0][:40, :50], odd_images()[0][:20]], 16)


@needs_triton
@without_gpu
@pytest.mark.parametrize("recipe", ["moco-v2", "byol"])
def test_a_whole_chain_is_close_to_the_references_in_the_interpreter(recipe):
    check_chain("fused_gpu", recipe, [photographs()[0][:40, :50]], 16)


def test_the_fused_executors_have_every_operation():
    for name in parity_measure.available(interpreted=True):
        if name in ("fused_cpu", "fused_gpu"):
            assert set(Opcode) - back_end(name).NATIVE == {Opcode.NONE, Opcode.ALBUMENTATIONS}


def test_the_page_of_figures_is_up_to_date():
    """Columns of executors that cannot run here stay as they are; the others' may differ by what machines round."""
    page, names = PAGE.read_text(encoding="utf-8"), parity_measure.available(interpreted=False)
    written, now = parity.read_page(page), parity.measure(names)
    assert parity.render_page(written, parity.read_where(page)) == page, f"its words are of yesterday: {COMMAND}"
    for cell, expected in now.items():
        assert agree(written[cell], expected), f"{cell}: {written[cell]}, now {expected}: {COMMAND}"


def test_the_page_says_where_the_kernels_ran(tmp_path, monkeypatch):
    """In Triton's interpreter until somebody with a GPU measures them, and on it from then on."""
    monkeypatch.setattr(parity, "PAGE", tmp_path / "parity.md")
    monkeypatch.setattr(parity, "measure", lambda names: {("a", name): (0.25, 1.0) for name in names})

    def run(names, where):
        monkeypatch.setattr(parity, "available", lambda *, interpreted: names)
        monkeypatch.setattr(parity, "where_fused_gpu_runs", lambda: where)
        assert parity.main([]) == 0
        page = parity.PAGE.read_text(encoding="utf-8")
        return parity.read_where(page), parity.read_page(page)["a", "fused_gpu"]

    assert run(["fused_cpu"], "nowhere") == (parity.INTERPRETER, None)
    assert run(["fused_cpu", "fused_gpu"], "on one NVIDIA H200") == ("on one NVIDIA H200", (0.25, 1.0))
    assert run(["fused_cpu"], parity.INTERPRETER) == ("on one NVIDIA H200", (0.25, 1.0))


def test_what_needs_a_missing_package_is_passed_over_and_named(monkeypatch, capsys):
    def missing(*_):
        raise MissingExtra("albumentations", "albumentations")

    monkeypatch.setattr(parity_measure, "STEPS", {label: STEPS[label] for label in ("crop, bilinear", "CLAHE")})
    monkeypatch.setattr(parity_measure, "RECIPES", {"a": RECIPES["a"]})
    monkeypatch.setattr(parity_measure.reference.albumentations, "apply", missing)
    assert set(parity_measure.measure(["fused_cpu"])) == {("crop, bilinear", "fused_cpu"), ("a", "fused_cpu")}
    assert "without CLAHE: albumentations is not installed" in capsys.readouterr().err


def agree(written, now):
    """Whether two cells are alike: means to 0.05 levels, others to 1, or either to 15 %."""
    if written is None or now is None:
        return written == now
    return all(abs(a - b) <= max(least, 0.15 * b) for a, b, least in zip(written, now, (0.05, 1), strict=True))
