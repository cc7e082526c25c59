"""WebDataset: our tar and index are what tar, `wds2idx` and DALI's reader expect; other people's tars open."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import pickle
import re
import shlex
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BrokenImage, UserError
from penstock.loaders import wds_index
from penstock.loaders.convert import convert
from penstock.loaders.decode import encode_jpeg, encode_png
from penstock.loaders.parts import join
from penstock.loaders.sidecar import sidecar_path
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.base import Source, Subset
from penstock.loaders.sources.folder import ImageFolder
from penstock.loaders.webdataset import BLOCK, WebDatasetSource, index_path

needs_dali = pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed")
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 10, 14, 3), np.uint8)


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """Twelve images as PNG, labels 0 … 2, with index and sidecar."""
    source = ImageArrays(IMAGES, np.arange(12) % 3, ["cat", "dog", "eel"], "pets-train")
    convert(source, tmp_path / "pets.tar", progress=False)
    return tmp_path / "pets.tar"


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """A folder of JPEGs, one an even and one an odd number of bytes, and one PNG."""
    for i in range(6):
        folder = tmp_path / "images" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(encode_jpeg(IMAGES[i], 90))
    (tmp_path / "images" / "b" / "9.png").write_bytes(encode_png(IMAGES[9]))
    return tmp_path / "images"


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar as others write them: a folder entry, names of theirs."""
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("set")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_arrays_come_back_bit_for_bit(tar: Path) -> None:
    source = WebDatasetSource(tar)
    assert (source.name, source.storage, source.classes) == ("pets-train", "webdataset", ("cat", "dog", "eel"))
    assert source.labels.tolist() == [0, 1, 2] * 4
    with ThreadPoolExecutor(8) as pool:
        for i, image in enumerate(pool.map(source.decode, list(range(12)) * 5)):
            np.testing.assert_array_equal(image, IMAGES[i % 12])


def test_a_pickled_source_opens_again(tar: Path) -> None:
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(WebDatasetSource(tar))).decode(5), IMAGES[5])


def test_tar_reads_it(tar: Path) -> None:
    with tarfile.open(tar) as archive:
        names = archive.getnames()
        label = archive.extractfile("000000004.cls")
        assert label is not None and label.read() == b"1"
    assert names == [f"{i:09d}.{extension}" for i in range(12) for extension in ("png", "cls")]


