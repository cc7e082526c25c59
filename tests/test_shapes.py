"""The embedded data set: drawn the same everywhere, whole or not there, and not to be told apart without learning."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from penstock.errors import UserError
from penstock.loaders.sources import shapes
from penstock.loaders.sources.shapes import CLASSES, render, shapes_source

COUNTS = {"train": 500, "val": 150}
Images = list[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def drawn() -> tuple[Images, Images]:
    """The first images of either split; image i is of class i modulo ten."""
    draw = {split: [render(i % 10, 0, split=split, number=i) for i in range(n)] for split, n in COUNTS.items()}
    return draw["train"], draw["val"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shapes, "SPLITS", {"train": 30, "val": 20})
    yield


def test_an_image_depends_on_its_arguments_alone() -> None:
    first = render(3, 0, split="train", number=13)
    render(4, 0, split="train", number=14)
    with ThreadPoolExecutor(2) as pool:
        again = list(pool.map(lambda i: render(i % 10, 0, split="train", number=i), [13, 23, 13, 33]))
    assert np.array_equal(first, again[0]) and np.array_equal(first, again[2])


@pytest.mark.parametrize("other", [{"class_index": 4}, {"seed": 1}, {"split": "val"}, {"number": 14}])
def test_each_argument_changes_the_image(other: dict[str, int | str]) -> None:
    given: dict[str, Any] = {"class_index": 3, "seed": 0, "split": "train", "number": 13}
    first, changed = render(**given), render(**{**given, **other})
    assert first.shape != changed.shape or np.abs(first.astype(int) - changed).mean() > 5


def test_photographs_differ_in_size_and_use_the_range(drawn: tuple[Images, Images]) -> None:
    sizes = {image.shape for image in drawn[0]}
    sides = [side for height, width, _ in sizes for side in (height, width)]
    assert len(sizes) > 300 and min(sides) >= 64 and max(sides) <= 160
    assert any(h > w for h, w, _ in sizes) and any(w > h for h, w, _ in sizes)
    assert all(image.dtype == np.uint8 and image.std() > 10 for image in drawn[0])


@pytest.mark.usefixtures("small")
def test_it_is_generated_once_balanced_and_as_drawn(tmp_path: Path) -> None:
    source = shapes_source("train", tmp_path)
    assert source.classes == tuple(sorted(CLASSES)) and source.name == "shapes-train"
    assert np.array_equal(np.bincount(source.labels), [3] * 10)
    number = int(source.path(4).stem)
    difference = source.decode(4).astype(int) - render(number % 10, 0, split="train", number=number)
    assert np.abs(difference).mean() < 8
    before = source.path(0).stat().st_mtime_ns
    assert shapes_source("train", tmp_path).path(0).stat().st_mtime_ns == before
    assert len(shapes_source("val", tmp_path)) == 20


@pytest.mark.usefixtures("small")
def test_a_generation_that_breaks_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: NDArray[np.uint8], quality: int) -> bytes:
        raise OSError("No space left on device")

    with monkeypatch.context() as broken, pytest.raises(UserError, match="cannot be written"):
        broken.setattr(shapes, "encode_jpeg", full)
        shapes_source("train", tmp_path)
    assert os.listdir(tmp_path / shapes.VERSION) == []
    assert len(shapes_source("train", tmp_path)) == 30


@pytest.mark.usefixtures("small")
def test_two_at_once_end_with_one_whole_set(tmp_path: Path) -> None:
    root = tmp_path / shapes.VERSION / "train"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: shapes.generate(root, "train", 30), range(2)))
    assert os.listdir(root.parent) == ["train"] and len(shapes_source("train", tmp_path)) == 30


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'unlabeled'.*train, val"):
        shapes_source("unlabeled", tmp_path)


def pixels(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(Image.fromarray(image).resize((16, 16)), np.float64).ravel()


def histogram(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of 4×4×4 colours."""
    bins = (image // 64).astype(int) @ [16, 4, 1]
    return np.sqrt(np.bincount(bins.ravel(), minlength=64) / bins.size)


@pytest.mark.parametrize("feature", [pixels, histogram])
@pytest.mark.parametrize("neighbours", [1, 20])
def test_neighbours_in_plain_features_do_not_tell_the_class(
    drawn: tuple[Images, Images], feature: Callable[[NDArray[np.uint8]], NDArray[np.float64]], neighbours: int
) -> None:
    bank, queries = (np.stack([feature(image) for image in images]) for images in drawn)
    bank, queries = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (bank, queries))
    nearest = np.argsort(-queries @ bank.T, axis=1)[:, :neighbours] % 10
    votes = np.stack([(nearest == label).sum(1) for label in range(10)], axis=1)
    accuracy = (votes.argmax(1) == np.arange(len(queries)) % 10).mean()
    assert accuracy <= 0.25
