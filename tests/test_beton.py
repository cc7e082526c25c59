"""`.beton`: what is written is read back; broken files are refused in one line, and broken images named."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from penstock.errors import BrokenImage, UserError
from penstock.loaders import beton
from penstock.loaders.beton import (
    ALLOCATION,
    CHECKSUM_RULE,
    DESCRIPTOR,
    FIELDS,
    HEADER,
    JPEG,
    PAGE_SIZE,
    RAW,
    BetonSource,
    row_type,
)
from penstock.loaders.convert import convert
from penstock.loaders.decode import encode_jpeg
from penstock.loaders.shard import checksum
from penstock.loaders.sidecar import sidecar_path
from penstock.loaders.sources.arrays import ImageArrays
from tests.small_betons import SIZES, smooth, write


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four JPEGs and four RAW images of several sizes, labels 0 … 7."""
    stored = [(encode_jpeg(smooth(h, w, i), 90), JPEG, h, w) for i, (h, w) in enumerate(SIZES)]
    stored += [(smooth(h, w, i).tobytes(), RAW, h, w) for i, (h, w) in enumerate(SIZES)]
    write(tmp_path / "mixed.beton", stored, list(range(8)))
    return tmp_path / "mixed.beton"


def test_jpeg_and_raw_come_back(mixed: Path) -> None:
    source = BetonSource(mixed)
    assert (len(source), source.storage, source.labels.tolist()) == (8, "mixed", list(range(8)))
    for i, (height, width) in enumerate(SIZES):
        image = smooth(height, width, i)
        assert source.encoded(i) == encode_jpeg(image, 90)
        by_pillow = np.asarray(Image.open(io.BytesIO(source.encoded(i))).convert("RGB"))
        np.testing.assert_array_equal(source.decode(i), by_pillow)
        np.testing.assert_array_equal(source.decode(4 + i), image)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(source.encoded(4 + i)))), image)


def test_no_image_crosses_a_page(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1100, 1000, 3), np.uint8)  # two fit in a page, three do not
    convert(ImageArrays(images, [0] * 5, ["one"], "big"), tmp_path / "big.beton", progress=False)
    source = BetonSource(tmp_path / "big.beton")
    first = source.images["pointer"] // PAGE_SIZE
    last = (source.images["pointer"] + source.lengths - 1) // PAGE_SIZE
    assert first.tolist() == last.tolist() == [1, 1, 2, 2, 3]
    np.testing.assert_array_equal(source.decode(4), images[4])


def test_raw_pixels_are_a_read_only_view_that_outlives_the_source(mixed: Path) -> None:
    source = BetonSource(mixed)
    image = source.decode(4)
    source.close()
    assert not image.flags.writeable and not image.flags.owndata
    np.testing.assert_array_equal(image, smooth(*SIZES[0], 0))


def test_many_threads_read_at_once(mixed: Path) -> None:
    source = BetonSource(mixed)
    alone = [source.decode(i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for i, image in enumerate(pool.map(source.decode, list(range(8)) * 20)):
            np.testing.assert_array_equal(image, alone[i % 8])


def test_a_pickled_source_is_its_path(mixed: Path) -> None:
    source = BetonSource(mixed)
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).decode(5), source.decode(5))


def test_a_source_may_be_closed_twice(mixed: Path) -> None:
    source = BetonSource(mixed)
    labels = source.labels.tolist()
    source.close()
    source.close()
    assert source.labels.tolist() == labels


def test_without_a_sidecar_class_names_are_numbers(mixed: Path) -> None:
    source = BetonSource(mixed)
    assert source.classes == tuple("01234567") and source.name == "mixed" and source.sidecar is None


def test_a_sidecar_of_another_file_is_refused(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 4)):
        images = np.zeros((count, 8, 8, 3), np.uint8)
        convert(ImageArrays(images, [0] * count, ["cat"], name), tmp_path / f"{name}.beton", progress=False)
    assert BetonSource(tmp_path / "a.beton").classes == ("cat",)
    sidecar_path(tmp_path / "b.beton").replace(sidecar_path(tmp_path / "a.beton"))
    with pytest.raises(UserError, match=r"a\.beton\.json: belongs to another file"):
        BetonSource(tmp_path / "a.beton")


def test_the_allocation_table_may_be_in_any_order(mixed: Path) -> None:
    data = mixed.read_bytes().replace(CHECKSUM_RULE, bytes(len(CHECKSUM_RULE)))  # as if we had not written it
    start = int(np.frombuffer(data, HEADER, 1)[0]["allocation_table"])
    table = np.frombuffer(data, ALLOCATION, offset=start)
    extra = np.array([(3, PAGE_SIZE + 7, 2)], ALLOCATION)  # of another field; ffcv lists those too
    shuffled = np.concatenate([np.random.default_rng(1).permutation(table), extra])
    expected = BetonSource(mixed)
    other = mixed.with_name("shuffled.beton")
    other.write_bytes(data[:start] + shuffled.tobytes())
    for i in range(8):
        np.testing.assert_array_equal(BetonSource(other).decode(i), expected.decode(i))


@pytest.mark.parametrize("content", [b"", b"beton", b"not a shard, but a text that is long enough for a header" * 100])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.beton"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"foreign\.beton: not a whole \.beton file"):
        BetonSource(path)
    with pytest.raises(UserError, match="is the path right"):
        BetonSource(tmp_path / "missing.beton")


def test_a_file_cut_short_anywhere_is_refused(mixed: Path) -> None:
    whole = mixed.stat().st_size
    os.truncate(mixed, whole - ALLOCATION.itemsize)
    with pytest.raises(UserError, match="its tables disagree"):
        BetonSource(mixed)
    for length in [*range(whole - 25, whole - 300, -1), PAGE_SIZE + 100, PAGE_SIZE, *range(4000, 0, -97)]:
        os.truncate(mixed, length)
        with pytest.raises(UserError, match="not a whole"):
            BetonSource(mixed)