@needs_dali
def test_the_index_is_the_one_that_wds2idx_makes(jpegs: Path, tmp_path: Path) -> None:
    from wds2idx import IndexCreator

    convert(ImageFolder(jpegs, name="jpegs"), tmp_path / "jpegs.tar", progress=False)
    with IndexCreator(str(tmp_path / "jpegs.tar"), str(tmp_path / "theirs.idx"), verbose=False) as creator:
        creator.create_index()
    assert (tmp_path / "jpegs.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()


@needs_dali
@pytest.mark.parametrize("what", ["kept", "jpeg", "raw", "resized", "unlabelled", "single", "part", "joined"])
def test_dali_reads_it(jpegs: Path, tmp_path: Path, what: str) -> None:
    """Whatever was converted, and however."""
    from nvidia.dali import fn, pipeline_def

    tar = tmp_path / "x.tar"
    convert_as(what, jpegs, tar)

    @pipeline_def(batch_size=len(WebDatasetSource(tar)), num_threads=1, device_id=None)
    def read() -> tuple:
        paths, index_paths = [str(tar)], [str(index_path(tar))]
        images, labels = fn.readers.webdataset(paths=paths, index_paths=index_paths, ext=["jpg;png", "cls"])
        return images, labels

    pipeline = read()
    pipeline.build()
    images, labels = pipeline.run()
    source = WebDatasetSource(tar)
    assert len(source) == {"single": 1, "unlabelled": 3, "part": 4}.get(what, 7)
    for i in range(len(source)):
        assert np.asarray(images.at(i)).tobytes() == source.encoded(i)
        assert int(np.asarray(labels.at(i)).tobytes()) == source.labels[i]


def convert_as(what: str, jpegs: Path, tar: Path) -> None:
    """From six JPEGs and a PNG of two classes; from those of one as if it were a set without classes; or from one."""
    source: Source = ImageFolder(jpegs / "a" if what == "unlabelled" else jpegs, name="jpegs")
    options = {"resized": {"max_side": 9}, "raw": {"encoding": "raw"}, "jpeg": {"encoding": "jpeg"}}
    if what == "single":
        source = Subset(source, [4])
    if what not in ("part", "joined"):
        convert(source, tar, progress=False, **options.get(what, {}))
        return
    parts = [convert(source, tar, part=f"{n}/2", progress=False).path for n in (1, 2)]
    if what == "joined":
        join(tar, progress=False)
    else:
        index_path(parts[1]).rename(index_path(tar))
        parts[1].rename(tar)


def test_a_missing_index_is_made_again_with_a_note(tar: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = index_path(tar).read_bytes()
    index_path(tar).unlink()
    assert len(WebDatasetSource(tar)) == 12
    assert index_path(tar).read_bytes() == ours
    assert "no index beside it" in caplog.text


def test_without_a_sidecar_labels_come_from_the_tar(tar: Path) -> None:
    sidecar_path(tar).unlink()
    source = WebDatasetSource(tar)
    assert source.labels.tolist() == [0, 1, 2] * 4
    assert (source.name, source.classes, source.sidecar) == ("pets", ("0", "1", "2"), None)


def test_a_tar_of_other_people_opens(tmp_path: Path) -> None:
    """Components in another order and of other kinds, dots in names, folders, hidden files."""
    data = encode_png(IMAGES[0])
    members = [("set/.hidden", b"x")]
    for name, label in (("a", b"4"), ("b", b"2\n")):
        members += [(f"set/{name}.cls", label), (f"set/{name}.json", b"{}"), (f"set/{name}.png", data)]
    source = WebDatasetSource(write_tar(tmp_path / "theirs.tar", members))
    assert source.labels.tolist() == [4, 2] and source.encoded(1) == data
    unlabelled = WebDatasetSource(write_tar(tmp_path / "plain.tar", [("0.png", data), ("1.png", data)]))
    assert unlabelled.labels.tolist() == [-1, -1] and unlabelled.classes == ()


@pytest.mark.parametrize("name", ["photo {}", "my photo {}"])
def test_names_with_spaces(tmp_path: Path, name: str) -> None:
    """A space would end a word of the index; two of them look like one component more, and the labels are gone."""
    files = {".png": encode_png(IMAGES[0]), ".cls": b"3", ".some notes": b""}
    members = [(name.format(i) + ending, data) for i in range(2) for ending, data in files.items()]
    assert WebDatasetSource(write_tar(tmp_path / "theirs.tar", members)).labels.tolist() == [3, 3]


def test_an_index_of_others_with_spaces_in_names_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "theirs.tar", [("my photo 1.png", encode_png(IMAGES[0])), ("my photo 1.cls", b"3")])
    WebDatasetSource(tar)
    index = index_path(tar).read_text()
    index_path(tar).write_text(index.replace("my_photo_1", "my photo 1"))
    with pytest.raises(UserError, match=r"spaces in names.*remove theirs\.idx"):
        WebDatasetSource(tar)
    index_path(tar).unlink()
    assert WebDatasetSource(tar).labels.tolist() == [3]


def test_an_index_that_points_elsewhere_is_noticed_without_checksums(tmp_path: Path) -> None:
    """By the tar's own headers, for images and for labels."""
    images = [(f"{i}.png", encode_png(IMAGES[i])) for i in range(3)]
    tar = write_tar(tmp_path / "theirs.tar", sorted([*images, *((f"{i}.cls", b"12") for i in range(3))]))
    assert WebDatasetSource(tar).labels.tolist() == [12] * 3
    index = index_path(tar).read_bytes()
    words = index.split(b"\n")[2].split()  # of sample 1
    for place, by in product((1, 2, 5, 6), (-1, 1, -BLOCK, BLOCK)):  # offset and size of both files
        other = [*words[:place], b"%d" % (int(words[place]) + by), *words[place + 1 :]]
        index_path(tar).write_bytes(index.replace(b" ".join(words), b" ".join(other)))
        with pytest.raises(UserError, match=r"theirs\.tar.*its? (index|place in the index)|index points elsewhere"):
            WebDatasetSource(tar).decode(1)


def test_an_image_cut_short_is_named(tmp_path: Path) -> None:
    members = [("0.png", encode_png(IMAGES[0])), ("1.png", encode_png(IMAGES[1])[:60]), ("2.png", b"")]
    source = WebDatasetSource(write_tar(tmp_path / "bad.tar", members))
    for i in (1, 2):
        with pytest.raises(BrokenImage, match=rf"bad\.tar\[{i}\]"):
            source.decode(i)


@pytest.mark.parametrize(
    ("tar_bytes", "index", "says"),
    [
        (b"", None, "empty"),
        (b"no tar at all" * 100, None, "not a whole, uncompressed tar"),
        (bytes(4096), b"v1.1 1\n", "its index starts with"),
        (bytes(4096), b"v1.2 0\n", "its index starts with"),
        (bytes(4096), b"v1.2 99999999999\njpg 512 9 a.jpg", "promises 99999999999 samples in 32 bytes"),
        (bytes(4096), b"v1.2 " + b"9" * 5000 + b"\njpg 512 9 a.jpg", "promises 99999999999999999999 samples"),
        (bytes(4096), b"v1.2 1\njpg 512 9 a.jpg cls 1536", "same components"),
        (bytes(4096), b"v1.2 1\ncls 1536 1 a.cls", "has not one image"),
        (bytes(4096), b"v1.2 1\njpg 512 9999 a.jpg cls 1536 1 a.cls", "reaches beyond its end"),
        (bytes(4096), b"v1.2 1\njpg 99999999999999999999 9 a.jpg cls 1536 1 a.cls", "its index"),
        (bytes(4096), b"v1.2 1\njpg 512 nine a.jpg cls 1536 1 a.cls", "its index"),
        (bytes(4096), b"v1.2 1\njpg 512 9 a.jpg cls 1536 1 a.cls", "does not hold a number"),
    ],
)
def test_what_is_no_tar_with_its_index_is_refused(
    tmp_path: Path, tar_bytes: bytes, index: bytes | None, says: str
) -> None:
    (tmp_path / "bad.tar").write_bytes(tar_bytes)
    if index is not None:
        (tmp_path / "bad.idx").write_bytes(index)
    with pytest.raises(UserError, match=says) as error:
        WebDatasetSource(tmp_path / "bad.tar")
    assert str(tmp_path / "bad") in str(error.value) and "\n" not in str(error.value)


def test_a_tar_cut_short_is_refused(tar: Path) -> None:
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cut short"):
        WebDatasetSource(tar)


@pytest.fixture
def bare(tar: Path) -> Path:
    """A tar without index and sidecar."""
    index_path(tar).unlink()
    sidecar_path(tar).unlink()
    return tar


def test_a_tar_without_index_is_refused_wherever_it_is_cut(bare: Path) -> None:
    data = bare.read_bytes()
    for end in range(1, len(data), 97):
        bare.write_bytes(data[:end])
        with pytest.raises(UserError, match=r"pets\.tar: (not a whole|cut short)"):
            WebDatasetSource(bare)
    assert list(bare.parent.iterdir()) == [bare]


def test_a_tar_that_ends_with_its_last_file_tells_how_to_mark_its_end(bare: Path) -> None:
    data = bare.read_bytes()
    bare.write_bytes(data[: -2 * BLOCK])
    with pytest.raises(UserError, match="known to be whole") as error:
        WebDatasetSource(bare)
    advice = re.search("`(.*?)`", str(error.value))
    assert advice is not None and "\n" not in str(error.value)
    subprocess.run(shlex.split(advice[1]), check=True)
    assert bare.read_bytes() == data and len(WebDatasetSource(bare)) == 12
    bare.write_bytes(data[: -3 * BLOCK] + b"x" * 100)  # but not to one that ends within a header
    index_path(bare).unlink()
    with pytest.raises(UserError, match=r"copy it again$"):
        WebDatasetSource(bare)


def test_a_damaged_header_is_no_end(bare: Path) -> None:
    with tarfile.open(bare) as archive:
        place = archive.getmembers()[8].offset
    data = bytearray(bare.read_bytes())
    data[place] ^= 4
    bare.write_bytes(data)
    with pytest.raises(UserError, match=f"byte {place}: copy it again$"):
        WebDatasetSource(bare)


def test_an_index_that_cannot_be_written_is_made_each_time(
    bare: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, _: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for _ in range(2):
        assert len(WebDatasetSource(bare)) == 12
    assert caplog.text.count("pets.idx: cannot be written (No space left") == 2
    assert list(bare.parent.iterdir()) == [bare]


def test_headers_are_tarfiles_own(tmp_path: Path) -> None:
    """But for the checksum, which stands where tarfile puts the owner's names."""
    convert(ImageArrays(IMAGES, [0] * 12, ["a"], "x"), tmp_path / "x.tar", progress=False)
    data = (tmp_path / "x.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as archive:
        for member in archive:
            assert member.uname == ("crc32" if member.name.endswith("png") else "")
            made = tarfile.TarInfo(member.name)
            made.size, made.uname, made.gname = member.size, member.uname, member.gname
            assert data[member.offset : member.offset_data] == made.tobuf(tarfile.USTAR_FORMAT)


def contents(path: Path) -> list[tuple[int, bytes]]:
    """Each image's label and pixels. Raises UserError, of which BrokenImage is one."""
    source = WebDatasetSource(path)
    try:
        return [(int(source.labels[i]), source.decode(i).tobytes()) for i in range(len(source))]
    finally:
        source.close()


@pytest.mark.parametrize("suffix", [".tar", ".idx", ".tar.json"])
def test_a_flipped_bit_never_changes_an_image_or_a_label_in_silence(tar: Path, suffix: str) -> None:
    """It is refused, names the image, or does no harm; in any of the three files."""
    path, expected = tar.with_name(f"pets{suffix}"), contents(tar)
    data, refused = bytearray(path.read_bytes()), 0
    positions = range(0, len(data), 1 + len(data) // 500)
    for position in positions:
        data[position] ^= 4
        path.write_bytes(data)
        try:
            assert contents(tar) == expected, position
        except UserError:
            refused += 1
        data[position] ^= 4
    assert refused > len(positions) // 8


def test_an_index_that_was_changed_without_a_sidecar_to_tell(tar: Path) -> None:
    sidecar_path(tar).unlink()
    path, expected = index_path(tar), contents(tar)
    data = bytearray(path.read_bytes())
    for position in range(0, len(data), 7):
        data[position] ^= 1
        path.write_bytes(data)
        with contextlib.suppress(UserError):
            assert contents(tar) == expected, position
        data[position] ^= 1


@pytest.mark.parametrize("block", [1, 40, 1000, 1 << 20])
@pytest.mark.parametrize("end", ["\n", ""])
def test_the_index_is_read_as_a_plain_split_reads_it(monkeypatch: pytest.MonkeyPatch, block: int, end: str) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(200):
        parts = [f"JPG {rng.integers(10 ** rng.integers(1, 18))} {rng.integers(10**6)} {i}.JPG", f"cls 512 1 {i}.cls"]
        parts.append(f"segmentation.mask {i} {i} x")
        lines.append(" ".join(parts[k] for k in rng.permutation(3)))
    words = [line.split() for line in lines]
    expected = [[(int(w[k + 1]), int(w[k + 2])) for k in (0, 4, 8) if w[k] == "JPG"] for w in words]
    monkeypatch.setattr(wds_index, "BLOCK", block)
    index = ("v1.2 200\n" + "\n".join(lines) + end).encode()
    offsets, sizes = wds_index.component(index, ("png", "jpg"), "image")
    assert [[pair] for pair in zip(offsets.tolist(), sizes.tolist(), strict=True)] == expected
    for damaged in (index.replace(b"200", b"201"), index.replace(b"200", b"199", 1), index.replace(b" ", b"  ", 9)):
        with pytest.raises(ValueError, match="its index"):
            wds_index.component(damaged, ("png", "jpg"), "image")
