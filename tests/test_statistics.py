"""Mean and std of a set: held against numpy's float64 on what Pillow decodes, whatever threads, shards and order."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from penstock.augment import load_recipe
from penstock.errors import UserError
from penstock.loaders.convert import convert
from penstock.loaders.sources import ImageArrays, ImageFolder, open_source
from penstock.loaders.statistics import STRIP, Statistics, Sums, main, measure

ORIENTATION = 0x0112
SIZES = [(20, 31), (1, 1), (64, 9), (40, 40), (33, 50)]


def noise(i: int, height: int, width: int) -> NDArray[np.uint8]:
    """Images that differ in brightness, contrast and colour, so that each weighting and each std is another number."""
    rng = np.random.default_rng(i)
    return rng.integers(*sorted(rng.choice(256, 2, replace=False)), (height, width, 3), np.uint8)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Grey, palette, alpha, EXIF-rotated and plain images of different sizes."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for i, (height, width) in enumerate(SIZES * 4):
        image, exif = Image.fromarray(noise(i, height, width)), Image.Exif()
        exif[ORIENTATION] = 1 + i % 8
        match i % 5:
            case 0:
                image.convert("L").save(folder / f"{i:02}.png")
            case 1:
                image.quantize(16).save(folder / f"{i:02}.png")
            case 2:
                image.putalpha(100)
                image.save(folder / f"{i:02}.png")
            case 3:
                image.save(folder / f"{i:02}.jpg", quality=90, exif=exif)
            case 4:
                image.save(folder / f"{i:02}.webp", lossless=True)
    return folder


def decoded(folder: Path) -> list[NDArray[np.uint8]]:
    """By Pillow alone."""
    paths = sorted(folder.iterdir())
    return [np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")) for path in paths]


def expected(images: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float64]]:
    """Every figure by its definition."""
    pixels = [image.reshape(-1, 3) / 255 for image in images]
    means = np.array([p.mean(axis=0) for p in pixels])
    mean = means.mean(axis=0)
    together = np.concatenate(pixels)
    return {
        "mean": mean,
        "std": np.sqrt(np.mean([((p - mean) ** 2).mean(axis=0) for p in pixels], axis=0)),
        "own_std": np.mean([p.std(axis=0) for p in pixels], axis=0),
        "pixel_mean": together.mean(axis=0),
        "pixel_std": together.std(axis=0),
    }


def check(found: Statistics, images: Sequence[NDArray[np.uint8]]) -> None:
    assert (found.images, found.pixels) == (len(images), sum(image.size // 3 for image in images))
    for name, value in expected(images).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-10, atol=1e-15, err_msg=name)


def arrays(images: NDArray[np.uint8]) -> ImageArrays:
    return ImageArrays(images, [0] * len(images), ["a"], "arrays")


def test_a_folder_of_odd_images(odd: Path) -> None:
    check(measure(open_source(str(odd)), progress=False), decoded(odd))


@pytest.mark.parametrize("suffix", [".beton", ".tar"])
def test_a_shard_has_its_folders_statistics(odd: Path, tmp_path: Path, suffix: str) -> None:
    source, shard = open_source(str(odd)), tmp_path / f"x{suffix}"
    convert(source, shard, encoding="raw", progress=False)
    assert measure(open_source(str(shard)), progress=False) == measure(source, progress=False)


def test_threads_make_no_difference(odd: Path) -> None:
    one, *others = (measure(open_source(str(odd)), workers=workers, progress=False) for workers in (1, 2, 5))
    assert others == [one, one]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12), st.randoms())
def test_parts_may_be_merged_in_any_order_and_grouping(sizes: list[tuple[int, int]], random) -> None:  # type: ignore[no-untyped-def]
    parts = [Sums.of(noise(i, *size)) for i, size in enumerate(sizes)]
    in_turn = Statistics.of(sum(parts, Sums.none()))
    while len(parts) > 1:
        random.shuffle(parts)
        parts.append(parts.pop() + parts.pop())
    assert Statistics.of(parts[0]) == in_turn


@pytest.mark.parametrize("pixels", [1, STRIP - 1, STRIP, STRIP + 1, 3 * STRIP])
def test_sums_are_exact_for_images_of_any_size(pixels: int) -> None:
    image = np.random.default_rng(0).integers(250, 256, (1, pixels, 3), np.uint8)
    levels = image.reshape(-1, 3).astype(np.int64)
    assert Sums.of(image).levels.tolist() == [levels.sum(0).tolist(), (levels**2).sum(0).tolist()]


def test_the_two_std_differ_by_what_images_differ_by_as_wholes() -> None:
    flat = np.repeat(np.array([0, 255], np.uint8), 4 * 4 * 3).reshape(2, 4, 4, 3)
    found = measure(arrays(flat), progress=False)
    assert (found.mean, found.std, found.own_std) == ((0.5,) * 3, (0.5,) * 3, (0.0,) * 3)


def test_an_image_weighs_the_same_whatever_its_size() -> None:
    small, large = np.zeros((1, 1, 3), np.uint8), np.full((30, 10, 3), 255, np.uint8)
    found = Statistics.of(Sums.of(small) + Sums.of(large))
    assert found.mean == (0.5,) * 3
    assert found.pixel_mean == pytest.approx((300 / 301,) * 3)


def test_one_image() -> None:
    image = noise(0, 7, 5)
    found = measure(arrays(image[None]), progress=False)
    check(found, [image])
    assert found.std == pytest.approx(found.own_std, rel=1e-10)


def test_a_set_of_one_colour_has_no_std() -> None:
    found = measure(arrays(np.full((9, 3, 3, 3), 77, np.uint8)), progress=False)
    assert found.own_std == found.pixel_std == (0.0,) * 3
    assert max(found.std) < 1e-9 and found.mean == pytest.approx((77 / 255,) * 3)


def test_size_takes_evaluations_central_view() -> None:
    images = np.stack([noise(i, 32, 32) for i in range(5)])
    check(measure(arrays(images), size=28, progress=False), list(images[:, 2:30, 2:30]))  # 0.875 of the side


def test_memory_does_not_grow_with_the_set() -> None:
    lock, alive, most = threading.Lock(), 0, 0

    class Counting(ImageArrays):
        def decode(self, index: int) -> NDArray[np.uint8]:
            nonlocal alive, most
            image = super().decode(index)
            with lock:
                alive += 1
                most = max(most, alive)
            weakref.finalize(image, gone)
            return image

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    source = Counting(np.zeros((300, 2, 2, 3), np.uint8), [0] * 300, ["a"], "counting")
    assert measure(source, workers=3, progress=False).images == 300
    assert most <= 3 and alive == 0


@pytest.fixture
def damaged(odd: Path) -> Path:
    (odd / "03.jpg").write_bytes((odd / "03.jpg").read_bytes()[:300])
    (odd / "19.webp").write_bytes(b"")
    return odd


def test_a_broken_image_stops_it(damaged: Path) -> None:
    with pytest.raises(UserError, match=r"03\.jpg.*--on-error skip"):
        measure(open_source(str(damaged)), progress=False)


def test_broken_images_are_skipped_named_and_counted(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure(open_source(str(damaged)), on_error="skip", progress=False)
    assert [Path(broken["location"]).name for broken in found.skipped] == ["03.jpg", "19.webp"]
    for name in ("03.jpg", "19.webp"):
        (damaged / name).unlink()
    check(found, decoded(damaged))
    (damaged / "03.jpg").write_bytes(b"no image")
    assert main([str(damaged), "--on-error", "skip"]) == 0
    printed = capsys.readouterr()
    assert "1 broken skipped" in printed.out and "03.jpg" in printed.out


@pytest.mark.parametrize(
    ("options", "words"),
    [({"on_error": "ignore"}, "--on-error"), ({"workers": 0}, "--workers 0"), ({"size": 0}, "--size 8")],
)
def test_wrong_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        measure(arrays(np.zeros((1, 2, 2, 3), np.uint8)), progress=False, **options)


def test_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images here"):
        main([str(tmp_path)])
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"not one of its 1 images can be read; .*a\.png: not an image"):
        measure(ImageFolder(tmp_path, name="x"), on_error="skip", progress=False)


def test_the_command_prints_lines_that_a_recipe_takes(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(odd), "--json", str(tmp_path / "x.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    pasted = yaml.safe_load("\n".join(line for line in lines if line.startswith(("mean:", "std:"))))
    recipe = replace(load_recipe("moco-v2"), **{name: tuple(values) for name, values in pasted.items()})
    figures = expected(decoded(odd))
    assert recipe.mean == pytest.approx(figures["mean"], abs=6e-5)
    assert recipe.std == pytest.approx(figures["std"], abs=6e-5)
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["own_std"] == pytest.approx(figures["own_std"]) and written["images"] == len(SIZES) * 4


def test_a_subset_is_a_part_of_the_set(odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(odd), "--subset", "7", "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["images"] == 7
    assert "7 images" in capsys.readouterr().out
