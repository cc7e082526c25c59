"""`.beton`: what is written is read back, by us and by the ffcv package; broken files are refused in one line."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
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
    BetonWriter,
    row_type,
)
from penstock.loaders.convert import convert
from penstock.loaders.decode import encode_jpeg
from penstock.loaders.parts import join
from penstock.loaders.shard import Entry, checksum
from penstock.loaders.sidecar import sidecar_path
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.base import Source
from penstock.loaders.sources.folder import ImageFolder

needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason="the ffcv package is not installed (penstock[ffcv])"
)
SIZES = ((40, 56), (33, 17), (64, 64), (8, 120))


def smooth(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Something like a photograph, so that JPEG keeps it well."""
    coarse = np.random.default_rng(seed).integers(40, 216, (3, 3, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write(path: Path, images: list[tuple[bytes, int, int, int]], labels: list[int]) -> None:
    """A `.beton` without a sidecar from (data, mode, height, width)."""
    with open(path, "wb") as file:
        writer = BetonWriter(file, len(images))
        for i, ((data, mode, height, width), label) in enumerate(zip(images, labels, strict=True)):
            kind = {JPEG: "jpeg", RAW: "raw"}[mode]
            writer.add(Entry(i, kind, height, width, label, len(data), checksum(data, label)), data)
        writer.finish()


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


FFCV_READS = """
import sys
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import imdecode
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter

def one_by_one(path):  # the package's Reader and decoder, whatever the sizes
    reader, data = Reader(path), np.fromfile(path, np.uint8)
    lengths = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist()))
    for mode, width, height, pointer in reader.metadata["f0"].tolist():
        stored = data[pointer : pointer + lengths[pointer]]
        pixels = np.zeros((height, width, 3), np.uint8)
        if mode == 0:
            imdecode(stored, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
        yield pixels if mode == 0 else stored.reshape(height, width, 3)

def whole(path):  # the package's Loader, for images of one size
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()], "checksum": None}
    loader = Loader(path, 4, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False, pipelines=pipelines)
    images, labels = zip(*[(image.numpy().copy(), label.numpy().copy()) for image, label in loader])
    return np.concatenate(images), np.concatenate(labels)[:, 0]

if __name__ == "__main__":
    mixed, same, written, out, *others = sys.argv[1:]
    images, labels = whole(same)
    np.savez(out, *one_by_one(mixed), same=images, labels=labels)
    for other in others:
        np.savez(other + ".npz", *one_by_one(other), labels=Reader(other).metadata["f1"])
    samples = [(int(label), image) for image, label in zip(images, labels)]
    fields = {"class": IntField(), "picture": RGBImageField(write_mode="proportion", compress_probability=0.5)}
    DatasetWriter(written, fields, num_workers=2).from_indexed_dataset(samples, chunksize=2)
"""


CONVERTED = ("kept", "jpeg", "raw", "resized", "unlabelled", "single", "pages", "part", "joined")


def convert_as(name: str, folder: Path) -> None:
    """Write one of `CONVERTED` from JPEGs and PNGs of two classes."""
    images, shard = folder / f"{name}-images", folder / f"{name}.beton"
    for i, (height, width) in enumerate(SIZES[:1] if name == "single" else SIZES * 2):
        path = images / ("" if name == "unlabelled" else "ab"[i % 2]) / f"{i}.{'jpg' if i < 6 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(height, width, i)).save(path)
    source: Source = ImageFolder(images, name=name)
    if name == "pages":  # two images fill one
        source = ImageArrays(
            np.random.default_rng(0).integers(0, 256, (5, 1100, 1000, 3), np.uint8), [0] * 5, "a", name
        )
    options = {
        "resized": {"max_side": 30, "encoding": "jpeg"},
        "raw": {"encoding": "raw"},
        "jpeg": {"encoding": "jpeg"},
    }
    if name not in ("part", "joined"):
        convert(source, shard, progress=False, **options.get(name, {}))
        return
    parts = [convert(source, shard, part=f"{n}/2", progress=False).path for n in (1, 2)]
    if name == "part":
        parts[1].rename(shard)
    else:
        join(shard, progress=False)


@pytest.fixture(scope="module")
def by_ffcv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the ffcv package read two of our files (`out.npz`) and wrote one (`written.beton`).

    In a process of its own: it changes torch's threads and forks.
    """
    folder = tmp_path_factory.mktemp("ffcv")
    stored = [(encode_jpeg(smooth(h, w, i), 90), JPEG, h, w) for i, (h, w) in enumerate(SIZES)]
    stored.append((simplejpeg.encode_jpeg(smooth(30, 30, 9)[:, :, :1].copy(), 90, "GRAY", "Gray"), JPEG, 30, 30))
    stored += [(smooth(h, w, i).tobytes(), RAW, h, w) for i, (h, w) in enumerate(SIZES)]
    write(folder / "mixed.beton", stored, [0] * len(stored))
    squares = [smooth(32, 32, i) for i in range(10)]
    same = [(x.tobytes(), RAW, 32, 32) if i % 2 else (encode_jpeg(x, 90), JPEG, 32, 32) for i, x in enumerate(squares)]
    write(folder / "same.beton", same, list(range(10)))
    files = [str(folder / name) for name in ("mixed.beton", "same.beton", "written.beton", "out.npz")]
    for name in CONVERTED:
        convert_as(name, folder)
        files.append(str(folder / f"{name}.beton"))
    (folder / "script.py").write_text(FFCV_READS)
    command = [sys.executable, str(folder / "script.py"), *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return folder


@needs_ffcv
def test_the_ffcv_reader_and_decoder_give_the_same_pixels(by_ffcv: Path) -> None:
    """RAW bit for bit. JPEG bit for bit what libjpeg-turbo's fast DCT gives, which the package asks for."""
    source, theirs = BetonSource(by_ffcv / "mixed.beton"), np.load(by_ffcv / "out.npz")
    for i in range(len(source)):
        assert_as_ffcv_decodes(source, i, theirs[f"arr_{i}"])


def assert_as_ffcv_decodes(source: BetonSource, i: int, pixels: NDArray[np.uint8]) -> None:
    if source.images["mode"][i] == RAW:
        np.testing.assert_array_equal(pixels, source.decode(i))
    else:
        np.testing.assert_array_equal(pixels, simplejpeg.decode_jpeg(source.encoded(i), "RGB", fastdct=True))
        assert np.abs(pixels.astype(int) - source.decode(i)).max() <= 20


@needs_ffcv
@pytest.mark.parametrize("name", CONVERTED)
def test_the_ffcv_package_opens_what_is_converted(by_ffcv: Path, name: str) -> None:
    source, theirs = BetonSource(by_ffcv / f"{name}.beton"), np.load(by_ffcv / f"{name}.beton.npz")
    assert theirs["labels"].tolist() == source.labels.tolist()
    assert len(theirs.files) == len(source) + 1
    for i in range(len(source)):
        assert_as_ffcv_decodes(source, i, theirs[f"arr_{i}"])


@needs_ffcv
def test_the_ffcv_loader_gives_the_same_pixels_and_labels(by_ffcv: Path) -> None:
    source, theirs = BetonSource(by_ffcv / "same.beton"), np.load(by_ffcv / "out.npz")
    assert theirs["labels"].tolist() == source.labels.tolist()
    for i in range(len(source)):
        difference = np.abs(theirs["same"][i].astype(int) - source.decode(i))
        assert difference.max() <= (0 if source.images["mode"][i] == RAW else 20)


@needs_ffcv
def test_a_file_that_the_ffcv_package_wrote_opens(by_ffcv: Path) -> None:
    """With other field names and order, both modes, two writer processes, no checksum, no sidecar."""
    source, given = BetonSource(by_ffcv / "written.beton"), np.load(by_ffcv / "out.npz")
    assert (source.image_field, source.label_field, source.storage) == ("picture", "class", "mixed")
    assert source.labels.tolist() == list(range(10)) and source.classes == tuple("0123456789")
    for i in range(len(source)):
        difference = np.abs(source.decode(i).astype(int) - given["same"][i])
        assert difference.mean() < 4 if source.images["mode"][i] == JPEG else difference.max() == 0
