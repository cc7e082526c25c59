"""Parts of a conversion: each a shard, together the very file that a single conversion writes; else one clear line."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import UserError
from penstock.loaders import beton, parts
from penstock.loaders.beton import PAGE_SIZE
from penstock.loaders.convert import convert, main
from penstock.loaders.decode import encode_jpeg
from penstock.loaders.formats import open_shard
from penstock.loaders.parts import Part, join
from penstock.loaders.sidecar import sidecar_path
from penstock.loaders.sources.arrays import ImageArrays
from penstock.loaders.sources.folder import ImageFolder
from penstock.loaders.webdataset import index_path

IMAGES = np.random.default_rng(0).integers(0, 256, (25, 30, 40, 3), np.uint8)
both_formats = pytest.mark.parametrize("suffix", [".beton", ".tar"])


@pytest.fixture
def photos(tmp_path: Path) -> ImageFolder:
    """25 JPEGs in two classes, of which two are broken."""
    for i, image in enumerate(IMAGES):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if i in (3, 16) else encode_jpeg(image[: 5 + i], 90))
    return ImageFolder(tmp_path / "photos", name="photos")


def convert_parts(source: ImageFolder | ImageArrays, shard: Path, count: int, **options: object) -> list[Path]:
    written = []
    for number in range(1, count + 1):
        part = f"{number}/{count}"
        written.append(convert(source, shard, part=part, on_error="skip", progress=False, **options).path)
    return written


def content(shard: Path) -> list[bytes]:
    files = [shard, index_path(shard)] if shard.suffix == ".tar" else [shard]
    return [file.read_bytes() for file in files]


@pytest.mark.parametrize(("samples", "of"), [(10, 1), (10, 3), (10, 10), (1_281_167, 64)])
def test_parts_cover_each_image_once(samples: int, of: int) -> None:
    numbers = [Part(i, of).numbers(samples) for i in range(1, of + 1)]
    assert numbers[0].start == 0 and numbers[-1].stop == samples
    assert all(a.stop == b.start for a, b in pairwise(numbers))
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 1


@both_formats
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_join_gives_the_bytes_of_a_single_conversion(
    photos: ImageFolder, tmp_path: Path, suffix: str, count: int
) -> None:
    whole = convert(photos, tmp_path / f"whole{suffix}", on_error="skip", progress=False)
    written = convert_parts(photos, tmp_path / f"x{suffix}", count)
    assert written[0].name == f"x.part-1-of-{count}{suffix}"
    report = join(tmp_path / f"x{suffix}", progress=False)
    assert content(report.path) == content(whole.path)
    assert replace(report, path=whole.path, seconds=0) == replace(whole, seconds=0)
    assert all(part.exists() for part in written)
    ours, single = open_shard(report.path), open_shard(whole.path)
    assert ours.sidecar is not None and single.sidecar is not None
    created = single.sidecar.provenance.created
    assert replace(ours.sidecar, provenance=replace(ours.sidecar.provenance, created=created)) == single.sidecar


@both_formats
def test_pages_break_elsewhere_in_the_whole_file_than_in_its_parts(tmp_path: Path, suffix: str) -> None:
    """Several pages of images, none of which may cross one."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (23, 700, 500, 3), np.uint8)  # seven to a page
    source = ImageArrays(images, np.arange(23) % 3, ["a", "b", "c"], "big")
    whole = convert(source, tmp_path / f"whole{suffix}", progress=False)
    assert suffix == ".tar" or whole.bytes > 4 * PAGE_SIZE
    convert_parts(source, tmp_path / f"x{suffix}", 2)
    assert content(join(tmp_path / f"x{suffix}", progress=False).path) == content(whole.path)


