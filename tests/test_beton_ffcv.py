"""The ffcv package opens our `.beton` files and sees the same pixels and labels, and we open its files."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from penstock.loaders.beton import JPEG, RAW, BetonSource
from penstock.loaders.convert import convert
from penstock.loaders.decode import encode_jpeg
from penstock.loaders.parts import join
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.base import Source
from penstock.loaders.sources.folder import ImageFolder
from tests.small_betons import SIZES, smooth, write

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason="the ffcv package is not installed (penstock[ffcv])"
)
CONVERTED = ("kept", "jpeg", "raw", "resized", "unlabelled", "single", "pages", "part", "joined")
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


@pytest.mark.parametrize("name", CONVERTED)
def test_the_ffcv_package_opens_what_is_converted(by_ffcv: Path, name: str) -> None:
    source, theirs = BetonSource(by_ffcv / f"{name}.beton"), np.load(by_ffcv / f"{name}.beton.npz")
    assert theirs["labels"].tolist() == source.labels.tolist()
    assert len(theirs.files) == len(source) + 1
    for i in range(len(source)):
        assert_as_ffcv_decodes(source, i, theirs[f"arr_{i}"])


def test_the_ffcv_loader_gives_the_same_pixels_and_labels(by_ffcv: Path) -> None:
    source, theirs = BetonSource(by_ffcv / "same.beton"), np.load(by_ffcv / "out.npz")
    assert theirs["labels"].tolist() == source.labels.tolist()
    for i in range(len(source)):
        difference = np.abs(theirs["same"][i].astype(int) - source.decode(i))
        assert difference.max() <= (0 if source.images["mode"][i] == RAW else 20)


def test_a_file_that_the_ffcv_package_wrote_opens(by_ffcv: Path) -> None:
    """With other field names and order, both modes, two writer processes, no checksum, no sidecar."""
    source, given = BetonSource(by_ffcv / "written.beton"), np.load(by_ffcv / "out.npz")
    assert (source.image_field, source.label_field, source.storage) == ("picture", "class", "mixed")
    assert source.labels.tolist() == list(range(10)) and source.classes == tuple("0123456789")
    for i in range(len(source)):
        difference = np.abs(source.decode(i).astype(int) - given["same"][i])
        assert difference.mean() < 4 if source.images["mode"][i] == JPEG else difference.max() == 0