@pytest.mark.parametrize(
    ("pointer", "length"),
    [(1 << 40, 4), ((1 << 64) - 1, 4), (0, 4), (PAGE_SIZE, 1 << 30), (PAGE_SIZE, (1 << 64) - 1)],
)
def test_an_image_outside_of_the_data_region_is_refused(mixed: Path, pointer: int, length: int) -> None:
    """Both tables agree on a place that is not there; sums that wrap around must not look right."""
    data = bytearray(mixed.read_bytes())
    table = int(np.frombuffer(data, HEADER, 1)[0]["allocation_table"])
    np.frombuffer(data, ALLOCATION, offset=table)[2] = (2, pointer, length)
    rows = np.frombuffer(data, row_type(FIELDS), 8, offset=HEADER.itemsize + len(FIELDS) * DESCRIPTOR.itemsize)
    rows["image"]["pointer"][2] = pointer
    mixed.write_bytes(data)
    with pytest.raises(UserError, match="image 2 lies outside of its data region"):
        BetonSource(mixed)


def flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x55]))


def contents(path: Path) -> list[tuple[int, bytes]]:
    """Each image's label and pixels. Raises UserError, of which BrokenImage is one."""
    source = BetonSource(path)
    return [(int(source.labels[i]), source.decode(i).tobytes()) for i in range(len(source))]


def test_a_flipped_bit_in_the_tables_never_changes_an_image_or_a_label_in_silence(mixed: Path) -> None:
    """It is refused, names the image, or does no harm. Never a crash, or a read outside of the file."""
    length, expected = mixed.stat().st_size, contents(mixed)
    rows = HEADER.itemsize + len(FIELDS) * DESCRIPTOR.itemsize
    tables = [*range(HEADER.itemsize), *range(rows, rows + 8 * 32), *range(length - 8 * 24, length)]
    refused = 0
    for position in tables:
        flip(mixed, position)
        try:
            assert contents(mixed) == expected, position
        except UserError:
            refused += 1
        flip(mixed, position)
    assert refused > len(tables) // 3


def test_a_flipped_bit_in_the_data_names_the_image(mixed: Path) -> None:
    """Most would decode, to other pixels."""
    source = BetonSource(mixed)
    ends = source.images["pointer"] + source.lengths
    for position in range(PAGE_SIZE, int(ends[-1]), 61):
        victim = int(np.searchsorted(ends, position, side="right"))
        flip(mixed, position)
        damaged = BetonSource(mixed)
        for _ in range(2):  # a second time too
            with pytest.raises(BrokenImage, match=rf"mixed\.beton\[{victim}\].*changed since they were written"):
                damaged.stored(victim)
        for i in {0, 7} - {victim}:
            damaged.stored(i)
        flip(mixed, position)


def test_a_checksum_is_tested_once(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in every epoch."""
    tested: list[int] = []
    monkeypatch.setattr(beton, "checksum", lambda data, label: tested.append(label) or checksum(data, label))
    source = BetonSource(mixed)
    for i in (3, 5, 3, 3):
        source.decode(i)
    assert tested == [3, 5]


def test_an_image_that_is_not_what_the_table_says_is_named(tmp_path: Path) -> None:
    data = encode_jpeg(smooth(16, 16, 0), 90)
    stored = [(data, JPEG, 16, 24), (b"abc", RAW, 2, 2), (data[:100], JPEG, 16, 16), (b"", JPEG, 16, 16)]
    write(tmp_path / "lies.beton", stored, [0, 0, 0, 0])
    source = BetonSource(tmp_path / "lies.beton")
    for i in range(4):
        with pytest.raises(BrokenImage, match=rf"lies\.beton\[{i}\]"):
            source.decode(i)


def test_the_fingerprint_follows_pixels_labels_and_classes(tmp_path: Path) -> None:
    def fingerprint(images: NDArray[np.uint8], label: int, classes: list[str]) -> str:
        path = tmp_path / "x.beton"
        convert(ImageArrays(images, [label], classes, "x"), path, progress=False, overwrite=True)
        return BetonSource(path).fingerprint()

    image = np.zeros((1, 8, 8, 3), np.uint8)
    first = fingerprint(image, 0, ["a", "b"])
    assert fingerprint(image, 0, ["a", "b"]) == first
    assert len({first, fingerprint(image + 1, 0, ["a", "b"]), fingerprint(image, 1, ["a", "b"])}) == 3
    assert fingerprint(image, 0, ["a", "c"]) != first


def test_an_open_shard_takes_at_most_64_bytes_a_sample(tmp_path: Path) -> None:
    count, path = 200_000, tmp_path / "many.beton"
    with open(path, "wb") as file:  # all samples share one image: only the tables are large
        rows = np.zeros(count, row_type(FIELDS))
        rows["image"]["mode"], rows["image"]["height"], rows["image"]["width"] = RAW, 1, 1
        rows["image"]["pointer"] = start = 2 * PAGE_SIZE
        header = np.array((2, len(FIELDS), PAGE_SIZE, count, start + 8), HEADER)
        descriptors = np.array([(kind, name, b"") for name, kind in FIELDS], DESCRIPTOR)
        file.write(header.tobytes() + descriptors.tobytes() + rows.tobytes())
        file.seek(start + 8)
        file.write(np.full(count, np.array((0, start, 3), ALLOCATION)).tobytes())
    tracemalloc.start()
    try:
        source = BetonSource(path)
        assert tracemalloc.get_traced_memory()[0] <= 64 * count
    finally:
        tracemalloc.stop()
    assert len(source) == count and source.decode(count - 1).shape == (1, 1, 3)