def test_room_for_the_tables_is_that_of_the_whole_source(
    photos: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for images that were skipped: with this page, the rows of 25 need one more than those of 23."""
    monkeypatch.setattr(beton, "PAGE_SIZE", 3900)
    whole = convert(photos, tmp_path / "whole.beton", on_error="skip", progress=False)
    convert_parts(photos, tmp_path / "x.beton", 3)
    assert content(join(tmp_path / "x.beton", progress=False).path) == content(whole.path)


def test_what_a_killed_join_left_is_in_nobodys_way(photos: ImageFolder, tmp_path: Path) -> None:
    whole = convert(photos, tmp_path / "whole.beton", on_error="skip", progress=False)
    convert_parts(photos, tmp_path / "x.beton", 3)
    (tmp_path / ".x.beton.partial").write_bytes(b"rest" * (4 << 20))
    assert content(join(tmp_path / "x.beton", progress=False).path) == content(whole.path)


@both_formats
def test_a_part_is_a_shard_of_its_own(photos: ImageFolder, tmp_path: Path, suffix: str) -> None:
    second = convert_parts(photos, tmp_path / f"x{suffix}", 3)[1]
    shard = open_shard(second)
    numbers = [i for i in Part(2, 3).numbers(25) if not photos.encoded(i).startswith(b"no")]
    assert [shard.encoded(i) for i in range(len(shard))] == [photos.encoded(i) for i in numbers]
    assert shard.labels.tolist() == photos.labels[numbers].tolist() and shard.classes == ("cat", "dog")
    assert shard.sidecar is not None and shard.sidecar.provenance.part == "2/3"
    assert shard.sidecar.provenance.fingerprint == photos.fingerprint()


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EOPNOTSUPP, None])
def test_copies_where_the_kernel_cannot(
    photos: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    """Between file systems, or where it copies nothing and says so."""

    def copy_file_range(*_: object) -> int:
        if error is not None:
            raise OSError(error, os.strerror(error))
        return 0

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    monkeypatch.setattr(parts, "COPIED_AT_ONCE", 100)
    whole = convert(photos, tmp_path / "whole.beton", on_error="skip", progress=False)
    convert_parts(photos, tmp_path / "x.beton", 2)
    assert content(join(tmp_path / "x.beton", progress=False).path) == content(whole.path)


def test_a_failure_leaves_nothing(photos: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_parts(photos, tmp_path / "x.beton", 2)
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"x\.beton: cannot be written \(No space left"):
        join(tmp_path / "x.beton", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


class TestRefusals:
    @pytest.fixture
    def shard(self, photos: ImageFolder, tmp_path: Path) -> Path:
        convert_parts(photos, tmp_path / "x.beton", 3)
        return tmp_path / "x.beton"

    def refused(self, shard: Path, says: str, **options: object) -> None:
        with pytest.raises(UserError, match=says) as error:
            join(shard, progress=False, **options)
        assert "\n" not in str(error.value) and not shard.exists()

    def test_missing_parts_are_named(self, shard: Path) -> None:
        Part(2, 3).path(shard).unlink()
        self.refused(shard, r"--part 2/3 is not there yet")

    def test_no_parts_at_all(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "none.beton", r"called none\.part-1-of-8\.beton and so on, and here are none")

    def test_parts_of_two_divisions(self, shard: Path, photos: ImageFolder) -> None:
        convert(photos, shard, part="1/2", on_error="skip", progress=False)
        self.refused(shard, "parts of 2 and 3")

    def test_another_option(self, shard: Path, photos: ImageFolder) -> None:
        convert(photos, shard, part="2/3", quality=50, on_error="skip", overwrite=True, progress=False)
        self.refused(shard, r"part-2-of-3\.beton: does not belong to x\.part-1-of-3\.beton: its options")

    def test_another_source(self, shard: Path, photos: ImageFolder) -> None:
        os.utime(photos.path(24))
        changed = ImageFolder(photos.root, name="photos")
        convert(changed, shard, part="3/3", on_error="skip", overwrite=True, progress=False)
        self.refused(shard, r"part-3-of-3\.beton: does not belong to .*: its fingerprint .*dates")

    def test_a_part_under_another_name(self, shard: Path) -> None:
        one, two = Part(1, 3).path(shard), Part(2, 3).path(shard)
        two.write_bytes(one.read_bytes())
        sidecar_path(two).write_bytes(sidecar_path(one).read_bytes())
        self.refused(shard, r"part-2-of-3\.beton: was written as part 1/3")

    def test_a_part_without_its_sidecar(self, shard: Path) -> None:
        sidecar_path(Part(1, 3).path(shard)).unlink()
        self.refused(shard, r"x\.part-1-of-3\.beton\.json is missing")

    def test_changed_tables(self, shard: Path) -> None:
        part = Part(1, 3).path(shard)
        label = len(open_shard(part)._front) + 16
        data = bytearray(part.read_bytes())
        data[label] ^= 1
        part.write_bytes(data)
        self.refused(shard, r"part-1-of-3\.beton: its tables changed")

    def test_a_part_cut_short(self, shard: Path) -> None:
        part = Part(3, 3).path(shard)
        os.truncate(part, part.stat().st_size // 2)
        self.refused(shard, r"part-3-of-3\.beton: not a whole")

    def test_a_shard_of_that_name(self, shard: Path) -> None:
        join(shard, progress=False)
        before = shard.read_bytes()
        with pytest.raises(UserError, match="--overwrite replaces it"):
            join(shard, progress=False)
        join(shard, overwrite=True, progress=False)
        assert shard.read_bytes() == before


def test_a_part_of_broken_images_alone_is_told_what_helps(photos: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of its images \(1\) can be decoded, .*; use fewer parts"):
        convert(photos, tmp_path / "x.beton", part="9/25", on_error="skip", progress=False)


def test_the_commands(photos: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("1/2", "2/2"):
        line = [str(photos.root), str(tmp_path / "x.tar"), "--part", part, "--on-error", "skip"]
        assert main(line) == 0
    assert main(["--inspect", str(tmp_path / "x.part-2-of-2.tar")]) == 0
    assert "2/2 of the source" in capsys.readouterr().out
    assert main(["--join", str(tmp_path / "x.tar")]) == 0
    assert "23 images" in capsys.readouterr().out
    assert len(open_shard(tmp_path / "x.tar")) == 23
